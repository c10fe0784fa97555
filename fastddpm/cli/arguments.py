"""What people type, as values: seed and class ranges, devices, dtypes, output paths."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LONGEST_RANGE = 10_000_000


def parse_ranges(text: str, name: str) -> list[int]:
    """``0-9,20`` -> [0, ..., 9, 20].

    Raises:
        ValueError: anything but non-negative integers and rising ranges.
    """
    values: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ValueError(
                f"{name}: {text!r} given; integers and rising ranges such as 0-9,20 accepted, none below 0"
            )
        if last - first >= LONGEST_RANGE:
            raise ValueError(f"{name}: {text!r} given; ranges of at most {LONGEST_RANGE:,} accepted")
        values.extend(range(first, last + 1))
    return values


def parse_dtype(text: str) -> torch.dtype:
    """``float32``, ``float16`` or ``bfloat16``."""
    if text not in DTYPES:
        raise ValueError(f"--dtype: {text!r} given, one of {', '.join(DTYPES)} accepted")
    return DTYPES[text]


def parse_device(text: str | None) -> torch.device:
    """A device that is there; None: the first CUDA device, else the CPU."""
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise ValueError(f"--device: {text!r} given, cpu, cuda or cuda:N accepted") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise ValueError(f"--device: {text!r} given, but not there; {there} accepted here")
    return device


def check_output(path: Path, name: str, suffixes: tuple[str, ...]) -> None:
    """Refuses an output file that could not be written, before any work is done for it.

    Raises:
        ValueError: another suffix than those accepted, no such folder, or one that cannot be written.
    """
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{name}: {str(path)!r} given, a file ending in {' or '.join(suffixes)} accepted")
    if path.is_dir():
        raise ValueError(f"{name}: {str(path)!r} is a folder; a file accepted")
    _check_writable(path.parent, name)


def check_output_folder(path: Path, name: str) -> None:
    """Refuses an output folder that is not there and cannot be made, or that cannot be written."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{name}: {str(path)!r} is a file; a folder accepted")
    existing = path
    while not existing.exists():
        existing = existing.parent
    _check_writable(existing, name)


def _check_writable(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise ValueError(f"{name}: folder {str(folder)!r} does not exist; an existing folder accepted")
    try:
        # Permission bits say nothing to root or on a read-only or full disk; making a file does.
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{name}: folder {str(folder)!r} cannot be written ({error.strerror})") from None
