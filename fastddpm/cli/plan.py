"""Options that say how a chain is sampled, of the commands that have them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias, cast

import typer

from fastddpm.checks import BadArgument, quoted, shortened
from fastddpm.cli.options import Sets
from fastddpm.inputs import read_bytes
from fastddpm.plans.method_options import MethodOptions
from fastddpm.sampler import Sampler

MAX_FILE = 2**20
"""Bytes of a list."""

Name: TypeAlias = Annotated[
    str | None, typer.Option(help="ddpm, ddim, dpmpp_2m, unipc, heun or another; docs/math.md has them.")
]
Steps: TypeAlias = Annotated[
    int | None, typer.Option(help="Inference steps, 1 to T."), Sets("num_inference_steps")
]
Spacing: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Of the steps: leading, linspace or trailing; of solvers also karras or log_snr."),
    Sets("timestep_spacing"),
]
Timesteps: TypeAlias = Annotated[
    str | None, typer.Option(help="In the place of a spacing: 999,700,300, or a file of them.")
]
Sigmas: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Of a solver, noise levels in the place of a spacing: 14.6,2.7,0.4, or a file."),
]
Order: TypeAlias = Annotated[
    int | None, typer.Option(help="Of a solver that can have several."), Sets("solver_order")
]
Eta: TypeAlias = Annotated[float | None, typer.Option(help="Noise of ddim, heun, tcd: 0 none, 1 the most.")]


def adapted(sampler: Sampler, given: Mapping[str, object]) -> MethodOptions:
    """What was given, and what goes with it where it is another method than the folder's."""
    assert sampler.method is not None
    # As typed; `Sampler` checks them.
    changes = cast("MethodOptions", {name: value for name, value in given.items() if value is not None})
    return sampler.method.adapted(**changes).to_dict()


def integers(text: str | None, name: str) -> list[int] | None:
    """``999,700,300``, or what a file of such numbers holds.

    Raises:
        ValueError: anything else.
    """
    numbers = floats(text, name)
    if numbers is not None and any(number != int(number) for number in numbers):
        raise BadArgument(name, quoted(text), "integers")
    return None if numbers is None else [int(number) for number in numbers]


def floats(text: str | None, name: str) -> list[float] | None:
    """The same of any numbers. In a file they stand between commas, spaces or lines, perhaps in brackets.

    Raises:
        ValueError: anything else.
    """
    if text is None:
        return None
    accepted = "numbers such as 14.6,2.7,0.4, or a file of them,"
    try:
        return _numbers(text)
    except ValueError:
        if not _is_path(text):
            raise BadArgument(name, quoted(text), accepted) from None
    try:
        return _numbers(read_bytes(Path(text), MAX_FILE).decode())
    except ValueError as error:
        given = f"{shortened(text)}, of which {shortened(str(error))},"
        raise BadArgument(name, given, accepted) from error


def _numbers(text: str) -> list[float]:
    """Those in a text; ValueError where there is none, or something else."""
    inside = text.strip().removeprefix("[").removesuffix("]")
    numbers = [float(word) for word in re.split(r"[\s,]+", inside.strip(" \n\t\r,")) if word]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError("not all are finite numbers")
    return numbers


def _is_path(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False
