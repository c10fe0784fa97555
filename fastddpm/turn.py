"""Whose turn it is: one chain at a time on one set of buffers, and loops of one precision at a time in a
process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fastddpm.forks import ForkLock
from fastddpm.precision import set_for


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
                # The current stream waits for the work of the last turn.
                if self._last is not None:
                    torch.cuda.current_stream(self._device).wait_event(self._last)
                yield
            finally:
                # And notes where that of this one ends.
                if self._device is not None:
                    if self._last is None:
                        self._last = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    self._last.record(torch.cuda.current_stream(self._device))


class Turns:
    """Lets loops with different settings take turns, since torch's are those of the process.

    Loops with the same setting run together. The first to come sets, the last to leave restores. In a child
    of a fork the other threads are gone, and what they had set is restored.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._inside = 0
        self._setting: tuple[str, str] | None = None
        self._restore: Callable[[], None] | None = None
        self._mine = threading.local()
        self._fork = ForkLock(self._forget_other_threads)  # never taken: for what it calls in a child

    @contextmanager
    def taken(self, precision: str | None, device: torch.device) -> Iterator[None]:
        """Waits until no loop with another setting runs, in the order of arrival, and sets this one.

        A network that runs a chain of its own is inside already: it sets without waiting.
        """
        setting = (precision, device.type) if precision in ("highest", "tf32") else None
        if getattr(self._mine, "taken", False):
            restore = set_for(precision, device.type)
            try:
                yield
            finally:
                restore()
            return
        with self._changed:
            if self._waiting or (self._inside and self._setting != setting):
                self._wait(setting)
            if not self._inside:
                self._setting = setting
                self._restore = None if setting is None else set_for(*setting)
            self._inside += 1
        self._mine.taken = True
        try:
            yield
        finally:
            self._mine.taken = False
            with self._changed:
                self._inside -= 1
                if not self._inside and self._restore is not None:
                    self._restore()
                self._changed.notify_all()

    def _wait(self, setting: tuple[str, str] | None) -> None:
        me = object()
        self._waiting.append(me)
        try:
            self._changed.wait_for(
                lambda: self._waiting[0] is me and (not self._inside or self._setting == setting)
            )
        finally:
            self._waiting.remove(me)
            self._changed.notify_all()

    def _forget_other_threads(self) -> None:
        self._changed, self._waiting = threading.Condition(), deque()
        if getattr(self._mine, "taken", False):
            self._inside = 1
        elif self._inside:
            self._inside = 0
            if self._restore is not None:
                self._restore()


computing_in = Turns().taken
"""``with computing_in(precision, device):`` around whatever makes or runs a loop."""
