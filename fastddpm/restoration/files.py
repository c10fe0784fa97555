"""Which files become which: one file, or the images of a folder, checked before the first is restored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.data.folder import SUFFIXES
from fastddpm.restoration.picture import (
    HOLDS_ALPHA,
    MAX_PIXELS,
    MOST_PIXELS,
    check_size,
    check_target,
    read_picture,
)


@dataclass(frozen=True)
class Pair:
    """A file to read and one to write."""

    source: Path
    out: Path


def in_and_out(source: Path, out: Path, factor: int = 1, *, streams: bool = False) -> list[Pair]:
    """The files to read and to write.

    Args:
        source: an image file, or a folder: its images, by suffix and name, not those of folders in it.
        out: a file for a file. For a folder a folder, made if need be, where each result has its source's
            name and the suffix .png.
        factor: how much larger a result is.
        streams: results that are PNG files may be as large as `MOST_PIXELS`.

    Raises:
        ValueError: nothing to read; no image, or a too large one; an out that cannot be written, or that is
            the source; two files of a folder that would give one result.
    """
    if not source.is_dir():
        most = MOST_PIXELS if streams and out.suffix.lower() == ".png" else MAX_PIXELS
        check_size(source, factor, most)
        check_target(out, has_alpha=read_picture(source).alpha is not None)
        if out.resolve() == source.resolve():
            raise BadArgument("out", f"{str(out)!r}, the source,", "another file")
        return [Pair(source, out)]
    files = sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise ValueError(f"{source}: a folder without images, one with {', '.join(SUFFIXES)} files accepted")
    if out.suffix.lower() in HOLDS_ALPHA or out.is_file():
        raise BadArgument("out", f"{str(out)!r} for a folder", "a folder")
    if out.resolve() == source.resolve():
        raise BadArgument("out", f"{str(out)!r}, the source,", "another folder")
    for path in files:
        check_size(path, factor, MOST_PIXELS if streams else MAX_PIXELS)
    pairs = [Pair(path, out / f"{path.stem}.png") for path in files]
    made: dict[Path, str] = {}
    for pair in pairs:  # of which two that become one need not be neighbours: a.jpg, a.left.png, a.png
        if pair.out in made:
            raise ValueError(
                f"{source}: {made[pair.out]} and {pair.source.name} would both become {pair.out}"
            )
        made[pair.out] = pair.source.name
    out.mkdir(parents=True, exist_ok=True)
    return pairs


def sample_paths(out: Path, count: int) -> list[Path]:
    """One path for each sample: ``out`` for one, else ``out_0.png``, ``out_1.png`` and so on."""
    if count == 1:
        return [out]
    digits = len(str(count - 1))
    return [out.with_name(f"{out.stem}_{i:0{digits}d}{out.suffix}") for i in range(count)]


def read_mask(path: Path) -> Tensor:
    """bool ``(H, W)``, True (unknown) where the file is brighter than half; its alpha is not looked at.

    Raises:
        ValueError: no image, or a mask with nothing unknown.
    """
    mask: Tensor = read_picture(path).batch(1)[0, 0] > 0
    if not torch.any(mask):
        raise BadArgument("mask", f"{path}, with nothing unknown in it,", "white where the image is unknown")
    return mask
