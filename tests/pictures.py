"""Pictures to restore, or to refuse."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def random_pixels(*shape):
    """uint8 of this shape, the same each time."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def big_png(path, width, height):
    """The header of a PNG of any size, and nothing else in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        body = name + content
        chunks += struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
