"""One image file -> uint8 ``(C, H, W)``: what every mode, orientation and size becomes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument, is_whole, quoted
from fastddpm.pictures import PictureError, opened

if TYPE_CHECKING:
    from PIL.Image import Image

CHANNELS = (1, 3)
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Header:
    """What a file says of itself before it is decoded: its size as shown, and whether it is grey."""

    height: int
    width: int
    grey: bool


def checked_channels(channels: int | None) -> int | None:
    """``channels``, or a ValueError: 1, 3 and None are accepted."""
    if channels is not None and (not is_whole(channels) or channels not in CHANNELS):
        raise BadArgument("channels", quoted(channels), "1 (grey), 3 (RGB) or None (as the files are)")
    return channels


def checked_size(size: int | None) -> int | None:
    """``size``, or a ValueError: 1 or more and None are accepted."""
    if size is not None and (not is_whole(size) or size < 1):
        raise BadArgument("size", quoted(size), "1 or more pixels or None (as the files are)")
    return size


def decode(content: Path | bytes, channels: int, size: int | None) -> npt.NDArray[np.uint8]:
    """One image file as uint8 ``(C, H, W)``; docs/data.md has the table of modes.

    Args:
        content: a path, or the bytes of a file. The first frame of an animation is taken.
        channels: 1 or 3.
        size: scaled so that the shorter side is ``size`` (bicubic with antialiasing) and cropped to the
            middle; None: as it is.

    Raises:
        PictureError: (a ValueError) no image, a damaged one, or a too large one.
        InputError: (a ValueError) no regular file that can be read.
    """
    from PIL import ImageOps

    with opened(content, name="") as image:
        image.load()
        upright = to_mode(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
        return to_pixels(upright, size)


def to_pixels(image: Image, size: int | None) -> npt.NDArray[np.uint8]:
    """An image of mode L or RGB -> uint8 ``(C, H, W)``, scaled and cropped to ``size`` if given."""
    from PIL import Image, ImageOps

    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.uint8)
    return np.ascontiguousarray(np.moveaxis(np.atleast_3d(pixels), -1, 0))


def to_mode(image: Image, mode: str) -> Image:
    """Any image in mode "L" or "RGB": 16 bits scaled to 8, alpha laid over white, palettes looked up.

    Raises:
        PictureError: (a ValueError) floating point pixels, or 32-bit ones above 65535: their white is not
            known.
    """
    from PIL import Image

    if image.mode == "F":
        raise PictureError("floating point pixels, integers of 8 or 16 bits accepted")
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")  # CMYK, LAB and the like have no direct way to grey
    return image.convert(mode)


def _from_16_bits(image: Image) -> Image:
    from PIL import Image

    levels = np.asarray(image).astype(np.int32)  # 32-bit ones are signed in pillow
    if levels.min() < 0 or levels.max() > 65535:
        raise PictureError(f"32-bit pixels from {levels.min()} to {levels.max()}, 0 to 65535 accepted")
    # The nearest of 0 .. 255; pillow's own conversion clips everything above 255 to white in some versions.
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))


def read_header(content: Path | bytes, upright: bool) -> Header:
    """The header of one file; raises as `decode` does.

    ``upright``: the size with the EXIF orientation applied. For that pillow decodes a PNG to its end, where
    EXIF may stand.
    """
    with opened(content, name="") as image:
        width, height = image.size
        if upright and image.getexif().get(0x0112) in (5, 6, 7, 8):  # orientations on their side
            width, height = height, width
        return Header(height, width, image.mode in GREY_MODES)
