"""Contestants in processes of their own: parity, times of the worker, reasons and failures passed on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastddpm.timing import Effort, interleaved
from fastddpm_bench.contest import BenchSettings, LeftOut, ParityError
from fastddpm_bench.isolation import Worker, WorkersClock, assemble_isolated, close
from fastddpm_bench.subjects import contests

QUICK = BenchSettings(torch.device("cpu"), quick=True)


@pytest.fixture(scope="module")
def chain():
    """The quick chain's contest with two of its contestants."""
    contest = contests(QUICK, ["pipelines"])[0]
    assert contest.isolated
    kept = [c for c in contest.contestants if c.name in ("plain loop", "Sampler, eager")]
    assert len(kept) == 2
    return dataclasses.replace(contest, contestants=kept)


def test_workers_are_checked_and_timed(chain):
    field = assemble_isolated(chain, QUICK)
    try:
        assert list(field.calls) == ["plain loop", "Sampler, eager"]
        assert 0 < field.differences["Sampler, eager"] <= chain.tolerance
        times = interleaved(field.calls, WorkersClock(), Effort(0.0, least=2, most=2, warm_up=1))
        assert all(len(taken.wall) == 2 and min(taken.wall) > 0.01 for taken in times.values())
        assert all(min(taken.process) > 0.01 for taken in times.values())
    finally:
        close(field)


def test_parity_is_demanded(chain):
    with pytest.raises(ParityError, match="Sampler, eager differs"):
        assemble_isolated(dataclasses.replace(chain, tolerance=1e-12), QUICK)


def test_reasons_and_failures_arrive(chain, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "diffusers.py").write_text("raise ImportError('not today')")
    with pytest.raises(LeftOut, match="not today"):
        Worker(chain, "diffusers", QUICK, tmp_path)
    with pytest.raises(RuntimeError, match="no such contestant: its process ended with code 1"):
        Worker(chain, "no such contestant", QUICK, tmp_path)
    assert "StopIteration" in capfd.readouterr().err
