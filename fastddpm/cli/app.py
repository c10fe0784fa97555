"""The application object, the subcommands, and how errors reach a person."""

from __future__ import annotations

import sys

import torch
import typer

from fastddpm.cli.sample import sample
from fastddpm.engine import EngineUnavailable

app = typer.Typer(
    name="fastddpm",
    help="Fast DDPM sampling: fused kernels around a trained noise-prediction network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _version_option() -> None:
    """Fast DDPM sampling: fused kernels around a trained noise-prediction network."""


app.command("sample")(sample)


def main() -> None:
    """Runs the command line. What a person can mend is one line on standard error and exit code 2."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=sys.argv[1:], prog_name="fastddpm", standalone_mode=False)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written", 130)
    except Exception as error:
        # Typer may carry its own copy of click, so its errors are known by what they offer.
        message = getattr(error, "format_message", None)
        if message is not None:
            _fail(message(), 2)
        if isinstance(error, (ValueError, OSError, EngineUnavailable, torch.OutOfMemoryError)):
            _fail(str(error), 2)
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    text = " ".join(message.split())
    print(f"fastddpm: error: {text}", file=sys.stderr)
    sys.exit(code)
