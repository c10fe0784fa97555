"""Ctrl-C while training: the step is finished and saved first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C after its state was saved."""


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[list[bool]]:
    """Yields a list that is empty until Ctrl-C; a second Ctrl-C stops at once."""
    stopped: list[bool] = []

    def stop(number: int, frame: Any) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(True)

    try:
        before = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not in the main thread: Ctrl-C is not ours to take
        yield stopped
        return
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
