"""The application object, the subcommands, and how errors reach a person."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated

import torch
import typer

import fastddpm
from fastddpm.checks import fitted
from fastddpm.cli.bench import bench
from fastddpm.cli.convert import convert
from fastddpm.cli.doctor import doctor
from fastddpm.cli.evaluate import evaluate
from fastddpm.cli.export import export
from fastddpm.cli.options import Command
from fastddpm.cli.push import push
from fastddpm.cli.restore import colorize, deblur, inpaint, super_resolve
from fastddpm.cli.resumable import is_resumable
from fastddpm.cli.sample import sample
from fastddpm.cli.serve import serve
from fastddpm.cli.train import train
from fastddpm.engine import EngineUnavailable
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

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(name="fastddpm", pretty_exceptions_enable=False, context_settings=HELP)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fastddpm {fastddpm.__version__}")
        raise typer.Exit()


@app.callback()
def _common_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
) -> None:
    """Fast DDPM sampling: fused kernels around a trained noise-prediction network."""


COMMANDS: dict[str, Callable[..., None]] = {
    "bench": bench,
    "export": export,
    "sample": sample,
    "serve": serve,
    "evaluate": evaluate,
    "convert": convert,
    "push": push,
    "train": train,
    "super-resolve": super_resolve,
    "deblur": deblur,
    "inpaint": inpaint,
    "colorize": colorize,
    "doctor": doctor,
}
FILE_OF_OPTIONS = "Options may stand in a YAML or JSON file, --options FILE; what is typed wins."
for _name, _command in COMMANDS.items():
    app.command(_name, cls=Command, context_settings=HELP, epilog=FILE_OF_OPTIONS)(_command)


def main() -> None:
    """Runs the command line. What a person can mend is one line on standard error and exit code 2."""
    resumable = is_resumable()
    with as_interrupts(RESUMABLE if resumable else NAMES) as received, warnings_of_one_line(), logged_lines():
        try:
            command = typer.main.get_command(app)
            code = command.main(args=sys.argv[1:] or ["--help"], prog_name="fastddpm", standalone_mode=False)
        except (Exception, KeyboardInterrupt) as error:
            if not received:
                _explain(error)
                raise
            code = None  # what a library made of being interrupted
    if received:
        remove_mine()
        code = exit_code(received[-1], resumable=resumable)
    if code in ENDED and (received or code != GIVE_AGAIN):  # Typer makes 130 of KeyboardInterrupt itself
        print(f"fastddpm: {ENDED[code]}", file=sys.stderr)
    sys.exit(code or 0)


@contextlib.contextmanager
def warnings_of_one_line() -> Iterator[None]:
    """Warnings are said as errors are, without a place in code that a person at a terminal has not."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *place, **line: f"fastddpm: warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def logged_lines() -> Iterator[None]:
    """What the package logs, such as progress where there is no terminal, goes to standard error."""
    logger, handler = logging.getLogger("fastddpm"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("fastddpm: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _explain(error: BaseException) -> None:
    """Exits with one line where it is a person's to mend."""
    # Typer may carry its own copy of click, so its errors are known by what they offer.
    message = getattr(error, "format_message", None)
    if message is not None:
        _fail(message())
    if is_out_of_memory(error):
        _fail(f"out of memory ({_first_sentence(error)}); a smaller --batch, size or model accepted")
    if isinstance(error, OSError) and error.errno in FULL and error.filename is not None:
        _fail(
            f"{error.filename}: not written, as no space is left there; more space or another place accepted"
        )
    if isinstance(error, (ValueError, OSError, FloatingPointError, EngineUnavailable, MissingExtra)):
        _fail(str(error), whole=hasattr(error, "files"))  # which are listed for a person to mend


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, a card's, or a library's whose error has no class for that."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error)
    if isinstance(error, (RuntimeError, ImportError)) and any(words in said for words in ALLOCATION_FAILED):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def _first_sentence(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return re.split(r"\.\s|\n", text)[0].rstrip(".")


def _fail(message: str, *, whole: bool = False) -> None:
    text = fitted(" ".join(message.split()), len(message) * len(r"\U00000000"))
    if len(text) > LONGEST_LINE:  # a path or a value that was typed, rather than words of ours
        text = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: fitted(word[0], LONGEST_WORD), text)
    if len(text) > 2 * LONGEST_LINE and not whole:
        text = fitted(text, LONGEST_LINE)
    print(f"fastddpm: error: {text}", file=sys.stderr)
    sys.exit(2)
