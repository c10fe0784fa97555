"""A loop: one network, one set of static buffers, one executor, for any number of chains of one kind."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastddpm.engine.ahead import DrawnAhead
from fastddpm.engine.executors import (
    Engine,
    ExecutorOptions,
    compile_network,
    is_compiled_whole,
    make_executor,
)
from fastddpm.engine.first_call import FirstCall
from fastddpm.engine.heap import keep_heap
from fastddpm.engine.int8 import QuantisedSession, States
from fastddpm.engine.parcel import Parcel
from fastddpm.engine.step import StepBuffers, StepCase, step
from fastddpm.network import Network
from fastddpm.plans import Plan
from fastddpm.randomness import TorchNoise
from fastddpm.transfer import to_device
from fastddpm_kernels import normal

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastddpm.batch import Batch
    from fastddpm.copies import Copies


class Loop:
    """Static buffers, the network on them, and the executor that advances them.

    Args:
        network: the model with its conditioning buffers.
        case: what is fixed in a step.
        capacity: plan rows the table holds; more than any plan by the graph's warm-up steps.
        engine: resolved engine name.
        in_integers: of `onnxruntime`: the network is quantised; `calibrate_by` says by which chain.
        options: of :func:`make_executor`.
    """

    def __init__(
        self,
        network: Network,
        case: StepCase,
        capacity: int,
        engine: Engine,
        *,
        in_integers: bool = False,
        **options: Unpack[ExecutorOptions],
    ) -> None:
        self.network, self.case = network, case
        self.steps_per_graph = options["steps_per_graph"]
        device = network.time.device
        if device.type == "cpu":
            keep_heap()
        self.buffers = StepBuffers(case, capacity, device)
        # x_T is drawn from the seeds also where the steps draw nothing.
        drawn = self.buffers.noise if case.noise == "philox" else None
        self._ahead: DrawnAhead | None = None
        if drawn is not None and not case.ring:
            self.seeds = drawn
        else:
            self.seeds = torch.zeros(case.shape[0], dtype=torch.int64, device=device)
        if drawn is not None and case.ring:
            self._ahead = DrawnAhead(self.seeds, drawn)
        small = {"counter": self.buffers.counter, "seeds": self.seeds, **self.buffers.of_samples()}
        self._parcel = Parcel({**small, **{f"cond {k}": v for k, v in network.given.items()}}, device)
        self._plan: Plan | None = None
        changed = [self.buffers.x, self.buffers.counter]
        if case.self_condition and self.buffers.x0 is not None:
            network.cond["x_self_cond"] = self.buffers.x0
        changed += [kept for kept in (self.buffers.x0, self.buffers.kept) if kept is not None]
        self._session = compile_network(engine, network, device, in_integers=in_integers)
        self._first = FirstCall(network, self.buffers.x, case.shape[1])
        # What is compiled with the step around it is looked at in a call before the first.
        self._looks_ahead = is_compiled_whole(engine, device)
        predict = network if self._looks_ahead else self._first
        one_step = functools.partial(step, predict, self.buffers, case, self._ahead)
        self.device = device
        with self.current():
            self._executor = make_executor(engine, one_step, changed, **options)

    def calibrate_by(self, states: States) -> None:
        """Says which states a network in integers sees when it is quantised; before `load`."""
        if isinstance(self._session, QuantisedSession):
            self._session.calibrate_by(states)

    def load(self, plan: Plan, batch: Batch, row: int, copies: Copies | None = None) -> None:
        """Puts one chain into the buffers: the state at plan row ``row``, and all that goes with it.

        The host sends what is small in one copy and waits for nothing. What follows from that and the weights
        is derived by operators of the device, anew for each chain; a captured loop replays them as one graph.

        Args:
            plan: its rows go into the buffers if they are not there from the last chain.
            batch: the state, or the noise that it is, guidance and conditioning.
            row: where the chain begins.
            copies: weights of the model that are copies of others.
        """
        self._first.expect(plan.learned_range)
        x, source = batch.x, batch.source
        if x is None and isinstance(source, TorchNoise):
            x = source.initial(batch.shape)
        values = {"counter": torch.tensor([row, 0] * self.case.shape[0])}  # flat, as it travels
        values |= {f"cond {name}": value for name, value in batch.cond.items()}
        for name, value in (("seeds", source.host), ("guidance", batch.guidance)):
            if value is not None:
                values[name] = value
        with self.current():
            if plan is not self._plan:  # plans are read-only: one that is there is as it was
                self._hold(torch.tensor(plan.table), torch.tensor(plan.model_time))
                self._plan = plan
            if x is not None:
                self.buffers.x.copy_(x)
            if batch.condition is not None and self.network.condition is not None:
                self.network.condition.copy_(batch.condition)
            given = ((self.buffers.known, batch.known), (self.buffers.known_mask, batch.known_mask))
            for buffer, value in given:
                if buffer is not None and value is not None:
                    buffer.copy_(value)
            self._parcel.send(values)
            begin = functools.partial(self._begin, len(plan), x is None, copies)
            self._executor.prepare((len(plan), x is None, copies and copies.places), begin)

    def _hold(self, table: Tensor, time: Tensor) -> None:
        """Rows of the host in the buffers, from the first on."""
        for buffer, values in ((self.buffers.table, table), (self.network.time, time)):
            buffer[: len(values)].copy_(to_device(values, self.device))

    def hold_arena(
        self, table: Tensor, time: Tensor, *, learned_range: bool = False, copies: Copies | None = None
    ) -> None:
        """Puts rows of several plans into the buffers, and derives what follows from them and the weights.

        Args:
            table: float32 ``(S, 32)``, from the first row on.
            time: ``(S,)``, the network's time input.
            learned_range: whether the plans have a use for 2C channels.
            copies: as of `load`.
        """
        self._first.expect(learned_range)
        with self.current():
            self._hold(table, time)
            if copies is not None:
                copies.refresh()
            self.network.begin(len(table))
            if self._session is not None:
                self._session.refresh()

    def admit(
        self,
        values: Mapping[str, Tensor],
        places: Sequence[int],
        condition: Tensor | None = None,
        *,
        anew: Sequence[int] = (),
    ) -> None:
        """Lets chains begin in some samples of an arena, from the noise of their seeds, and others end.

        Args:
            values: of all samples, by the names of the parcel: ``counter``, ``base``, ``advance``, ``seeds``,
                where some are guided ``source``, ``halves`` and ``guidance``, and ``cond`` with a name.
            places: the samples that begin.
            condition: images of all samples, ``(B or 2B, Cc, H, W)``.
            anew: samples of other loops, whose state the caller puts here.
        """
        with self.current():
            self._parcel.send(values)
            self._parcel.unpack()
            if condition is not None and self.network.condition is not None:
                self.network.condition.copy_(condition)
            self.network.begin_conditions()
            if self._ahead is not None:
                self._ahead.forget([*places, *anew])
            if not places:
                return
            begun = to_device(torch.tensor(places), self.device)
            drawn = normal(self.seeds.index_select(0, begun), 0, self.case.shape[1:])
            self.buffers.x.index_copy_(0, begun, drawn)
            if self.buffers.x0 is not None:
                self.buffers.x0.index_fill_(0, begun, 0.0)
            if self.buffers.kept is not None:
                self.buffers.kept.index_fill_(1, begun, 0.0)

    def _begin(self, rows: int, draws: bool, copies: Copies | None) -> None:
        """What a chain of so many rows needs, from the parcel and the weights."""
        if copies is not None:
            copies.refresh()
        self._parcel.unpack()
        if self._ahead is not None:
            self._ahead.forget()
        if draws:
            self.buffers.x.copy_(normal(self.seeds, 0, self.case.shape[1:]))
        if self.case.known:
            self.buffers.put_known()
        for kept in (self.buffers.x0, self.buffers.kept):
            if kept is not None:
                kept.zero_()
        self.network.begin(rows)
        if self._session is not None:
            self._session.refresh()

    def run(self, n_steps: int) -> None:
        """Advances the chain by ``n_steps`` plan rows.

        Raises:
            ValueError: the first call of the model shows that it cannot be used so; see `FirstCall`.
        """
        with self.current():
            if self._looks_ahead:
                with torch.random.fork_rng(devices=[]):
                    self._first(self.buffers.x, self.buffers.counter[:, 0])
                self._looks_ahead = False
            self._executor.run(n_steps)

    def finish(self) -> None:
        """Waits for the card: whatever stream the last chain ran in, the buffers are no longer in use."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def current(self) -> AbstractContextManager[object]:
        """Makes the loop's device the current one: Triton launches there, wherever its tensors are."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def memory(self) -> int:
        """Bytes in the loop's buffers and in the memory pool of its graphs."""
        tensors = [*self.buffers.tensors(), *self.network.tensors(), *self._parcel.tensors()]
        held = 0 if self._session is None else self._session.memory()
        return held + self._executor.memory() + sum(t.numel() * t.element_size() for t in tensors)
