"""A scheduler of requests on one sampler: chains that join a batch on its way, and leave it when they end.

A sampler is a table and noise depends on the seed alone, so samples of one batch may be at any step of any
method. A step is run for all that share it (`fastddpm.serving.lane`); between two steps requests are
admitted, and finished images handed out.
"""

from __future__ import annotations

import bisect
import threading
import time
from contextlib import ExitStack

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_number, seed_list, whole
from fastddpm.conditions import Conditions, Labels
from fastddpm.engine import Loop, executors
from fastddpm.engine.ahead import rows_at_once
from fastddpm.finite import check_finite
from fastddpm.network import in_eval_mode, without_grad
from fastddpm.plans.method_options import MethodName
from fastddpm.request import make_batches
from fastddpm.runner import Runner
from fastddpm.sampler import Sampler
from fastddpm.serving.drawing import Chain, Drawing, Kind, Preview
from fastddpm.serving.errors import Busy, Closed
from fastddpm.serving.lane import Lane, MakeLoop, buckets
from fastddpm.serving.plans import RequestPlans
from fastddpm.serving.stats import Stats
from fastddpm.signatures import checked
from fastddpm.turn import computing_in

PRIORITIES = 10
HEAD_START = 100
"""Steps by which a request comes before those of one priority less: whoever waits longer is not overtaken."""
CAPTURED_STRIDE = 8
"""Steps that a captured engine runs between two looks at who waits."""


