"""What a network is given on the way of a chain, for an engine that has to know its activations beforehand.

The chain is the plan's own, of fixed seeds, run in float32 by PyTorch: the same states come of the same
model, plan and conditions, whatever is drawn by them afterwards.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastddpm.batch import Batch
from fastddpm.copies import Copies
from fastddpm.engine.graph import WARM_UP_STEPS
from fastddpm.engine.loop import Loop
from fastddpm.engine.step import StepCase
from fastddpm.network import Model, Network
from fastddpm.plans import Plan
from fastddpm.randomness import PhiloxNoise
from fastddpm.tabulated import bind
from fastddpm.unet import UNet
from fastddpm_kernels import Column

IMAGES = 8
PASSES = 400
"""Passes of one image that a chain has at most, so that a plan of many rows is walked for fewer images."""
ROWS = 16
"""Rows of the plan at which states are taken, the first and the last among them."""
FIRST_SEED = 2**40


class CalibrationChain:
    """A chain of a few images by a plan, in conditions like those of a batch.

    The classes of our UNet take turns. Another condition is the batch's, and guidance is of scale 1, at which
    both halves of the network's batch see the states of the conditional model.

    Args:
        model: in eval mode whenever `states` is called.
        plan: what is walked, from its first row to its last.
        batch: for its shapes and conditions.
        case: of a step for a batch of another size: ``case(batch)``.
        dtype: what the model takes x in.
        copies: as of `Loop.load`.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        batch: Batch,
        case: Callable[[Batch], StepCase],
        *,
        dtype: torch.dtype,
        copies: Copies | None,
    ) -> None:
        self._model, self._plan, self._given = model, plan, batch
        self._case, self._dtype, self._copies = case, dtype, copies
        self.key = zlib.crc32(plan.model_time.tobytes(), zlib.crc32(plan.table.tobytes()))

    @property
    def _rows(self) -> list[int]:
        rows: list[int] = np.unique(np.linspace(0, len(self._plan) - 1, ROWS).round().astype(int)).tolist()
        return rows

    def weights(self) -> list[float]:
        """Of the state that follows, how much of it is the network's output, at each of these rows."""
        moves = output_moves(self._plan)[self._rows]
        return moves.tolist() if moves.any() else [1.0] * len(moves)

    def states(self) -> list[tuple[Tensor, ...]]:
        """Arguments of `Network.core` at each of some rows, of all images."""
        batch, plan = self._batch(), self._plan
        case = self._case(batch)
        network = bind(
            self._model,
            device=torch.device("cpu"),
            dtype=self._dtype,
            capacity=len(plan) + WARM_UP_STEPS,
            guided=case.guided,
            time_dtype=torch.int64 if plan.model_time.dtype.kind == "i" else torch.float32,
            cond=batch.cond,
            condition=batch.condition,
        )
        seen: list[tuple[Tensor, ...]] = []
        network.run_by(functools.partial(_noted, network, seen))
        loop = Loop(
            network, case, len(network.time), "eager", steps_per_graph=1, on_fallback=None, refusal=None
        )
        loop.load(plan, batch, 0, self._copies)
        rows, found = self._rows, list[tuple[Tensor, ...]]()
        for row in range(len(plan)):
            loop.run(1)
            if row in rows:
                found.append(seen[-1])
            seen.clear()
        return found

    def _batch(self) -> Batch:
        count = max(2, min(IMAGES, PASSES // len(self._plan)))
        given, halves = self._given, 1 if self._given.guidance is None else 2
        shape = (count, *given.shape[1:])
        cond = {name: _cycled(value, count, halves) for name, value in given.cond.items()}
        if isinstance(self._model, UNet) and self._model.config.num_classes is not None:
            classes = torch.arange(count) * self._model.config.num_classes // count
            cond["class_labels"][-count:] = classes  # the conditional half
        return Batch(
            shape,
            None,
            count,
            PhiloxNoise(torch.arange(FIRST_SEED, FIRST_SEED + count), torch.device("cpu")),
            None if given.guidance is None else torch.ones(count),
            cond,
            None if given.condition is None else _cycled(given.condition, count, halves),
        )


def output_moves(plan: Plan) -> npt.NDArray[np.float64]:
    """By how much the next state moves with the network's output, ``(S,)``, where no bound is in the way."""
    column = {one: plan.table[:, int(one)].astype(np.float64) for one in Column}
    x0 = column[Column.X0_FROM_M] / (column[Column.X0_DIVISOR] if plan.divides else 1.0)
    output: npt.NDArray[np.float64] = column[Column.FROM_M]
    if plan.rederives:  # there this is the part of eps
        eps = (column[Column.EPS_FROM_X0] * x0 + column[Column.EPS_FROM_M]) / column[Column.EPS_DIVISOR]
        output = output * eps
    return np.abs(column[Column.FROM_X0] * x0 + output)


def _noted(network: Network, seen: list[tuple[Tensor, ...]], x: Tensor, time: Tensor) -> Tensor:
    arguments = network.arguments(x, time)
    seen.append(tuple(argument.clone() for argument in arguments))
    return network.core(*arguments)


def _cycled(values: Tensor, count: int, halves: int) -> Tensor:
    """Of each half of a batch so many samples, from the first on, again and again."""
    each = len(values) // halves
    places = torch.arange(count) % each
    return torch.cat([values[half * each + places] for half in range(halves)])
