"""One batch walked through a plan: the buffers loaded, then the rows run, segment by segment."""

from __future__ import annotations

import bisect
import dataclasses
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastddpm.copies import Copies
from fastddpm.engine import Loop, Loops, StepCase, executors
from fastddpm.forks import ForkLock
from fastddpm.network import Model, in_eval_mode
from fastddpm.plans import Plan
from fastddpm.precision import Precision, computing_in
from fastddpm.randomness import TorchNoise, ring_length
from fastddpm.request import Batch

# Steps between two looks at the host (progress) when steps are graph replays.
GRAPH_SEGMENT = 64
# The same where torch draws the noise: the card works on so many steps while the host draws the next.
NOISE_SEGMENT = 8


@dataclasses.dataclass(frozen=True)
class Walker:
    """Runs batches of one model through plans.

    Attributes:
        loops: where loops are kept.
        model: the network; in eval mode while a batch runs.
        device: where it runs.
        dtype: what the model takes x in.
        capacity: rows that the loops' tables have room for at least.
        copies: weights of the model that are copies of others, brought up to date before each batch.
        precision: what float32 is computed in (`fastddpm.precision`); None for what torch is set to.
    """

    loops: Loops
    model: Model
    device: torch.device
    dtype: torch.dtype
    capacity: int
    copies: Copies | None = None
    precision: Precision | None = None

    def walk(
        self,
        batch: Batch,
        plan: Plan,
        *,
        row: int = 0,
        x: Tensor | None = None,
        every_step: bool = False,
        stops: Collection[int] = (),
        keep_x0: bool = False,
        self_condition: bool = False,
    ) -> Iterator[tuple[int, Loop]]:
        """Runs a batch from a plan row to the end; yields (rows done, loop), at the start and after each
        segment.

        Args:
            batch: noise, conditioning, and the state to start from.
            plan: what to do.
            row: where to start.
            x: another state to start from.
            every_step: a segment is one step, so that the caller sees each.
            stops: rows at which a segment ends at the latest, so that the caller sees the state there.
            keep_x0: keep each step's predicted clean image in the loop's buffers.
            self_condition: give the model the last one, as ``x_self_cond``.
        """
        in_python = not executors.is_captured(self.loops.engine, self.device)
        ring_steps = 1 if in_python else NOISE_SEGMENT
        case = step_case(batch, plan, ring_steps=ring_steps, keep_x0=keep_x0, self_condition=self_condition)
        inventories = self.loops.inventories(self.model)
        with in_eval_mode(self.model, inventories):
            with computing_in(self.precision, self.device):
                loop = self.loops.get(
                    self.model,
                    case,
                    device=self.device,
                    dtype=self.dtype,
                    n_steps=min(len(plan), case.ring or len(plan)),
                    capacity=max(len(plan), self.capacity),
                    time_dtype=torch.int64 if plan.model_time.dtype.kind == "i" else torch.float32,
                    cond=batch.cond,
                    condition=batch.condition,
                    inventories=inventories,
                )
                loop.load(plan, batch, batch.start() if x is None else x, row, self.copies)
            # Whole graphs: a segment that is no multiple of one would end in single steps.
            graph = loop.steps_per_graph
            segment = 1 if every_step or in_python else max(1, GRAPH_SEGMENT // graph) * graph
            ends = sorted({*stops, len(plan)})
            yield row, loop
            while row < len(plan):
                stop = min(row + segment, ends[bisect.bisect_right(ends, row)])
                if isinstance(batch.source, TorchNoise) and loop.buffers.noise is not None:
                    stop = min(stop, (row // case.ring + 1) * case.ring)
                    with loop.current():
                        batch.source.fill(loop.buffers.noise, plan, row, stop)
                with computing_in(self.precision, self.device):
                    loop.run(stop - row)
                row = stop
                yield row, loop


class Turn:
    """Lets one chain at a time use a sampler's buffers: other threads wait, a callback may not start one.

    On a card the work of a chain goes on after its turn: that of the next waits for it there, if it is in
    another stream.

    Args:
        device: where chains run; None where that is of no matter.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._lock = ForkLock()
        self._device = device if device is not None and device.type == "cuda" else None
        self._last: torch.cuda.Event | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for the turn and holds it.

        Raises:
            RuntimeError: this thread holds it already.
        """
        if self._lock.owner == threading.get_ident():
            raise RuntimeError("this sampler is in the middle of a chain; use another Sampler in a callback")
        with self._lock:
            try:
                self._follow_the_last()
                yield
            finally:
                self._leave_a_mark()

    def _follow_the_last(self) -> None:
        """The current stream waits for the work of the last turn."""
        if self._last is not None:
            torch.cuda.current_stream(self._device).wait_event(self._last)

    def _leave_a_mark(self) -> None:
        """Notes where the work of this turn ends in the stream that it was put into."""
        if self._device is not None:
            if self._last is None:
                self._last = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._last.record(torch.cuda.current_stream(self._device))


@contextmanager
def without_grad() -> Iterator[None]:
    """No gradients, and no inference mode either: a tensor made there could not be a buffer later."""
    if not torch.is_inference_mode_enabled():
        with torch.no_grad():
            yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def step_case(
    batch: Batch, plan: Plan, *, ring_steps: int, keep_x0: bool, self_condition: bool = False
) -> StepCase:
    """What is fixed in every step of this batch under this plan."""
    is_torch = isinstance(batch.source, TorchNoise)
    # A sequential generator also draws where the noise is then multiplied by 0.
    is_noisy = bool(plan.draws is not None and plan.draws.any()) if is_torch else plan.stochastic
    return StepCase(
        shape=batch.shape,
        noise=batch.source.kind if is_noisy else "none",
        ring=ring_length(batch.shape, ring_steps) if is_torch and is_noisy else 0,
        guided=batch.guidance is not None,
        clip=plan.clip,
        multistep=plan.multistep,
        keep_x0=keep_x0,
        self_condition=self_condition,
        thresholding=plan.thresholding,
        learned_range=plan.learned_range and plan.stochastic,
        divide=plan.divides,
        rederive=plan.rederives,
    )
