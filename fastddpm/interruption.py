"""Signals that end a process, made to end it as Ctrl-C does: by KeyboardInterrupt, with all tidied up."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None
"""What `signal.signal` returns."""

# Of kill, timeout, service managers and schedulers; of a terminal that was closed. Windows has no SIGHUP.
NAMES = ("SIGTERM", "SIGHUP")
RESUMABLE = (*NAMES, "SIGUSR1")
"""Those after which a training is to be given again; SLURM warns by SIGUSR1 (``--signal=USR1@90``)."""
GIVE_AGAIN = 75
"""Exit code of a training that one of these ended: EX_TEMPFAIL, try again later (BSD's sysexits.h)."""

_commands: list[list[int]] = []
"""What those that run in `as_interrupts` have received."""


@contextmanager
def as_interrupts(names: tuple[str, ...] = NAMES) -> Iterator[list[int]]:
    """Ctrl-C and signals of these names raise KeyboardInterrupt in the body. Yields a list that gets their
    numbers.

    By the list it is known of an interrupt that a library made something else of, and `raise_again` of one
    that was dropped: Python does so, with words on standard error that are left out here, where it calls
    ``__del__`` and the like.

    A signal that is ignored, as nohup does with SIGHUP, stays so. In another than the main thread nothing
    changes: signals are not its to take.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def unraisable(dropped: sys.UnraisableHookArgs) -> None:
        if not (received and isinstance(dropped.exc_value, KeyboardInterrupt)):
            hook(dropped)

    hook = sys.unraisablehook
    before = taken(interrupt, ("SIGINT", *names))
    sys.unraisablehook = unraisable
    _commands.append(received)
    try:
        yield received
    finally:
        _commands.pop()
        sys.unraisablehook = hook
        put_back(before)


def raise_again() -> None:
    """KeyboardInterrupt where a signal has come in `as_interrupts` and its body goes on all the same."""
    if any(_commands):
        raise KeyboardInterrupt


@contextmanager
def postponed() -> Iterator[None]:
    """Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 wait until the body is done.

    For the moment in which several files take their names, which is to happen to all or none.
    """
    received: list[int] = []
    before = taken(lambda number, frame: received.append(number), ("SIGINT", *RESUMABLE))
    try:
        yield
    finally:
        put_back(before)
        for number in received:
            signal.raise_signal(number)


def exit_code(number: int, *, resumable: bool) -> int:
    """Of a command that a signal ended: 128 + signal, as shells report it; of a training `GIVE_AGAIN`.

    Ctrl-C is a person's, who knows.
    """
    return GIVE_AGAIN if resumable and number != signal.SIGINT else 128 + number


def taken(handler: Handler, names: tuple[str, ...]) -> dict[int, Handler]:
    """Sets a handler for signals that are not ignored; what stood there, for `put_back`."""
    before: dict[int, Handler] = {}
    for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
        if signal.getsignal(number) is signal.SIG_IGN:
            continue
        try:
            before[number] = signal.signal(number, handler)
        except ValueError:  # not in the main thread
            return before
    return before


def put_back(before: dict[int, Handler]) -> None:
    """Sets the handlers that `taken` found."""
    for number, handler in before.items():
        # None: set by something else than Python, which Python cannot set again.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
