"""Peak memory of a chain of the model in the box: of its process on a CPU, of torch's allocator on a GPU."""

from __future__ import annotations

import functools
from typing import Any

from fastddpm.timing import Call, Effort
from fastddpm_bench import processes
from fastddpm_bench.contest import BenchSettings, Contest, ParityError
from fastddpm_bench.subjects.cold_start import Programs, entrants
from fastddpm_bench.workloads import MNIST

EFFORT = Effort(seconds=0.0, least=3, most=3, warm_up=0)
QUICK = Effort(seconds=0.0, least=1, most=1, warm_up=0)


def contests(settings: BenchSettings) -> list[Contest]:
    """A batch of images in a few steps, a process each."""
    batch, steps = (4, 2) if settings.quick else (64, 5)
    return [
        Contest(
            subject="memory",
            workload=f"{MNIST.name}, ddim, {steps} steps, batch {batch}",
            setup=functools.partial(Programs, batch, steps, settings.device),
            contestants=entrants(settings, _peak),
            per_name="process",
            unit="B",
            effort=QUICK if settings.quick else EFFORT,
        )
    ]


def _peak(program: str, shared: Programs, **variables: Any) -> Call:
    def call() -> float:
        peak = shared.run(program, **variables)["peak_bytes"]
        if not bool(processes.image(shared.out).isfinite().all()):
            raise ParityError(f"memory: {program} gives images that are not finite")
        return peak

    return call
