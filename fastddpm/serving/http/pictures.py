"""Images as PNG files in answers."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.images import grid, png, to_uint8

CHANNELS = (1, 3, 4)
"""Of an image that a PNG file can hold."""


def png_of(image: Tensor) -> bytes:
    """A PNG file of one image, ``(C, H, W)`` in [-1, 1]."""
    return png(to_uint8(image))


def b64_png(image: Tensor) -> str:
    """The same in base64."""
    return base64.b64encode(png_of(image)).decode("ascii")


def grid_png(images: Sequence[Tensor]) -> bytes:
    """A PNG file of one image as it is, or of several side by side."""
    if len(images) == 1:
        return png_of(images[0])
    return png(grid(to_uint8(torch.stack(list(images)))))


def check_pictures(shape: Sequence[int]) -> None:
    """BadArgument for images that no PNG file can hold."""
    if shape[0] not in CHANNELS:
        accepted = "one of 1, 3 or 4 here (POST /v2/models/{name}/infer gives any)"
        raise BadArgument("model", f"one with images of {shape[0]} channels", accepted)
