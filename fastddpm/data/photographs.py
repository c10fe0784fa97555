"""Photographs inside PyPI packages (no download): scikit-image's to train on, scikit-learn's to test on.

They are cut into square tiles. The split is by photograph, so that no tile is near another split's: the test
photographs, china and flower, are never trained on.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.extras import missing

from .decoding import decode
from .splits import checked_split

SPLIT = {
    "train": (
        *("astronaut.png", "camera.png", "coffee.png", "coins.png"),
        *("motorcycle_left.png", "motorcycle_right.png", "rocket.jpg"),
    ),
    "validation": ("chelsea.png",),
    "test": ("china.jpg", "flower.jpg"),
}
"""File names in ``skimage/data`` (train, validation) and ``sklearn/datasets/images`` (test)."""
TILE = 64
STRIDE = {"train": 8, "validation": 32, "test": 64}
"""Pixels from one tile to the next."""


def load_photographs(split: str) -> dict[str, Tensor]:
    """Photographs of a split by name: uint8 ``(3, H, W)``; grey ones have three equal channels.

    Args:
        split: "train" (7 photographs, 2 of them of one motorcycle), "validation" (1) or "test" (2).

    Raises:
        ValueError: another split.
        ImportError: scikit-image or scikit-learn is not installed, or does not have a photograph.
    """
    names = SPLIT[checked_split(split)]
    package, folder = ("sklearn", "datasets/images") if split == "test" else ("skimage", "data")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise missing(package, by="data: 'photographs'")
    directory = Path(spec.origin).parent / folder
    absent = [name for name in names if not (directory / name).is_file()]
    if absent:
        raise ImportError(
            f"photographs: the installed {package} does not have {', '.join(absent)}", name=package
        )
    return {Path(name).stem: torch.from_numpy(decode(directory / name, 3, None)) for name in names}


@dataclass(frozen=True)
class Tiles:
    """Photographs read like a uint8 tensor ``(N, C, size, size)`` of overlapping tiles.

    Attributes:
        photographs: uint8 ``(C, H, W)`` each, no side below ``size``.
        size: of a tile, in pixels.
        places: (photograph, top, left) of each tile, int64 ``(N, 3)``.
    """

    photographs: list[Tensor]
    size: int
    places: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, size, size)."""
        return len(self.places), self.photographs[0].shape[0], self.size, self.size

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        """uint8 ``(B, C, size, size)`` for int64 indices ``(B,)``."""
        cut = [
            self.photographs[which][:, top : top + self.size, left : left + self.size]
            for which, top, left in self.places[indices].tolist()
        ]
        return torch.stack(cut)


def photograph_tiles(split: str, size: int = TILE, channels: int = 3) -> Tiles:
    """The tiles of a split, of the photographs as they are and, to train on, at half their size too.

    Args:
        split: as in :func:`load_photographs`.
        size: of a tile, up to the least side among the split's photographs.
        channels: 3, or 1 for luma.

    Raises:
        ValueError: a size beyond the photographs'.
    """
    from PIL import Image

    photographs = []
    for pixels in load_photographs(split).values():
        picture = Image.fromarray(np.moveaxis(pixels.numpy(), 0, -1)).convert("L" if channels == 1 else "RGB")
        for shrink in (1, 2) if split == "train" else (1,):
            small = picture.reduce(shrink)
            if shrink == 1 or min(small.size) >= size:
                planes = np.moveaxis(np.atleast_3d(np.asarray(small)), -1, 0)
                photographs.append(torch.from_numpy(planes.copy()))
    least = min(min(photograph.shape[1:]) for photograph in photographs)
    if size > least:
        raise BadArgument("size", f"{size} for the photographs", f"at most {least}")
    places = [
        (which, top, left)
        for which, photograph in enumerate(photographs)
        for top in range(0, photograph.shape[1] - size + 1, STRIDE[split])
        for left in range(0, photograph.shape[2] - size + 1, STRIDE[split])
    ]
    return Tiles(photographs, size, torch.tensor(places))
