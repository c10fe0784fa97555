"""A test for each contestant of a file's SUBJECT, with the contestants that `fastddpm bench` has.

`pytest benchmarks/bench_unet.py [--quick]`. A contestant's output is held to the baseline's before it is
timed. pytest-benchmark times one contestant after the other; for ratios, `fastddpm bench` interleaves them.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from fastddpm.precision import forced
from fastddpm_bench.contest import BenchSettings, Contest, LeftOut, assemble
from fastddpm_bench.subjects import contests


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="small sizes, nothing compiled")


def pytest_generate_tests(metafunc):
    if "entry" not in metafunc.fixturenames:
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = BenchSettings(device, quick=metafunc.config.getoption("--quick"))
    entries = [
        Entry(contest, contestant.name, device)
        for contest in contests(settings, [metafunc.module.SUBJECT])
        for contestant in contest.contestants
    ]
    metafunc.parametrize("entry", entries, ids=str)


class Entry:
    """One contestant of one contest."""

    def __init__(self, contest: Contest, name: str, device: torch.device) -> None:
        self.contest, self.name, self.device = contest, name, device

    def __str__(self) -> str:
        return f"{self.contest.workload} - {self.name}"

    def run(self, benchmark: Any) -> None:
        """Checks and times it; skips it with the reason where it cannot run."""
        # Compilations of one function for many networks reach torch's limit, and run eagerly from there on.
        torch.compiler.reset()
        # On a card outputs are held to each other, so nothing runs in TF32 there.
        with forced("highest" if self.device.type == "cuda" else None):
            self._timed(benchmark)

    def _timed(self, benchmark: Any) -> None:
        try:
            self.contest.check_runs_on(self.device)
            field = assemble(self.contest, shared(self.contest), only=[self.name])
        except (LeftOut, ImportError) as reason:
            pytest.skip(str(reason))
        if self.name in field.left_out:
            pytest.skip(field.left_out[self.name])
        call = field.calls[self.name]
        benchmark.group = f"{self.contest.subject}: {self.contest.workload} ({self.device.type})"
        benchmark.name = self.name
        benchmark.extra_info["difference"] = field.differences.get(self.name)
        if self.contest.unit == "B":
            benchmark.extra_info["peak_bytes"] = benchmark.pedantic(call, rounds=1)
        elif self.contest.effort is not None:
            benchmark.pedantic(self._synchronized(call), rounds=self.contest.effort.least)
        else:
            benchmark(self._synchronized(call))

    def _synchronized(self, call: Any) -> Any:
        if self.device.type != "cuda":
            return call

        def waited() -> None:
            call()
            torch.cuda.synchronize()

        return waited


@functools.lru_cache(maxsize=1)
def shared(contest: Contest) -> Any:
    """What the contestants of the contest at hand share."""
    return contest.setup()
