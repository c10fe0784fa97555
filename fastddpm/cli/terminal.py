"""How a command runs at a terminal: errors, warnings and what is logged are one line each, signals end it.

Needs no torch.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

from fastddpm.checks import fitted
from fastddpm.extras import MissingExtra
from fastddpm.files import FULL
from fastddpm.interruption import GIVE_AGAIN, NAMES, RESUMABLE, as_interrupts, exit_code
from fastddpm.temporaries import remove_mine

ENDED = {
    130: "interrupted",
    129: "the terminal was closed",
    143: "terminated",
    GIVE_AGAIN: "stopped; the same command goes on from the last checkpoint",
}
"""Exit codes of a command that a signal ended, and what is said then."""
LONGEST_LINE, LONGEST_WORD = 280, 120
"""Characters of an error, and of a word in one that is longer than that."""

ALLOCATION_FAILED = (
    "DefaultCPUAllocator",
    "Cannot allocate memory",
    "failed to map segment",
    "Failed to allocate memory",
    "bad_alloc",
    "bad allocation",
)
"""What torch, the system's loader and ONNX Runtime say of it."""


def run(
    call: Callable[[], int | None],
    command: str = "fastddpm",
    *,
    resumable: bool = False,
    mendable: tuple[type[Exception], ...] = (),
) -> NoReturn:
    """Runs a command and exits. What a person can mend is one line on standard error and exit code 2.

    Args:
        call: the command; returns its exit code, None for 0.
        command: its name, as lines begin.
        resumable: whether it goes on where a signal ended it, when it is given again.
        mendable: errors of a person's, besides those of values, files, numbers and packages.
    """
    lines = (warnings_of_one_line(command), logged_lines(command))
    with as_interrupts(RESUMABLE if resumable else NAMES) as received, lines[0], lines[1]:
        try:
            code = call()
        except (Exception, KeyboardInterrupt) as error:
            if not received:
                explain(error, command, mendable)
                raise
            code = None  # what a library made of being interrupted
    if received:
        remove_mine()
        code = exit_code(received[-1], resumable=resumable)
    if code in ENDED and (received or code != GIVE_AGAIN):  # Typer makes 130 of KeyboardInterrupt itself
        print(f"{command}: {ENDED[code]}", file=sys.stderr)
    sys.exit(code or 0)


@contextlib.contextmanager
def warnings_of_one_line(command: str) -> Iterator[None]:
    """Warnings are said as errors are, without a place in code that a person at a terminal has not."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *place, **line: f"{command}: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def logged_lines(command: str) -> Iterator[None]:
    """What the package logs, such as progress where there is no terminal, goes to standard error."""
    logger, handler = logging.getLogger("fastddpm"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{command}: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def explain(error: BaseException, command: str, mendable: tuple[type[Exception], ...] = ()) -> None:
    """Exits with one line and code 2 where it is a person's to mend; else returns. Arguments as of `run`."""
    # Typer may carry its own copy of click, so its errors are known by what they offer.
    message = getattr(error, "format_message", None)
    if message is not None:
        _fail(message(), command)
    if is_out_of_memory(error):
        said = _first_sentence(error)
        _fail(f"out of memory ({said}); a smaller --batch, size or model accepted", command)
    if isinstance(error, OSError) and error.errno in FULL and error.filename is not None:
        wanted = "more space or another place accepted"
        _fail(f"{error.filename}: not written, as no space is left there; {wanted}", command)
    if isinstance(error, (ValueError, OSError, FloatingPointError, MissingExtra, *mendable)):
        _fail(str(error), command, whole=hasattr(error, "files"))  # which are listed for a person to mend


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, a card's, or a library's whose error has no class for that."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    said = str(error)
    if isinstance(error, (RuntimeError, ImportError)) and any(words in said for words in ALLOCATION_FAILED):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def _first_sentence(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return re.split(r"\.\s|\n", text)[0].rstrip(".")


def _fail(message: str, command: str, *, whole: bool = False) -> NoReturn:
    text = fitted(" ".join(message.split()), len(message) * len(r"\U00000000"))
    if len(text) > LONGEST_LINE:  # a path or a value that was typed, rather than words of ours
        text = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: fitted(word[0], LONGEST_WORD), text)
    if len(text) > 2 * LONGEST_LINE and not whole:
        text = fitted(text, LONGEST_LINE)
    print(f"{command}: error: {text}", file=sys.stderr)
    sys.exit(2)
