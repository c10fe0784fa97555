"""A network of one size run over an image of any other: overlapping tiles, blended at every step.

The state of the chain is the whole image. At each step the network sees tiles of it, and its outputs are
averaged with weights that fall towards the tiles' edges (MultiDiffusion, Bar-Tal et al. 2023). So there are
no separate images to be joined, and no seams: the tiles agree step by step, on one noise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastddpm.checks import BadArgument, is_whole, quoted, whole
from fastddpm.network import unwrapped
from fastddpm.signatures import checked

TILES_AT_ONCE = 16


class TiledModel:
    """``network`` for images of another size than it was made for.

    Call: ``model(x, t, **cond)``, x ``(B, Cin, H, W)`` with H and W of at least ``tile``; ``cond`` tensors
    have one row per image.

    Args:
        network: for images of ``tile`` x ``tile``.
        tile: side of a tile, in pixels.
        overlap: pixels that neighbouring tiles share at least, below ``tile``.

    Raises:
        ValueError: an overlap that is not below the tile.
    """

    @checked
    def __init__(self, network: nn.Module, tile: int, overlap: int) -> None:
        tile = whole("tile", tile, least=1)
        if not is_whole(overlap) or not 0 <= overlap < tile:
            raise BadArgument("overlap", f"{quoted(overlap)} for tiles of {tile}", f"0 to {tile - 1} pixels")
        self.network, self.tile, self.overlap = network, tile, overlap

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The blended output, ``(B, Cout, H, W)``."""
        height, width = x.shape[2:]
        corners = [
            (top, left)
            for top in tile_starts(height, self.tile, self.overlap)
            for left in tile_starts(width, self.tile, self.overlap)
        ]
        window = blend_window(self.tile, self.overlap, x)
        total: Tensor | None = None
        weight = torch.zeros(1, 1, height, width, dtype=x.dtype, device=x.device)
        at_once = max(1, TILES_AT_ONCE // len(x))
        for start in range(0, len(corners), at_once):
            chunk = corners[start : start + at_once]
            tiles = torch.cat([self._cut(x, *corner) for corner in chunk])
            repeated = {
                name: value.repeat(len(chunk), *(1,) * (value.ndim - 1)) for name, value in cond.items()
            }
            outputs = unwrapped(self.network(tiles, t.repeat(len(chunk)), **repeated))
            if total is None:
                total = outputs.new_zeros((len(x), outputs.shape[1], height, width))
            for output, corner in zip(outputs.chunk(len(chunk)), chunk, strict=True):
                self._cut(total, *corner).add_(output * window)
                self._cut(weight, *corner).add_(window)
        assert total is not None
        return total / weight

    def _cut(self, images: Tensor, top: int, left: int) -> Tensor:
        return images[:, :, top : top + self.tile, left : left + self.tile]


def blend_window(tile: int, overlap: int, like: Tensor) -> Tensor:
    """Weights ``(tile, tile)`` that rise linearly over the overlap from each edge."""
    places = torch.arange(tile, dtype=like.dtype, device=like.device)
    ramp = torch.minimum(places + 1, tile - places).clamp(max=overlap + 1)
    return ramp[:, None] * ramp[None, :] / (overlap + 1) ** 2


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the fewest evenly spread tiles that cover ``length`` and overlap by ``overlap``."""
    count = 1 + math.ceil((length - tile) / (tile - overlap))
    return [round(i * (length - tile) / max(1, count - 1)) for i in range(count)]


def padded(images: Tensor, height: int, width: int) -> Tensor:
    """``(B, C, H, W)`` made at least ``height`` x ``width`` by repeating the last row and column."""
    missing = (0, max(0, width - images.shape[3]), 0, max(0, height - images.shape[2]))
    return F.pad(images, missing, mode="replicate") if any(missing) else images
