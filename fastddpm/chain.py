"""One batch walked through a plan: the buffers loaded, then the rows run, segment by segment."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastddpm.engine import Loop, Loops, StepCase
from fastddpm.network import Model, in_eval_mode
from fastddpm.plans import Plan
from fastddpm.randomness import TorchNoise, ring_length
from fastddpm.request import Batch


def step_case(batch: Batch, plan: Plan, *, keep_x0: bool) -> StepCase:
    """What is fixed in every step of this batch under this plan."""
    shape = tuple(batch.x.shape)
    is_torch = isinstance(batch.source, TorchNoise)
    # A sequential generator also draws where the noise is then multiplied by 0.
    is_noisy = bool(plan.draws is not None and plan.draws.any()) if is_torch else plan.stochastic
    return StepCase(
        shape=shape,  # type: ignore[arg-type]
        noise=batch.source.kind if is_noisy else "none",
        ring=ring_length(shape, len(plan)) if is_torch and is_noisy else 0,
        guided=batch.guidance is not None,
        clip=plan.clip,
        multistep=plan.multistep,
        keep_x0=keep_x0,
        thresholding=plan.thresholding,
    )


def walk(
    loops: Loops,
    model: Model,
    batch: Batch,
    plan: Plan,
    *,
    row: int,
    segment: int,
    capacity: int,
    keep_x0: bool = False,
) -> Iterator[tuple[int, Loop]]:
    """Runs a batch from a plan row to the end; yields (rows done, loop) after each segment.

    Args:
        loops: where loops are kept.
        model: the network; in eval mode while this runs.
        batch: state, noise and conditioning.
        plan: what to do.
        row: where to start.
        segment: most rows between two looks at the host.
        capacity: rows that the loop's tables have room for, at least the plan's.
        keep_x0: keep each step's predicted clean image in the loop's buffers.
    """
    case = step_case(batch, plan, keep_x0=keep_x0)
    with in_eval_mode(model):
        loop = loops.get(
            model,
            case,
            capacity=max(len(plan), capacity),
            time_dtype=torch.tensor(plan.model_time[:1]).dtype,
            cond=batch.cond,
            condition=batch.condition,
        )
        loop.load(plan, batch, row)
        while row < len(plan):
            stop = min(row + segment, len(plan))
            if isinstance(batch.source, TorchNoise) and loop.buffers.noise is not None:
                stop = min(stop, (row // case.ring + 1) * case.ring)
                batch.source.fill(loop.buffers.noise, plan, row, stop)
            loop.run(stop - row)
            row = stop
            yield row, loop
