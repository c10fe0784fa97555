"""Cost against steps: the time of an image of the model in the box, by the number of its DDIM steps."""

from __future__ import annotations

import dataclasses

from fastddpm.timing import Effort
from fastddpm_bench.contest import BenchSettings, Contest
from fastddpm_bench.subjects import pipelines
from fastddpm_bench.workloads import MNIST

# Five rounds also where a call takes a minute: the intervals of three cover 71 to 78 % instead of 95.
EFFORT = Effort(seconds=15.0, least=5, most=30, warm_up=0)


def contests(settings: BenchSettings) -> list[Contest]:
    """Chains of several lengths, measured whole."""
    lengths = [2, 5] if settings.quick else [10, 20, 50, 100, 250]
    if settings.is_cuda:
        lengths.append(1000)
    batch = 64 if settings.is_cuda else 8
    return [
        dataclasses.replace(
            pipelines.chain_contest("steps", MNIST, "ddim", batch, steps, settings),
            contestants=pipelines.few_contestants(settings),
            per=batch,
            per_name="image",
            axis=float(steps),
            effort=None if settings.quick else EFFORT,
            isolated=not settings.quick,
        )
        for steps in lengths
    ]
