"""The command `fastddpm`. Each subcommand is a module of this package; errors are one line, exit code 2.

Ctrl-C, SIGTERM and SIGHUP end it with one line and exit code 128 + signal, as shells report them; what was
half made is taken away, and what can be gone on with stays. A training that SIGTERM, SIGHUP or SIGUSR1 ends
says 75 instead: the same command goes on with it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from types import FrameType

from fastddpm.cli.resumable import is_resumable
from fastddpm.interruption import RESUMABLE, exit_code, taken

__all__ = ["main"]


def main() -> None:
    """Runs the command line and exits."""
    # To the end of the process, which is the command's own, but for what `cli.app` sets while a command runs.
    taken(_leave, ("SIGINT", *RESUMABLE) if is_resumable() else ("SIGINT",))
    from fastddpm.cli import overview

    overview.answer()
    from fastddpm.cli.app import main as run  # which takes seconds, in which people press Ctrl-C

    run()


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the process while nothing is half made.

    A KeyboardInterrupt would not do while libraries are imported: torch takes one in numpy's import for a
    numpy that is not installed, and goes on with half of it.
    """
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(2, b"fastddpm: interrupted\n")
    os._exit(exit_code(number, resumable=is_resumable()))
