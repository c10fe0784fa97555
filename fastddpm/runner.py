"""What runs chains: under `Sampler`, under every drop-in and under RePaint, the same.

A chain is one batch walked through a plan: its buffers are loaded, then its rows run, segment by segment. A
`Runner` lets one at a time use its loops, keeps these for the next, goes on eagerly where `auto` cannot
capture, and has the model in eval mode meanwhile.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from fastddpm.batch import Batch
from fastddpm.copies import Copies
from fastddpm.engine import Engine, Loop, Loops, StepCase, executors, resolve_engine
from fastddpm.engine.ahead import rows_at_once
from fastddpm.engine.calibration import CalibrationChain
from fastddpm.finite import warn_if_not_finite
from fastddpm.network import Model, in_eval_mode, model_device_dtype, without_grad
from fastddpm.plans import Plan
from fastddpm.precision import Precision, check_runs, described
from fastddpm.progress import progress_bar
from fastddpm.randomness import TorchNoise, ring_length
from fastddpm.turn import Turn, computing_in

# Steps between two looks at the host (progress) when steps are graph replays.
GRAPH_SEGMENT = 64
# The same where torch draws the noise: the card works on so many steps while the host draws the next.
NOISE_SEGMENT = 8


class Runner:
    """Runs chains of one model.

    Args:
        model: called as ``model(x, t, **cond)``.
        device: where chains run; None for where the model's first parameter is.
        dtype: what the model takes x in; None for its weights'.
        engine: as asked for, `auto` among them.
        precision: what float32 is computed in (`fastddpm.precision`); None for what torch is set to.
        capacity: plan rows that tables have room for at least, so that plans of several lengths share loops.
        steps_per_graph: see `fastddpm.engine.Loops`.

    Attributes:
        model: whoever owns it may put another in its place before a chain.
        copies: weights of the model that are copies of others, brought up to date before each chain.
        loops: kept for the next chain of their kind.
        turn: ``with runner.turn():`` waits until no other thread is in a chain here, and holds that; a
            RuntimeError where this thread is in one.

    Raises:
        ValueError: weights that are not of the precision.
        EngineUnavailable: an engine that this device does not have.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        engine: Engine = "auto",
        precision: Precision | None = None,
        capacity: int = 0,
        steps_per_graph: int | None = None,
    ) -> None:
        seen_device, seen_dtype = model_device_dtype(model)
        self.model = model
        self.copies: Copies | None = None
        self.device, self.dtype = device or seen_device, dtype or seen_dtype
        check_runs(precision, self.dtype, engine)
        self.precision, self.capacity, self._asked = precision, capacity, engine
        self.loops = Loops(
            resolve_engine(engine, self.device),
            may_fall_back=engine == "auto",
            steps_per_graph=steps_per_graph,
            in_integers=precision == "int8",
        )
        self.turn = Turn(self.device).taken

    @property
    def engine(self) -> Engine:
        """The engine that runs: of `auto`, eager once a capture has failed."""
        return self.loops.engine

    def segments(
        self,
        batch: Batch,
        plan: Plan,
        *,
        row: int = 0,
        stops: Collection[int] | None = (),
        keep_x0: bool = False,
        self_condition: bool = False,
    ) -> Iterator[tuple[int, Loop]]:
        """Runs a batch from a plan row to the end, in a turn; yields (rows done, loop) at the start and after
        each segment.

        Args:
            batch: noise, conditioning, and the state to start from.
            plan: what to do.
            row: where to start.
            stops: rows at which a segment ends at the latest, so that the caller sees the state there; None
                for every row.
            keep_x0: keep each step's predicted clean image in the loop's buffers.
            self_condition: give the model the last one, as ``x_self_cond``.
        """
        in_python = not executors.is_captured(self.loops.engine, self.device)
        case = self._case(batch, plan, in_python, keep_x0=keep_x0, self_condition=self_condition)
        inventories = self.loops.inventories(self.model, is_ours=self.copies is not None)
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
                    copies=self.copies,
                )
                if self.precision == "int8":
                    loop.calibrate_by(self._calibration(plan, batch, self_condition))
                loop.load(plan, batch, row, self.copies)
            # Whole graphs: a segment that is no multiple of one would end in single steps.
            graph = loop.steps_per_graph
            segment = 1 if stops is None or in_python else max(1, GRAPH_SEGMENT // graph) * graph
            ends = sorted({*(stops or ()), len(plan)})
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

    def _case(
        self, batch: Batch, plan: Plan, in_python: bool, *, keep_x0: bool, self_condition: bool
    ) -> StepCase:
        """What is fixed in every step of this batch under this plan."""
        is_torch = isinstance(batch.source, TorchNoise)
        # A sequential generator also draws where the noise is then multiplied by 0.
        is_noisy = bool(plan.draws is not None and plan.draws.any()) if is_torch else plan.stochastic
        ring = 0
        if is_noisy and is_torch:
            ring = ring_length(batch.shape, 1 if in_python else NOISE_SEGMENT)
        elif is_noisy and executors.is_uncompiled(self.loops.engine, self.device):
            ring = rows_at_once(batch.shape)
        return StepCase(
            shape=batch.shape,
            noise=batch.source.kind if is_noisy else "none",
            ring=ring,
            guided=batch.guidance is not None,
            clip=plan.clip,
            kept=plan.kept,
            combine=plan.combines,
            keep_x0=keep_x0,
            self_condition=self_condition,
            thresholding=plan.thresholding,
            learned_range=plan.learned_range and plan.stochastic,
            divide=plan.divides,
            rederive=plan.rederives,
            known=batch.known is not None,
            langevin=plan.langevin,
            in_sigmas=plan.in_sigmas,
        )

    def _calibration(self, plan: Plan, batch: Batch, self_condition: bool) -> CalibrationChain:
        """The chain whose states a network in integers is quantised by."""

        def case(batch: Batch) -> StepCase:
            return self._case(batch, plan, True, keep_x0=False, self_condition=self_condition)

        return CalibrationChain(self.model, plan, batch, case, dtype=self.dtype, copies=self.copies)

    def walk(
        self,
        plan: Plan,
        batch: Batch,
        *,
        row: int = 0,
        every_step: bool = True,
        keep_x0: bool = False,
        self_condition: bool = False,
        progress: bool | AbstractContextManager[Callable[[int], None]] = True,
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Walks a plan in a turn of its own; yields (rows done, x, x0) at the start and after each segment.

        RuntimeWarning after the last where x is not finite: libraries return such images.

        x ``(B, ...)`` float32 is the live state and x0 the live prediction (None unless kept): clone what
        is to be kept. The last x is a tensor of its own: the next chain, of another thread perhaps, may begin
        before the caller has read it. Gradients are off inside a step and as the caller has them between two.

        Args:
            plan: what to do.
            batch: on what.
            row: where to start.
            every_step: yield after every step.
            keep_x0: as of `segments`.
            self_condition: likewise.
            progress: show a progress bar; or one of the caller's, which yields what advances it.
        """
        stops = None if every_step else ()
        bar = progress_bar(progress, len(plan) - row) if isinstance(progress, bool) else progress
        with self.turn(), bar as advance:
            done, x = row, None
            segments = self.segments(
                batch, plan, row=row, stops=stops, keep_x0=keep_x0, self_condition=self_condition
            )
            while True:
                with without_grad():
                    item = next(segments, None)
                if item is None:
                    break
                advance(item[0] - done)
                done, x, x0 = item[0], item[1].buffers.x, item[1].buffers.x0
                if done == len(plan):
                    x = x.clone()
                yield done, x, x0
            if x is not None:
                warn_if_not_finite(x, batch.source.host)

    def run(
        self,
        plan: Plan,
        batch: Batch,
        *,
        row: int = 0,
        self_condition: bool = False,
        progress: bool = True,
    ) -> Tensor:
        """Walks a plan to its end: float32 ``(B, ...)``, a tensor of its own."""
        states = self.walk(
            plan, batch, row=row, every_step=False, self_condition=self_condition, progress=progress
        )
        *_, (_, x, _) = states
        return x

    def engine_in_words(self) -> str:
        """The engine that runs, and what another would give where nobody chose this one."""
        if self._asked == "auto" and self.engine == "cudagraph":
            return (
                "cudagraph, chosen by auto; engine='compile' has fewer launches and passes a step, "
                "and compiles before its first"
            )
        if self._asked == "auto" and self.device.type == "cpu" and self.dtype == torch.float32:
            return (
                "eager, chosen by auto; engine='onnxruntime' has ONNX Runtime run the network, "
                "which it takes seconds to prepare (pip install 'fastddpm[onnx]')"
            )
        return self.engine

    def computes_in(self, dtype: torch.dtype | None = None) -> str:
        """What the network computes in, in words; ``dtype`` where autocast makes it another than x's."""
        return described(self.precision, dtype or self.dtype, self.device)
