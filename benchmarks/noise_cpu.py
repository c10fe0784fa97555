"""Noise and a step on a CPU beside torch's generator and the plain formula: figures of docs/benchmarks.md.

    taskset -c 1 python benchmarks/noise_cpu.py [--out benchmarks/results/noise_cpu.json]

One thread, its processor time, the contestants in turn within one process: smallest and median of the
repetitions. What numba costs before it is of use is measured in processes of their own, with its functions
kept on disk by a process before, and with none kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fastddpm_bench.subjects.reverse_step import ROW, Step
from fastddpm_bench.subjects.variants import by_numba
from fastddpm_kernels import normal, reverse_step

SHAPES = ((64, 3, 32, 32), (64, 1, 28, 28), (1, 1, 28, 28), (4, 3, 256, 256))
PROCESSES = 5
Call = Callable[[], Any]


def contestants(shape: tuple[int, ...]) -> Iterator[tuple[str, Call]]:
    """What is timed, by name; ours by torch's operators and by numba."""
    step = Step(shape, torch.device("cpu"))
    state = step.x.clone()
    yield "torch.randn", lambda: torch.randn(shape)
    yield "formula, noise given", lambda: step.formula(step.z)
    yield "formula and torch.randn", lambda: step.formula(torch.randn(shape))
    ours = {
        "noise": lambda: normal(step.seeds, ROW + 1, shape[1:]),
        "step, noise given": lambda: _step(step, state, step.z[None]),
        "step, noise drawn": lambda: _step(step, state, step.seeds),
    }
    for name, call in ours.items():
        for by in ("torch", "numba"):
            yield f"{name}, by {by}", lambda call=call, by=by: by_numba(call, by == "numba")


def _step(step: Step, state: torch.Tensor, noise: torch.Tensor) -> None:
    reverse_step(state, step.m, step.table, step.counter, noise=noise, clip=True)


def measure(repetitions: int) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of each shape's contestants."""
    found = {}
    for shape in SHAPES:
        calls = dict(contestants(shape))
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(5):
            for call in calls.values():
                call()
        for _ in range(repetitions):
            for name, call in calls.items():
                began = time.thread_time()
                call()
                times[name].append(1e3 * (time.thread_time() - began))
        found["x".join(map(str, shape))] = {
            name: {"smallest": round(min(some), 4), "median": round(statistics.median(some), 4)}
            for name, some in times.items()
        }
    return found


def start() -> dict[str, float]:
    """Milliseconds of a process's first step by numba, the import in it, and of its second."""
    step = Step(SHAPES[0], torch.device("cpu"))
    state = step.x.clone()
    by_numba(lambda: _step(step, state, step.seeds), False)
    times = []
    began = time.thread_time()
    __import__("numba")
    times.append(time.thread_time() - began)
    for _ in range(2):
        began = time.thread_time()
        by_numba(lambda: _step(step, state, step.seeds), True)
        times.append(time.thread_time() - began)
    return {name: 1e3 * t for name, t in zip(("import", "first step", "second step"), times, strict=True)}


def starts() -> dict[str, dict[str, float]]:
    """Medians over processes, with nothing kept on disk and with what a process before kept."""
    runs: dict[str, list[dict[str, float]]] = {"nothing kept": [], "kept": []}
    for _ in range(PROCESSES):
        with tempfile.TemporaryDirectory() as folder:
            for kind in runs:
                command = [sys.executable, __file__, "--start"]
                environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                runs[kind].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        kind: {name: round(statistics.median(run[name] for run in some), 1) for name in some[0]}
        for kind, some in runs.items()
    }


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/noise_cpu.json"))
    parser.add_argument(
        "--start", action="store_true", help="one process's start of numba; printed, not kept"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.start:
        print(json.dumps(start()))
        return
    from fastddpm.files import write_json
    from fastddpm_bench import machine

    document = {
        "command": f"taskset -c 1 python benchmarks/noise_cpu.py --repetitions {arguments.repetitions}",
        "machine": machine.describe(torch.device("cpu")),
        "numba": __import__("numba").__version__,
        "milliseconds of processor time": measure(arguments.repetitions),
        "start of numba, milliseconds": starts(),
    }
    write_json(arguments.out, document)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
