"""Image files from outside: the formats that are read, the largest size, one line for what is wrong.

Every image file is opened here. pillow alone picks a plugin by the content, whatever the file's name is:
PostScript starts a program (``gs``), and others read what is no picture.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastddpm.inputs import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

# pillow's raster formats; its others start programs (EPS) or are not pictures (MPEG, HDF5).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "AVIF", "JPEG2000", "MPO")
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
"""Of pictures in HEVC, which pillow does not decode by itself."""
MAX_PIXELS = 2**26
"""Of a file: 8192 x 8192, 200 MB as RGB."""
LARGE = 2**22
"""Pixels from which on one picture is decoded at a time, whatever the number of threads."""

_lock = threading.RLock()


class PictureError(ValueError):
    """An image file that is not one, is damaged, or is too large."""


@contextmanager
def opened(
    content: Path | bytes,
    name: str | None = None,
    *,
    formats: Sequence[str] = FORMATS,
    most: int = MAX_PIXELS,
) -> Iterator[Image]:
    """An image file with its header read; it is closed afterwards.

    Args:
        content: a path, of a regular file, or the bytes of a file.
        name: what errors call it; None: a path by itself, bytes not at all.
        formats: pillow's names of those that are read.
        most: pixels that are accepted.

    Raises:
        InputError: (a ValueError) a path that cannot be read, or of no regular file.
        PictureError: (a ValueError) of none of the formats, more than ``most`` pixels, or damaged; also for
            whatever pillow raises while the image is used, except for the memory running out.
    """
    if name is None:
        name = str(content) if isinstance(content, Path) else ""
    with ExitStack() as stack:
        file: BinaryIO
        if isinstance(content, Path):
            raw = open_regular(content).detach()  # type: ignore[attr-defined]
            file = stack.enter_context(_Bounded(raw))
        else:
            file = io.BytesIO(content)
        image = _header(file, name, formats, most)
        stack.enter_context(image)
        if image.width * image.height >= LARGE:
            stack.enter_context(_lock)
        try:
            yield image
        except (MemoryError, PictureError):
            raise
        except Exception as error:  # pillow raises whatever a broken file trips its plugins over
            reason = str(error) or type(error).__name__
            raise PictureError(f"{_named(name)}a damaged image ({reason}), a whole one accepted") from error


class _Bounded(io.BufferedReader):
    """A file of which no read asks for more than is left: a header may say any number, and Python allocates
    what is asked for before it reads."""

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` bytes, all that is left for None or below 0."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def _header(file: BinaryIO, name: str, formats: Sequence[str], most: int) -> Image:
    from PIL import Image, UnidentifiedImageError

    Image.init()
    try:
        # Filters of warnings belong to the process, so that two threads must not change them at once.
        with _lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what pillow warns of is above our limit, or harmless
            image = Image.open(file, formats=[one for one in formats if one in Image.OPEN])
    except UnidentifiedImageError:
        if is_heic(file):
            raise PictureError(
                f"{_named(name)}an HEIC picture, which is not read; converted to PNG or JPEG it is: "
                "pip install pillow-heif, whose register_heif_opener() has pillow open it"
            ) from None
        accepted = ", ".join(formats)
        raise PictureError(
            f"{_named(name)}no image that can be read; {accepted} accepted (cannot identify image file)"
        ) from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"{_named(name)}{error}; up to {most:,} pixels accepted") from error
    except MemoryError:
        raise
    except Exception as error:  # as above
        reason = str(error) or type(error).__name__
        raise PictureError(f"{_named(name)}not readable ({reason}), an image file accepted") from error
    if image.width * image.height > most:
        image.close()
        raise PictureError(
            f"{_named(name)}{image.width}x{image.height} pixels; up to {most:,} pixels accepted"
        )
    return image


def is_heic(file: BinaryIO) -> bool:
    """Whether a file begins as those of phones do: a box `ftyp` with a brand of HEIF (ISO/IEC 23008-12)."""
    file.seek(0)
    start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS


def _named(name: str) -> str:
    return f"{name}: " if name else ""
