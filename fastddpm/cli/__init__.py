"""The command `fastddpm`. Each subcommand is a module of this package; errors are one line, exit code 2."""

from fastddpm.cli.app import main

__all__ = ["main"]
