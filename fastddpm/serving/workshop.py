"""Where chains are drawn: one thread, which runs a step after the other for those who are first in line."""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection
from contextlib import ExitStack

from fastddpm.engine import executors
from fastddpm.finite import check_finite
from fastddpm.network import in_eval_mode, without_grad
from fastddpm.runner import Runner
from fastddpm.sampler import Sampler
from fastddpm.serving.drawing import Chain, Drawing, Kind
from fastddpm.serving.errors import Busy, Closed
from fastddpm.serving.lane import Lane
from fastddpm.serving.lanes import CAPTURED_STRIDE, Lanes
from fastddpm.serving.line import Line, Order
from fastddpm.serving.stats import Stats
from fastddpm.serving.stopwatch import Stopwatch
from fastddpm.turn import computing_in


class Workshop:
    """Draws chains as they come.

    Args:
        sampler: its own, which nobody else uses.
        most: images that share a step at most.
        max_waiting: those beyond that are accepted.
        lanes: none with anybody in it.
        order: of the line.
    """

    def __init__(self, sampler: Sampler, most: int, max_waiting: int, lanes: Lanes, order: Order) -> None:
        self._sampler, self._most, self._max_waiting = sampler, most, max_waiting
        self._lanes, self._order = lanes, order
        self._line: Line[Chain] = Line(order)
        self._chains: dict[Drawing, Chain] = {}
        self._now: tuple[list[Chain], int] = [], 0  # in the step that runs, and its slots
        self._steps = 0  # run, of whatever lane
        self._seconds = 0.0  # that an image-step took, averaged
        self._spent = 0.0  # on all steps
        self._watch = Stopwatch(sampler.device)
        self._submitted = 0
        self._is_closed = False
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None  # from the first request on

    def join(self, chain: Chain, priority: int, beside: Drawing | None) -> None:
        """Takes a chain in.

        Raises:
            Busy: as many are here as may be.
            Closed: after `close`.
        """
        with self._news:
            if self._is_closed:
                raise Closed("the scheduler was closed; another one is accepted")
            if len(self._line) >= self._most + self._max_waiting:
                raise Busy(len(self._line) - self._most, self._retry_after())
            self._line.join(chain, priority, None if beside is None else self._chains.get(beside))
            self._chains[chain.drawing] = chain
            self._submitted += 1
            self._news.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="fastddpm-scheduler", daemon=True)
                self._thread.start()

    def close(self, *, cancel: bool) -> None:
        """Takes no more chains, and waits for those that there are; with ``cancel`` these are cancelled."""
        with self._news:
            self._is_closed = True
            given_up = list(self._chains) if cancel else []
            self._news.notify_all()
        for drawing in given_up:  # whose callbacks may be anybody's, and ask for what this lock is for
            drawing.cancel()
        if self._thread is not None:
            self._thread.join()
        self._sampler.clear()

    def stats(self) -> Stats:
        """How much there is to do, and what was done."""
        with self._news:
            running, slots = self._now
            running = [chain for chain in running if chain.drawing in self._chains]
            begun = sum(chain.has_begun for chain in self._chains.values())
            return {
                "waiting": len(self._chains) - begun,
                "running": len(running),
                "parked": begun - len(running),
                "slots": slots,
                "filled": sum(chain.slots for chain in running),
                "submitted": self._submitted,
                "steps": self._steps,
                "seconds": self._spent,
            }

    def _retry_after(self) -> float:
        """Seconds until a place is free, about, as if all images had equally much left."""
        left = sum(chain.work for chain in self._chains.values())
        return max(0.1, self._seconds * left / len(self._chains))

    # ------------------------------------------------------------------ the scheduler's thread

    def _serve(self) -> None:
        while True:
            with self._news:
                while not self._line and not self._is_closed:
                    self._news.wait()
                if not self._line:
                    return
            try:
                self._work()
            except BaseException as error:  # nobody else would hear of it
                with self._news:
                    lost, self._chains, self._line = self._chains, {}, Line(self._order)
                    self._lanes.clear()
                    self._now = [], 0
                for drawing in lost:
                    drawing.fail(error)

    def _work(self) -> None:
        """Runs steps until nobody wants any."""
        with ExitStack() as stack:
            stack.enter_context(without_grad())
            runner = stack.enter_context(self._sampler.running())
            inventories = runner.loops.inventories(runner.model)
            stack.enter_context(in_eval_mode(runner.model, inventories))
            while (chosen := self._next(runner)) is not None:
                self._step(runner, *chosen)
            self._watch.finish()

    def _next(self, runner: Runner) -> tuple[Lane, list[Chain], int] | None:
        """The lane whose step is next, the chains in it and the batch size; None if nobody is here."""
        with self._news:
            here = list(self._chains.values())
        ended = [chain for chain in here if chain.has_ended()]  # and is told so, without the lock
        with self._news:
            for chain in ended:
                self._end(chain)
            if not self._line:
                self._now = [], 0
                self._lanes.clear()  # with the states that were set aside
                return None
            lane, chains, size = self._lanes.choose(self._line.in_order(), runner)
        return lane, chains, size

    def _step(self, runner: Runner, lane: Lane, chains: list[Chain], size: int) -> None:
        """Runs a few steps of chains in a lane, and hands out what has come of them."""
        captured = executors.is_captured(runner.engine, runner.device)
        try:
            with computing_in(runner.precision, runner.device):
                lane.arrange(chains, size)
        except Exception as error:
            self._lanes.remove(lane)
            with self._news:  # others may join meanwhile
                here = list(self._chains.values())
            lost = [one for one in here if one in chains or (one.kind == lane.kind and one.has_begun)]
            self._fail(lost, error)
            return
        with self._news:
            self._now = lane.chains, size
        stride, is_new = lane.stride(CAPTURED_STRIDE if captured else 1), lane.is_new
        drawn = sum(chain.slots for chain in lane.chains)
        note = functools.partial(self._note, lane.kind, lane.slots, stride, drawn, is_new=is_new)
        try:
            with computing_in(runner.precision, runner.device):
                self._watch.time(functools.partial(lane.run, stride), note)
        except Exception as error:  # the model's own
            self._fail(lane.chains, error)
            return
        with self._news:
            self._steps += stride
            self._line.drawn += stride * drawn
        for chain in lane.chains:
            if chain.preview is not None and chain.drawing.done_steps % chain.every == 0:
                self._show(lane, chain)
            if not chain.left:
                self._hand_out(lane, chain)

    def _note(self, kind: Kind, slots: int, stride: int, drawn: int, seconds: float, *, is_new: bool) -> None:
        """Notes what some steps took; those of a new loop prepared the network too."""
        with self._news:
            self._spent += seconds
        if not is_new:
            self._lanes.note(kind, slots, seconds / stride)
        took = seconds / (stride * drawn)
        self._seconds = took if not self._seconds else 0.9 * self._seconds + 0.1 * took

    def _fail(self, chains: Collection[Chain], error: Exception) -> None:
        """Lets chains go that have come to nothing."""
        with self._news:
            for chain in chains:
                self._end(chain)
        for chain in chains:
            chain.drawing.fail(error)

    def _end(self, chain: Chain) -> None:
        """Lets a chain go, wherever it is."""
        del self._chains[chain.drawing]
        self._line.leave(chain)
        self._lanes.leave(chain)

    def _show(self, lane: Lane, chain: Chain) -> None:
        assert chain.preview is not None
        try:
            chain.preview(chain.drawing.done_steps, lane.x0(chain)[0])
        except Exception as error:  # the caller's own
            chain.drawing.fail(error)

    def _hand_out(self, lane: Lane, chain: Chain) -> None:
        image = lane.image(chain)
        with self._news:
            self._end(chain)
        try:
            check_finite(image, [chain.drawing.seed])
        except Exception as error:  # not finite; or a card's own, which is seen where it is waited for
            chain.drawing.fail(error)
        else:
            chain.drawing.finish(image[0])
