"""What one call costs the host beside the steps: the figures of docs/architecture.md, "Host time".

    taskset -c 0 python benchmarks/host_time.py [--against FOLDER] [--out benchmarks/results/host_time.json]

The engine is the captured one, as on a card, on tensors of a CPU, with captures whose replay does nothing:
what is left is what the host does itself, plus the operators that it would launch one by one. With
``--against`` the same calls run in another checkout of this repository too, processes of the two in turn.
CPU time of the thread: medians over the processes, of their median calls and of their fastest. Other programs
do not count in that, but what they do to the caches does; the fastest call is the one they disturb least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
STEPS = 50
WARM_UP = 8
CALLS = 60


class StubBackend:
    """Captures what it is given, by running it once, and replays nothing."""

    def __init__(self, device: torch.device) -> None:
        pass

    def warm_up(self, run: Callable[[], None]) -> None:
        """Nothing to warm up."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """The replay that does nothing."""
        return lambda: None

    def memory(self) -> int:
        """None."""
        return 0


class Operators(TorchDispatchMode):
    """Counts the operators that are dispatched."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        self.count += 1
        return operator(*arguments, **(options or {}))


def stub() -> None:
    """Makes samplers and drop-ins run the captured engine on a CPU, and every replay nothing."""
    from fastddpm import runner
    from fastddpm.engine import executors

    vars(runner)["resolve_engine"] = lambda engine, device: "cudagraph"
    vars(executors)["CudaGraphBackend"] = StubBackend


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls for one image, by name."""
    from diffusers import DDIMPipeline, DDIMScheduler

    import fastddpm
    from fastddpm_bench.workloads import CIFAR10, MNIST

    for workload in (MNIST, CIFAR10):
        unet = workload.unet(torch.device("cpu"))
        pipeline = DDIMPipeline(unet=workload.unet2d(unet), scheduler=DDIMScheduler())
        for dtype in (None, torch.bfloat16):
            fast = fastddpm.optimize(pipeline, dtype=dtype)
            fast.set_progress_bar_config(disable=True)
            options = {"num_inference_steps": STEPS, "output_type": "pt"}
            name = "optimize(pipeline)" if dtype is None else "optimize(pipeline, dtype=bfloat16)"
            yield f"{name}, {workload.name}", lambda fast=fast, options=options: fast(1, **options)
        sampler = fastddpm.Sampler(
            unet, workload.schedule, method="ddim", num_inference_steps=STEPS, shape=workload.shape
        )
        call = lambda sampler=sampler: sampler.sample(seeds=[1], progress=False)  # noqa: E731
        yield f"Sampler.sample, {workload.name}", call


def measure() -> dict[str, dict[str, float]]:
    """Milliseconds of CPU time a call, of the median and of the fastest, and operators, in this process."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    stub()
    found = {}
    for name, call in cases():
        for _ in range(WARM_UP):
            call()
        times = []
        for _ in range(CALLS):
            began = time.thread_time()
            call()
            times.append(time.thread_time() - began)
        with Operators() as operators:
            call()
        found[name] = {
            "milliseconds": 1e3 * statistics.median(times),
            "fastest": 1e3 * min(times),
            "operators": operators.count,
        }
    return found


def in_a_process(checkout: Path) -> dict[str, dict[str, float]]:
    """The measurement of a checkout, in a fresh process."""
    path = os.pathsep.join([str(checkout), str(checkout / "kernels")])
    words = [sys.executable, __file__, "--measure"]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn: before")
    parser.add_argument("--processes", type=int, default=5, help="of each checkout")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/host_time.json"))
    parser.add_argument("--measure", action="store_true", help="one process's share; printed, not kept")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure()))
        return
    checkouts = {"after": ROOT}
    if arguments.against is not None:
        checkouts = {"before": arguments.against.resolve(), **checkouts}
    runs: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in checkouts}
    for _ in range(arguments.processes):
        for name, checkout in checkouts.items():
            runs[name].append(in_a_process(checkout))
    from fastddpm.files import write_json
    from fastddpm_bench import machine

    document = {
        "command": f"python benchmarks/host_time.py --processes {arguments.processes} --against FOLDER",
        "machine": machine.describe(torch.device("cpu")),
        "steps": STEPS,
        "calls": {
            case: {name: _summary([run[case] for run in some]) for name, some in runs.items()}
            for case in runs["after"][0]
        },
    }
    write_json(arguments.out, document)
    print(json.dumps(document["calls"], indent=1))


def _summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"operators": int(runs[-1]["operators"])}
    for name in ("milliseconds", "fastest"):
        times = [round(run[name], 3) for run in runs]
        summary[name] = {"median": statistics.median(times), "all": times}
    return summary


if __name__ == "__main__":
    main()
