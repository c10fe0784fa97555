"""A request on its way to an image: what the caller holds, and what the scheduler knows of it."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from torch import Tensor

from fastddpm.batch import Batch
from fastddpm.engine import StepCase
from fastddpm.plans import Plan
from fastddpm.plans.arena import RowKind
from fastddpm.serving.errors import DeadlinePassed
from fastddpm_kernels.table import MOST_KEPT

Preview = Callable[[int, Tensor], None]
OF_SOLVERS = 3
"""Predictions that they keep at most, all but one: PNDM's Runge-Kutta start keeps five."""


class Drawing(concurrent.futures.Future[Tensor]):
    """A future of one image, float32 ``(C, H, W)`` in the model's range, on its device.

    It counts as pending until it has ended, so that `cancel` works as long as there is something to save.

    Attributes:
        seed: of the image.
        steps: rows of its plan.
        done_steps: those that have run.
    """

    def __init__(self, seed: int, steps: int) -> None:
        super().__init__()
        self.seed, self.steps, self.done_steps = seed, steps, 0
        self._cancelling, self._is_told = threading.Lock(), False

    @property
    def progress(self) -> float:
        """The share of its steps that have run, 0 to 1."""
        return self.done_steps / self.steps

    def cancel(self) -> bool:
        """Gives it up, unless it has ended; whether it is cancelled now.

        Whoever waits in `concurrent.futures.wait` or `as_completed` is told too, which Python leaves to whom
        runs a future.
        """
        if not super().cancel():
            return False
        with self._cancelling:
            if not self._is_told:
                self._is_told = True
                self.set_running_or_notify_cancel()
        return True

    def finish(self, image: Tensor) -> None:
        """Sets the image, unless it was cancelled meanwhile."""
        with suppress(concurrent.futures.InvalidStateError):
            self.set_result(image)

    def fail(self, error: BaseException) -> None:
        """Sets an error, unless it was cancelled meanwhile."""
        with suppress(concurrent.futures.InvalidStateError):
            self.set_exception(error)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What requests have in common that can share steps: what a step is compiled for.

    Attributes:
        shape: of one state.
        kept: places for predictions: one for x0; three for sums, or as many as there are.
        keep_x0: the predicted x0 is written out, for previews.
        thresholding: as of a `Plan`.
        learned_range: likewise.
        rows: of an arena.
        tells_levels: the network is told float32 numbers instead of timesteps.
        conditions: name, shape behind the batch and dtype of what the network is given by name.
        condition: shape of a condition image, or None.
    """

    shape: tuple[int, ...]
    kept: int
    keep_x0: bool
    thresholding: tuple[float, float] | None
    learned_range: bool
    rows: RowKind
    tells_levels: bool
    conditions: tuple[tuple[str, tuple[int, ...], str], ...]
    condition: tuple[int, ...] | None

    @classmethod
    def of(cls, batch: Batch, plan: Plan, *, keep_x0: bool) -> Kind:
        """Of a batch of one image under a plan."""
        sums = plan.kept > 1 or plan.combines
        kept = MOST_KEPT if plan.kept > OF_SOLVERS else OF_SOLVERS
        named = sorted(batch.cond.items())
        return cls(
            shape=batch.shape[1:],
            kept=kept if sums else 1,
            keep_x0=keep_x0,
            thresholding=plan.thresholding,
            learned_range=plan.learned_range,
            rows=RowKind(combines=sums, divides=plan.divides, rederives=plan.rederives),
            tells_levels=plan.model_time.dtype.kind == "f",
            conditions=tuple((name, tuple(value.shape[1:]), str(value.dtype)) for name, value in named),
            condition=None if batch.condition is None else tuple(batch.condition.shape[1:]),
        )

    def case(self, slots: int, ring: int, *, mixed: bool) -> StepCase:
        """A step of so many slots, guided chains among them or not. Rows without a clip have an infinite
        bound, those without noise none."""
        return StepCase(
            shape=(slots, *self.shape),
            ring=ring,
            clip=self.thresholding is None,
            kept=self.kept,
            combine=self.rows.combines,
            keep_x0=self.keep_x0,
            thresholding=self.thresholding,
            learned_range=self.learned_range,
            divide=self.rows.divides,
            rederive=self.rows.rederives,
            arena=True,
            mixed=mixed,
        )

    @property
    def time_dtype(self) -> type[np.generic]:
        """Of the network's time input."""
        return np.float32 if self.tells_levels else np.int64


@dataclasses.dataclass(eq=False)
class Chain:
    """A request as the scheduler has it.

    Attributes:
        drawing: what the caller holds.
        batch: of one image; its noise and conditions.
        plan: what to do.
        kind: whom it can share steps with.
        deadline: by `time.monotonic`, or None.
        preview: called with (steps done, x0 ``(C, H, W)``), or None.
        every: steps between two previews.
        base: the row of its lane's arena where its plan begins, while it has a slot.
        has_begun: whether it has been in a step, so that it has a state.
    """

    drawing: Drawing
    batch: Batch
    plan: Plan
    kind: Kind
    deadline: float | None = None
    preview: Preview | None = None
    every: int = 1
    base: int = 0
    has_begun: bool = False

    def has_ended(self) -> bool:
        """Whether there is nothing left to do: cancelled, failed, or too late, which it is told."""
        if self.deadline is not None and time.monotonic() > self.deadline and not self.drawing.done():
            done, steps = self.drawing.done_steps, self.drawing.steps
            self.drawing.fail(DeadlinePassed(f"deadline: {done} of {steps} steps had run when it passed"))
        return self.drawing.done()

    @property
    def slots(self) -> int:
        """Slots that it takes: with guidance a second, for the network without its condition."""
        return 1 if self.batch.guidance is None else 2

    @property
    def left(self) -> int:
        """Steps that are left."""
        return self.drawing.steps - self.drawing.done_steps

    @property
    def work(self) -> int:
        """Image-steps that are left: those of the network without its condition count too."""
        return self.left * self.slots

    def next_stop(self) -> int:
        """Steps until it ends or is to be shown."""
        if self.preview is None:
            return self.left
        return min(self.left, self.every - self.drawing.done_steps % self.every)
