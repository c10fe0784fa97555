"""What people type, as values: shapes, devices, dtypes. Seeds and classes: `fastddpm.cli.ranges`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastddpm.checks import BadArgument, check_choice
from fastddpm.formats.files import CheckpointError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_shape(text: str) -> tuple[int, int, int]:
    """``3,32,32`` -> (3, 32, 32): channels, height, width."""
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*", text)
    sizes = tuple(map(int, match.groups())) if match else (0,)
    if min(sizes) < 1:
        raise BadArgument("--shape", repr(text), "three positive integers C,H,W")
    channels, height, width = sizes
    return channels, height, width


def parse_dtype(text: str) -> torch.dtype:
    """``float32``, ``float16`` or ``bfloat16``."""
    check_choice("--dtype", text, DTYPES)
    return DTYPES[text]


def parse_device(text: str | None) -> torch.device:
    """A device that is there; None: the first CUDA device, else the CPU."""
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", text)
    if match is None:
        raise BadArgument("--device", repr(text), "cpu, cuda or cuda:N")
    if text != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise BadArgument("--device", f"{text!r}, which is not here,", there)
    return torch.device(text)


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Errors of a checkpoint begin with the option that gave it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{option}: {error}") from error
