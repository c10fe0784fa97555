"""A picture: what an image file holds for us, read whatever its mode, and written whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastddpm.checks import BadArgument, whole
from fastddpm.data.decoding import GREY_MODES, to_mode
from fastddpm.files import replacing
from fastddpm.pictures import PictureError, opened
from fastddpm.signatures import checked

MAX_PIXELS = 2**24
"""Of a picture and of what is made of it: 4096 x 4096. The state of 8 samples of it takes 1.6 GB."""
MOST_PIXELS = 16 * MAX_PIXELS
"""Of a result that is written from the top down: what a factor of 4 makes of the largest picture."""
HOLDS_ALPHA = {".png": True, ".webp": True, ".tif": True, ".tiff": True, ".jpg": False, ".jpeg": False}
"""Suffixes that can be written, and whether the format has an alpha channel."""


class SaveOptions(TypedDict, total=False):
    """Of `Image.save`."""

    icc_profile: bytes
    quality: int


@dataclass(frozen=True)
class Picture:
    """Pixels of one picture.

    Attributes:
        pixels: uint8 ``(C, H, W)``, C = 1 (grey) or 3 (RGB).
        alpha: uint8 ``(H, W)``, or None.
        profile: the file's ICC colour profile, or None.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    profile: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def batch(self, channels: int | None = None) -> Tensor:
        """float32 ``(1, C, H, W)`` in [-1, 1]; with other channels grey is repeated, or colour made luma."""
        pixels = self.pixels
        if channels is not None and channels != len(pixels):
            picture = to_mode(self.image(with_alpha=False), "L" if channels == 1 else "RGB")
            pixels = _planes(picture)
        return pixels[None].float() / 127.5 - 1.0

    def image(self, *, with_alpha: bool = True) -> Image.Image:
        """As Pillow's image of mode L, RGB, LA or RGBA."""
        planes = self.pixels.movedim(0, -1).numpy()
        image = Image.fromarray(planes[..., 0] if planes.shape[-1] == 1 else planes)
        if with_alpha and self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha.numpy()))
        return image

    @checked
    def write(self, path: Path) -> None:
        """Writes a file in the format of its suffix, whole or not at all.

        Raises:
            ValueError: a suffix that is not written, or one without alpha for a picture that has it.
            OSError: the file cannot be written.
        """
        check_target(path, has_alpha=self.alpha is not None)
        options: SaveOptions = {} if self.profile is None else {"icc_profile": self.profile}
        if path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
            options["quality"] = 95
        with replacing(path) as temporary:
            self.image().save(temporary, **options)


def check_target(path: Path, *, has_alpha: bool = False) -> None:
    """Refuses a path that no picture can be written to.

    Raises:
        ValueError: naming the path and what is accepted.
    """
    suffix = path.suffix.lower()
    if suffix not in HOLDS_ALPHA:
        raise BadArgument("out", repr(str(path)), f"a name that ends in {', '.join(HOLDS_ALPHA)}")
    if has_alpha and not HOLDS_ALPHA[suffix]:
        raise BadArgument("out", f"{str(path)!r} for a picture with alpha, which {suffix} has not,", ".png")
    if path.is_dir():
        raise BadArgument("out", f"{str(path)!r}, a folder, for one picture", "a file")
    if not path.parent.is_dir():
        raise BadArgument("out", repr(str(path)), "a file in a folder that is there")


def check_size(path: Path, factor: int = 1, most: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) of a file, from its header alone, upright or not.

    Args:
        path: of the file.
        factor: how much larger the result will be.
        most: pixels of the result.

    Raises:
        ValueError: no image, one of more than `MAX_PIXELS`, or one whose result has more than ``most``.
    """
    factor = whole("factor", factor, least=1)
    if not path.exists():
        raise ValueError(f"{path}: not a file; an image file accepted")
    with opened(path, most=MAX_PIXELS) as image:
        width, height = image.size
    if factor**2 * width * height > most:
        result = "" if factor == 1 else f", which would become {factor * width}x{factor * height}"
        raise ValueError(
            f"{path}: {width}x{height} pixels{result}; up to {most:,} pixels accepted in the result "
            "(cut the image or scale it down first)"
        )
    return height, width


@checked
def read_picture(path: Path, factor: int = 1) -> Picture:
    """One file as a picture.

    EXIF orientation is applied. 16-bit grey becomes 8 bits, CMYK and other colour models RGB, a palette what
    it stands for; transparency becomes alpha and colours below it stay. The first frame of an animation is
    taken. The ICC profile stays where the colour model does.

    Args:
        path: of the file.
        factor: how much larger the result will be, for the limit of its size.

    Raises:
        ValueError: no image, a damaged one, floating point pixels, or one that is too large.
    """
    check_size(path, factor)
    with opened(path) as source:
        source.load()
        image = ImageOps.exif_transpose(source)
        grey = source.mode in GREY_MODES
        profile = source.info.get("icc_profile") if source.mode in ("L", "LA", "RGB", "RGBA") else None
        alpha = None
        if image.has_transparency_data:
            layered = image.convert("LA" if grey else "RGBA")
            alpha = torch.from_numpy(np.array(layered.getchannel("A")))
            image = layered.convert("L" if grey else "RGB")
        try:
            image = to_mode(image, "L" if grey else "RGB")
        except PictureError as error:
            raise PictureError(f"{path}: {error}") from error
        return Picture(_planes(image), alpha, profile)


def _planes(image: Image.Image) -> Tensor:
    planes = np.moveaxis(np.atleast_3d(np.asarray(image, dtype=np.uint8)), -1, 0)
    return torch.from_numpy(planes.copy())
