"""Images to be judged, from where they are: a job's folder, a folder of pictures, an npz file, the digits.

An `ImageSet` reads a shard at a time, in order, so that a set may be larger than the memory.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastddpm.arrays import read_array
from fastddpm.checks import LONGEST, BadArgument, check_choice, fitted
from fastddpm.data.decoding import to_mode
from fastddpm.data.folder import SUFFIXES
from fastddpm.data.mnist import load_mnist
from fastddpm.images import Pixels
from fastddpm.inputs import member
from fastddpm.jobs.manifest import MANIFEST, Record, read_manifest
from fastddpm.jobs.shards import FORMATS, digest, read_shard
from fastddpm.pictures import PictureError, opened
from fastddpm.signatures import checked

Read = Callable[[], Pixels]


class ImageSet(Dataset[Tensor]):
    """uint8 images ``(C, H, W)`` of one size, by index.

    Args:
        name: what errors call it.
        counts: images in each shard.
        shards: for each shard a function that reads it, uint8 ``(N, H, W, C)``.

    Raises:
        ValueError: no images.
    """

    def __init__(self, name: str, counts: Sequence[int], shards: Sequence[Read]) -> None:
        self.name, self._shards = name, shards
        self._ends = list(itertools.accumulate(counts))
        if not self._ends or not self._ends[-1]:
            raise BadArgument(name, "no images", "at least one")
        self._held: tuple[int, Pixels] | None = None
        height, width, channels = self._shard(0).shape[1:]
        self.shape: tuple[int, int, int] = (channels, height, width)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Tensor:
        """uint8 ``(C, H, W)``; ValueError where it has another size than the first."""
        at = bisect.bisect_right(self._ends, index)
        image = self._shard(at)[index - (self._ends[at - 1] if at else 0)]
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
        if tuple(tensor.shape) != self.shape:
            raise ValueError(
                f"{self.name}: image {index} is {tuple(tensor.shape)}, the first {self.shape}; "
                "images of one size (C, H, W) accepted"
            )
        return tensor

    def _shard(self, at: int) -> Pixels:
        if self._held is None or self._held[0] != at:
            self._held = (at, self._shards[at]())
        return self._held[1]


@checked
def open_images(where: str | Path) -> ImageSet:
    """Opens images.

    Args:
        where: a folder of `fastddpm sample --format`, a folder of pictures (and all folders in it), an npz
            file whose ``arr_0`` is uint8 ``(N, H, W, C)``, or ``"mnist"``, the 500 digits of the test split.

    Raises:
        ValueError: anything else; an unfinished job; a shard that is not as it was written; no images.
    """
    if str(where) == "mnist":
        pixels: Pixels = load_mnist("test")[0].permute(0, 2, 3, 1).numpy()
        return ImageSet("mnist", [len(pixels)], [lambda: pixels])
    path = Path(where)
    if (path / MANIFEST).is_file():
        return _of_job(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        return ImageSet(str(path), [1] * len(files), [_picture(file) for file in files])
    if path.is_file() and path.suffix == ".npz":
        return _of_npz(path)
    raise BadArgument(
        "images", repr(str(where)), "a job's folder, a folder of pictures, an .npz file, or mnist"
    )


def _of_job(folder: Path) -> ImageSet:
    manifest = read_manifest(folder)
    if "shards" not in manifest:
        raise ValueError(f"{folder}: an unfinished job; run it again to draw what is missing, then evaluate")
    format = manifest["settings"].get("format")
    check_choice(f"{folder / MANIFEST}: format", format, FORMATS)

    def reader(record: Record) -> Read:
        def read() -> Pixels:
            path = member(folder, record["name"])
            if not path.exists() or digest(path) != (record["bytes"], record["sha256"]):
                shown = fitted(str(path), LONGEST)
                raise ValueError(f"{shown}: not as it was written; run the job again to draw it anew")
            pixels = read_shard(path, format)
            if len(pixels) != record["images"]:
                raise ValueError(f"{path}: {len(pixels)} images, {record['images']} in {MANIFEST}")
            return pixels

        return read

    shards = manifest["shards"]
    return ImageSet(str(folder), [shard["images"] for shard in shards], [reader(shard) for shard in shards])


def _of_npz(path: Path) -> ImageSet:
    pixels = read_array(path, "arr_0")
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ValueError(f"{path}: arr_0 {pixels.dtype} {pixels.shape} found, uint8 (N, H, W, C) accepted")
    return ImageSet(str(path), [len(pixels)], [lambda: pixels])


def _picture(file: Path) -> Read:
    def read() -> Pixels:
        with opened(file) as source:
            if source.mode[0] in "IF":  # pillow would clip 16 bits to 8
                try:
                    image = to_mode(source, "L")
                except PictureError as error:
                    raise PictureError(f"{file}: {error}") from error
            else:
                image = source if source.mode in ("L", "RGB") else source.convert("RGB")
            pixels: Pixels = np.array(image)
        return (pixels[..., None] if pixels.ndim == 2 else pixels)[None]

    return read
