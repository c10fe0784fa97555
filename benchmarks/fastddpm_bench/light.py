"""The speed of light of a piece of work: the least time in which this machine could do it.

For each operator the larger of bytes/bandwidth and FLOPs/peak, with the limits of the same run; two readings:

* fused: only convolutions, matrix products and attention count. Everything else (activations, norms, sums,
  concatenations, the update of x) could ride along in their loads and stores. A lower bound for direct
  convolutions; an algorithm with fewer operations, such as Winograd's, could go below it.
* as dispatched: every operator by itself, reading and writing memory. What eager code could reach if each of
  its operators were perfect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fastddpm_bench.costs import OpCost
from fastddpm_bench.limits import Limits


@dataclasses.dataclass(frozen=True)
class Light:
    """Totals and least times of some work.

    Attributes:
        flops: of convolutions, matrix products and attention.
        bytes: of the operators as dispatched.
        fused: least seconds with everything else fused into the operators that compute.
        dispatched: least seconds of the operators, each by itself.
    """

    flops: int
    bytes: int
    fused: float
    dispatched: float


def speed_of_light(costs: Sequence[OpCost], limits: Limits) -> Light:
    """Totals and least times of operators on a machine."""
    computing = [op for op in costs if op.flops]
    # Work that computes nothing to speak of, such as an update of x, is all traffic.
    fused = sum(least_seconds(op, limits) for op in computing or costs)
    return Light(
        flops=sum(op.flops for op in costs),
        bytes=sum(op.bytes for op in costs),
        fused=fused,
        dispatched=sum(least_seconds(op, limits) for op in costs),
    )


def least_seconds(op: OpCost, limits: Limits) -> float:
    """The larger of the operator's time to compute and its time to move data."""
    return max(op.bytes / limits.bandwidth(op.bytes), op.flops / limits.peak)
