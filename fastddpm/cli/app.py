"""The application object with its subcommands."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from fastddpm.cli import terminal
from fastddpm.cli.bench import bench
from fastddpm.cli.convert import convert
from fastddpm.cli.doctor import doctor
from fastddpm.cli.evaluate import evaluate
from fastddpm.cli.export import export
from fastddpm.cli.options import Command
from fastddpm.cli.overview import HELP, new_app
from fastddpm.cli.push import push
from fastddpm.cli.restore import colorize, deblur, inpaint, super_resolve
from fastddpm.cli.resumable import is_resumable
from fastddpm.cli.sample import sample
from fastddpm.cli.serve import serve
from fastddpm.cli.train import train
from fastddpm.engine import EngineUnavailable

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
app = new_app()
for _name, _command in COMMANDS.items():
    app.command(_name, cls=Command, context_settings=HELP, epilog=FILE_OF_OPTIONS)(_command)


def main() -> None:
    """Runs the command line and exits, as `fastddpm.cli.terminal.run` says."""
    terminal.run(_called, resumable=is_resumable(), mendable=(EngineUnavailable,))


def _called() -> int | None:
    command = typer.main.get_command(app)
    code: int | None = command.main(
        args=sys.argv[1:] or ["--help"], prog_name="fastddpm", standalone_mode=False
    )
    return code
