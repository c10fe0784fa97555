"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 while training: the step is finished and saved first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from fastddpm.interruption import RESUMABLE, put_back, raise_again, taken


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal after its state was saved.

    Attributes:
        signal: its number; that of Ctrl-C where another process of the run got it.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = number


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[list[int]]:
    """Yields a list that is empty until a signal, whose number it gets; Ctrl-C after one stops at once.

    The other signals may come again and again from a scheduler that waits for the end: the first counts.
    """
    raise_again()  # nothing has begun
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not stopped:
            stopped.append(number)
        elif number == signal.SIGINT:
            earlier = before.get(number)
            if callable(earlier):
                earlier(number, frame)  # which may want to know
            raise KeyboardInterrupt

    before = taken(stop, ("SIGINT", *RESUMABLE))
    try:
        yield stopped
    finally:
        put_back(before)
