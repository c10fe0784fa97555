"""The command `fastddpm`. Each subcommand is a module of this package; errors are one line, exit code 2.

Ctrl-C, SIGTERM and SIGHUP end it with one line and exit code 128 + signal, as shells report them; what was
half made is taken away, and what can be gone on with stays.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line and exits."""
    try:
        from fastddpm.cli.app import main as run  # which takes seconds, in which people press Ctrl-C
    except KeyboardInterrupt:
        print("fastddpm: interrupted", file=sys.stderr)
        sys.exit(130)
    run()
