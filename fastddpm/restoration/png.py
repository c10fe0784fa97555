"""PNG files written from the top down, a few rows at a time: pillow takes a whole picture."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fastddpm.files import replacing

Pixels = npt.NDArray[np.uint8]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""By channels: grey, grey and alpha, RGB, RGBA."""
# Each row is subtracted from the one above (filter "Up" of the specification).
UP = 2


class PngRows:
    """The open file.

    Args:
        file: to write to.
        height: of the picture.
        width: likewise.
        channels: 1 to 4: grey, grey and alpha, RGB, RGBA.
        profile: an ICC profile, or None.
    """

    def __init__(
        self, file: BinaryIO, height: int, width: int, channels: int, profile: bytes | None = None
    ) -> None:
        self._file, self._left, self._deflate = file, height, zlib.compressobj()
        self._above = np.zeros((1, width * channels), np.uint8)
        file.write(SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0))
        if profile is not None:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))

    def write(self, rows: Pixels) -> None:
        """uint8 ``(rows, W, C)``, the next ones below."""
        flat = np.concatenate([self._above, rows.reshape(len(rows), -1)])
        self._above = flat[-1:].copy()
        lines = np.empty((len(rows), 1 + flat.shape[1]), np.uint8)
        lines[:, 0] = UP
        np.subtract(flat[1:], flat[:-1], out=lines[:, 1:])
        self._left -= len(rows)
        self._data(self._deflate.compress(lines.tobytes()))

    def close(self) -> None:
        """Ends a picture of which all rows were written."""
        assert self._left == 0
        self._data(self._deflate.flush())
        self._chunk(b"IEND", b"")

    def _data(self, content: bytes) -> None:
        if content:
            self._chunk(b"IDAT", content)

    def _chunk(self, kind: bytes, content: bytes) -> None:
        self._file.write(struct.pack(">I", len(content)) + kind + content)
        self._file.write(struct.pack(">I", zlib.crc32(kind + content)))


@contextmanager
def png_rows(
    path: Path, height: int, width: int, channels: int, profile: bytes | None = None
) -> Iterator[PngRows]:
    """A PNG file that takes its name when all rows are written, and is not there otherwise.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        rows = PngRows(file, height, width, channels, profile)
        yield rows
        rows.close()
