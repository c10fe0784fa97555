"""Batch sweep: the cost of an image of the model in the box, by the size of its batch."""

from __future__ import annotations

import dataclasses

from fastddpm.timing import Effort
from fastddpm_bench.contest import BenchSettings, Contest
from fastddpm_bench.subjects import pipelines
from fastddpm_bench.workloads import MNIST

STEPS = 10
EFFORT = Effort(seconds=10.0, least=5, most=30, warm_up=1)


def contests(settings: BenchSettings) -> list[Contest]:
    """A few DDIM steps of each batch size."""
    if settings.quick:
        sizes = [1, 4]
    else:
        sizes = [1, 4, 16, 64, 256, 1024] if settings.is_cuda else [1, 2, 4, 8, 16, 32]
    steps = 2 if settings.quick else STEPS
    return [
        dataclasses.replace(
            pipelines.chain_contest("batch", MNIST, "ddim", size, steps, settings),
            contestants=pipelines.few_contestants(settings),
            per=size,
            per_name="image",
            axis=float(size),
            effort=None if settings.quick else EFFORT,
            isolated=not settings.quick,
        )
        for size in sizes
    ]