class Scheduler:
    """Draws images for requests as they come, each the one that it would be alone.

    One thread runs the steps; any may submit. Weights that change meanwhile are seen when the scheduler has
    been without work. Used as ``with``, it is closed at the end.

    Args:
        sampler: its model, schedule, engine and precision are used, its method where a request says nothing.
        max_batch: images that share a step at most; the network runs twice for those with guidance.
        max_waiting: requests that wait at most; `submit` raises `Busy` beyond.
        max_lanes: kinds of requests that run side by side (`fastddpm.serving.drawing.Kind`); others wait.
        rows: of a lane's table, shared by the plans of its requests; None for twice the schedule's steps.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """

    @checked
    def __init__(
        self,
        sampler: Sampler,
        *,
        max_batch: int = 16,
        max_waiting: int = 256,
        max_lanes: int = 4,
        rows: int | None = None,
    ) -> None:
        if sampler.precision == "int8":  # quantised by a chain of one plan; here they share their steps
            raise BadArgument("sampler", "one of precision 'int8'", "another precision")
        self._most = whole("max_batch", max_batch, least=1)
        self._max_waiting = whole("max_waiting", max_waiting, least=1)
        self._max_lanes = whole("max_lanes", max_lanes, least=1)
        longest = len(sampler.schedule)
        self._rows = 1 + (2 * longest if rows is None else whole("rows", rows, least=1))
        self.sampler = sampler.replace()  # of its own, so that the caller's is free meanwhile
        self.sampler.runner.loops.limit = 2 * self._max_lanes * len(buckets(self._most))
        self._plans = RequestPlans(self.sampler, self._rows - 1)
        self._lanes: dict[Kind, Lane] = {}
        self._waiting: list[Chain] = []
        self._clock = 0  # steps run, of whatever lane
        self._seconds = 0.0  # that a step took, averaged
        self._spent = 0.0  # on all steps
        self._submitted = 0
        self._is_closed = False
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None  # from the first request on

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @checked
    def submit(
        self,
        seed: int,
        *,
        class_label: Labels | None = None,
        method: MethodName | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        guidance_scale: float = 1.0,
        condition: Tensor | None = None,
        cond: Conditions | None = None,
        uncond: Conditions | None = None,
        priority: int = 0,
        deadline: float | None = None,
        preview: Preview | None = None,
        preview_every: int = 10,
    ) -> Drawing:
        """Asks for one image.

        Args:
            seed: an integer in [0, 2**63); the image depends on it and on the request's own options.
            class_label: as ``class_labels`` of `Sampler.sample`, for one image.
            method: of the chain; None for the sampler's.
            num_inference_steps: likewise.
            eta: likewise; another method than the sampler's begins at 0.
            guidance_scale: as of `Sampler.sample`, as are the next three, with a batch of 1.
            condition: ``(1, Cc, H, W)``.
            cond: tensors ``(1, ...)`` by name.
            uncond: likewise.
            priority: 0 to 9; each comes before requests of one less that have waited for less than 100 steps
                more.
            deadline: seconds from now after which the image is of no use; the drawing then fails with
                `DeadlinePassed`.
            preview: called by the scheduler's thread with (steps done, predicted x0 ``(C, H, W)``).
            preview_every: steps between two previews.

        Returns:
            A `Drawing`, a `concurrent.futures.Future` of the image, float32 ``(C, H, W)``. It fails with
            `NonFiniteSamples` where the image holds NaN, and with the model's own error where it raised one
            in a step that the image was in.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
            Busy: too many requests wait; ``retry_after`` says for how long about.
            Closed: after `close`.
        """
        [number] = seed_list([seed], "seed")
        priority = whole("priority", priority, least=0, most=PRIORITIES - 1)
        every = whole("preview_every", preview_every, least=1)
        until = None if deadline is None else time.monotonic() + check_number("deadline", deadline, above=0)
        plan = self._plans.get(method, num_inference_steps, eta)
        [batch] = make_batches(
            self.sampler.facts,
            seeds=[number],
            class_labels=class_label,
            guidance_scale=guidance_scale,
            condition=condition,
            cond=cond,
            uncond=uncond,
        )
        chain = Chain(
            Drawing(number, len(plan)),
            batch,
            plan,
            Kind.of(batch, plan, keep_x0=preview is not None),
            turn=0,
            deadline=until,
            preview=preview,
            every=every,
        )
        with self._news:
            if self._is_closed:
                raise Closed("the scheduler was closed; another one is accepted")
            if len(self._waiting) >= self._max_waiting:
                raise Busy(len(self._waiting), self._retry_after())
            chain.turn = self._clock - HEAD_START * priority
            bisect.insort(self._waiting, chain, key=lambda one: one.turn)
            self._submitted += 1
            self._news.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="fastddpm-scheduler", daemon=True)
                self._thread.start()
        return chain.drawing

    def close(self, *, cancel: bool = False) -> None:
        """Takes no more requests, and waits for those that there are; with ``cancel`` these are cancelled."""
        with self._news:
            self._is_closed = True
            if cancel:
                for chain in [*self._waiting, *self._running()]:
                    chain.drawing.cancel()
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join()
        self.sampler.clear()

    def stats(self) -> Stats:
        """How much there is to do, and what was done."""
        with self._news:
            return {
                "waiting": len(self._waiting),
                "running": len(self._running()),
                "slots": sum(lane.slots for lane in self._lanes.values()),
                "filled": sum(lane.filled for lane in self._lanes.values()),
                "submitted": self._submitted,
                "steps": self._clock,
                "seconds": self._spent,
            }

    def _running(self) -> list[Chain]:
        return [chain for lane in self._lanes.values() for chain in lane.chains]

    def _retry_after(self) -> float:
        """Seconds until the steps that are left have freed a place, about."""
        left = sum(chain.left for chain in [*self._waiting, *self._running()])
        return max(0.1, self._seconds * left / (self._most * max(1, len(self._waiting))))

    # ------------------------------------------------------------------ the scheduler's thread

    def _serve(self) -> None:
        while True:
            with self._news:
                while not self._waiting and not self._is_closed:
                    self._news.wait()
                if not self._waiting:
                    return
            try:
                self._work()
            except BaseException as error:  # nobody else would hear of it
                with self._news:
                    left, self._waiting, self._lanes = [*self._waiting, *self._running()], [], {}
                for chain in left:
                    chain.drawing.fail(error)

    def _work(self) -> None:
        """Runs steps until nobody wants any."""
        with ExitStack() as stack:
            stack.enter_context(without_grad())
            runner = stack.enter_context(self.sampler.running())
            inventories = runner.loops.inventories(runner.model)
            stack.enter_context(in_eval_mode(runner.model, inventories))
            while self._admit(runner):
                for kind, lane in list(self._lanes.items()):
                    self._step(runner, lane)
                    if not lane.chains:
                        with self._news:
                            del self._lanes[kind]

    def _admit(self, runner: Runner) -> bool:
        """Lets in whoever there is room for; whether anybody runs.

        In their order, so that a kind of requests that must wait for a lane, or a plan that must wait for
        room, is not overtaken for ever.
        """
        with self._news:
            for lane in self._lanes.values():
                for chain in lane.chains:
                    if chain.has_ended():
                        lane.leave(chain)
            still, full, is_held = [], set(), False
            for chain in self._waiting:
                if chain.has_ended():
                    continue
                is_held = is_held or not self._has_lane(chain.kind, runner)
                if is_held or chain.kind in full or not self._lanes[chain.kind].enter(chain):
                    full.add(chain.kind)
                    still.append(chain)
            self._waiting = still
            self._lanes = {kind: lane for kind, lane in self._lanes.items() if lane.chains}
            return bool(self._lanes)

    def _has_lane(self, kind: Kind, runner: Runner) -> bool:
        """Whether there is a lane for a kind, which is made where there may be one more."""
        if kind not in self._lanes and len(self._lanes) < self._max_lanes:
            self._lanes[kind] = Lane(kind, self._most, self._rows, self._maker(runner), runner.copies)
        return kind in self._lanes

    def _step(self, runner: Runner, lane: Lane) -> None:
        """Runs a few steps of a lane, and hands out what has come of them."""
        captured = executors.is_captured(runner.engine, runner.device)
        stride, began = lane.stride(CAPTURED_STRIDE if captured else 1), time.perf_counter()
        try:
            with computing_in(runner.precision, runner.device):
                lane.run(stride)
        except Exception as error:  # the model's own
            with self._news:
                for chain in lane.chains:
                    chain.drawing.fail(error)
                    lane.leave(chain)
            return
        took = (time.perf_counter() - began) / stride
        self._clock += stride
        self._spent += took * stride
        self._seconds = took if not self._seconds else 0.9 * self._seconds + 0.1 * took
        for chain in lane.chains:
            if chain.preview is not None and chain.drawing.done_steps % chain.every == 0:
                self._show(lane, chain)
            if not chain.left:
                self._hand_out(lane, chain)

    def _show(self, lane: Lane, chain: Chain) -> None:
        assert chain.preview is not None
        try:
            chain.preview(chain.drawing.done_steps, lane.x0(chain)[0])
        except Exception as error:  # the caller's own
            chain.drawing.fail(error)

    def _hand_out(self, lane: Lane, chain: Chain) -> None:
        image = lane.image(chain)
        with self._news:
            lane.leave(chain)
        try:
            check_finite(image, [chain.drawing.seed])
        except FloatingPointError as error:
            chain.drawing.fail(error)
        else:
            chain.drawing.finish(image[0])

    def _maker(self, runner: Runner) -> MakeLoop:
        """What makes a lane's loops."""

        def make(kind: Kind, slots: int, example: Chain, mixed: bool) -> Loop:
            shape = (slots, *kind.shape)
            ring = rows_at_once(shape) if executors.is_uncompiled(runner.engine, runner.device) else 0
            return runner.loops.get(
                runner.model,
                kind.case(slots, ring, mixed=mixed),
                device=runner.device,
                dtype=runner.dtype,
                n_steps=CAPTURED_STRIDE,
                capacity=self._rows,
                time_dtype=torch.float32 if kind.tells_levels else torch.int64,
                cond={name: _widened(value, slots) for name, value in example.batch.cond.items()},
                condition=None if kind.condition is None else _widened(example.batch.condition, slots),
            )

        return make


def _widened(value: Tensor | None, slots: int) -> Tensor:
    """A tensor of the shape that so many slots are given, of which one is given this."""
    assert value is not None
    return value[:1].expand(slots, *value.shape[1:])
