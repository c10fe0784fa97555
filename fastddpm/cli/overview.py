"""`fastddpm --version` and `--help`, without the commands themselves, which take seconds to load.

The application with all options of its commands is `fastddpm.cli.app`'s; this one has their names and the
first line of what they do. Needs neither torch nor numpy.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import fastddpm

SUMMARIES = {
    "bench": "Measure this machine: ours against what people would otherwise use, at the same weights and "
    "images.",
    "export": "Write a trained model as ONNX: the network, one step, and the whole sampler in one file.",
    "sample": "Draw images from a trained model, one per seed.",
    "serve": "Serve models over HTTP: the Open Inference Protocol, pictures and streams of them, metrics.",
    "evaluate": "Print FID, KID, precision and recall of drawn images, computed by torch-fidelity.",
    "convert": "Convert a checkpoint of another library into a model folder, or into a diffusers pipeline.",
    "push": "Put a model on the Hugging Face Hub, with a card; `fastddpm sample organisation/name` draws "
    "from it.",
    "train": "Train a model: the run folder gets a log, a loss plot, sample grids, checkpoints, and "
    "RUN/model.",
    "super-resolve": "Enlarge images by the model's factor: the bundled ones, photographs and digits, by 4.",
    "deblur": "Sharpen images and free them of noise.",
    "inpaint": "Fill in the unknown part of images, by a model trained for it or by any other (RePaint).",
    "colorize": "Colour grey images by a model that was trained to; none is bundled.",
    "doctor": "Examine this machine: the environment, kernels against references, engines against each "
    "other.",
}
"""Every command, and the first line of its help."""
ANSWERED: tuple[list[str], ...] = ([], ["--help"], ["-h"], ["--version"])
"""Words of a command line that need no command."""
COMPLETION = "_FASTDDPM_COMPLETE"
"""Set by a shell that asks for completions, which are the application's."""
HELP = {"help_option_names": ["-h", "--help"]}


def new_app() -> typer.Typer:
    """The application, without commands."""
    app = typer.Typer(name="fastddpm", pretty_exceptions_enable=False, context_settings=HELP)
    app.callback()(_common_options)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fastddpm {fastddpm.__version__}")
        raise typer.Exit()


def _common_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
) -> None:
    """Fast DDPM sampling: fused kernels around a trained noise-prediction network."""


def answer() -> None:
    """Answers and exits where the command line is one of `ANSWERED`; else returns."""
    if sys.argv[1:] not in ANSWERED or COMPLETION in os.environ:
        return
    app = new_app()
    for name, summary in SUMMARIES.items():
        app.command(name, help=summary)(_nothing)
    typer.main.get_command(app).main(args=sys.argv[1:] or ["--help"], prog_name="fastddpm")


def _nothing() -> None:
    """In the place of a command that is not run."""
