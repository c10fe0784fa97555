"""Timesteps and noise levels as people give them: typed, or in a file. Needs no torch."""

from __future__ import annotations

import math
import re
from pathlib import Path

from fastddpm.checks import BadArgument, quoted, shortened
from fastddpm.inputs import read_bytes

MAX_FILE = 2**20
"""Bytes of a list."""


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
