"""Samples as pictures and files: uint8, grids, PNG, GIF and npz. Importing it needs no torch.

One conversion everywhere: uint8 = round((clamp(x, -1, 1) + 1) * 127.5), half to even.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument
from fastddpm.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]
# A grid of small images is enlarged by whole pixels until it is about this wide. Noise does not compress, so
# an animation of it is kept smaller.
GRID_WIDTH = 560
ANIMATION_WIDTH = 280


def to_uint8(images: Tensor) -> Pixels:
    """``(..., C, H, W)`` in [-1, 1] -> uint8 ``(..., H, W, C)``; values outside are clamped, NaN refused."""
    if images.ndim < 3:
        raise BadArgument("images", f"shape {tuple(images.shape)}", "(..., C, H, W)")
    if images.isnan().any():
        raise BadArgument("images", "NaN among the values", "numbers")
    levels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round()
    pixels: Pixels = levels.movedim(-3, -1).to("cpu").numpy().astype(np.uint8)
    return pixels


def grid(
    pixels: Pixels, columns: int | None = None, padding: int = 2, width_wanted: int = GRID_WIDTH
) -> Pixels:
    """uint8 ``(N, H, W, C)`` -> one picture ``(H', W', C)``, row by row, with white lines between."""
    count, height, width, channels = pixels.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    rows = math.ceil(count / columns)
    out = np.full(
        (rows * (height + padding) + padding, columns * (width + padding) + padding, channels), 255, np.uint8
    )
    for i in range(count):
        top = padding + i // columns * (height + padding)
        left = padding + i % columns * (width + padding)
        out[top : top + height, left : left + width] = pixels[i]
    factor = max(1, width_wanted // out.shape[1])
    return out.repeat(factor, axis=0).repeat(factor, axis=1)


def save_png(path: Path, pixels: Pixels) -> None:
    """Writes one picture, uint8 ``(H, W, C)`` with C = 1, 3 or 4."""
    with replacing(path) as temporary:
        temporary.write_bytes(png(pixels))


def png(pixels: Pixels) -> bytes:
    """One picture, uint8 ``(H, W, C)`` with C = 1, 3 or 4, as a PNG file's bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG")
    return file.getvalue()


def save_gif(path: Path, frames: Sequence[Pixels], seconds_per_frame: float = 0.08) -> None:
    """Writes pictures ``(H, W, C)`` as an endless animation that rests on the last one."""
    from PIL import Image

    pictures = [Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in frames]
    durations = [int(1000 * seconds_per_frame)] * (len(pictures) - 1) + [1500]
    with replacing(path) as temporary:
        pictures[0].save(
            temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
        )


def save_npz(path: Path, pixels: Pixels, labels: Sequence[int] | None, seeds: Sequence[int]) -> None:
    """Writes ``arr_0`` uint8 ``(N, H, W, C)``, ``arr_1`` int64 labels when there are, and ``seeds`` int64.

    The layout of guided-diffusion's samples, which FID tools read.
    """
    arrays: dict[str, npt.NDArray[np.generic]] = {"arr_0": pixels, "seeds": np.asarray(seeds, np.int64)}
    if labels is not None:
        arrays["arr_1"] = np.asarray(labels, np.int64)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
