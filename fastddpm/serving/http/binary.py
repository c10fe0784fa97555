"""The Open Inference Protocol's binary extension: tensors as bytes behind the JSON object of a body.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol/binary-tensor-data-extension
Bytes are little-endian, row after row; of BYTES each value follows its length in four bytes.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
from starlette.responses import Response

from fastddpm.checks import BadArgument, is_whole, quoted
from fastddpm.serving.http.answers import Json, Refused

EXTENSION = "binary_tensor_data"
HEADER = "inference-header-content-length"
KIND = "application/octet-stream"
NUMBERS = {"INT64": "<i8", "FP32": "<f4", "UINT8": "u1"}


class Tail:
    """The bytes behind the JSON object, taken from the front by one tensor after the other."""

    def __init__(self, raw: bytes = b"") -> None:
        self._raw, self._at = raw, 0

    def take(self, name: str, size: object) -> bytes:
        """The next ``size`` bytes.

        Raises:
            BadArgument: (a ValueError) naming the tensor, of another size than there are.
        """
        left = len(self._raw) - self._at
        if not (is_whole(size) and 0 <= size <= left):
            accepted = f"at most the {left} bytes that are left"
            raise BadArgument(f"{name}, binary_data_size", quoted(size), accepted)
        begins, self._at = self._at, self._at + size
        return self._raw[begins : self._at]

    def check_end(self) -> None:
        """Refused: 400 where bytes are left that no tensor has taken."""
        left = len(self._raw) - self._at
        if left:
            raise Refused(400, f"body: {left} bytes behind its tensors given, none accepted")


def split(body: bytes, header: str | None) -> tuple[bytes, Tail]:
    """A body's JSON and what is behind it, by the header of that name.

    Raises:
        Refused: 400 for a length that is none of the body's.
    """
    if header is None:
        return body, Tail()
    length = int(header) if header.isascii() and header.isdigit() and len(header) < 16 else -1
    if not 0 <= length <= len(body):
        accepted = f"a length of JSON in the body of {len(body)} bytes"
        raise Refused(400, f"{HEADER}: {quoted(header)} given, {accepted} accepted")
    return body[:length], Tail(body[length:])


def numbers(name: str, datatype: str, raw: bytes, count: int) -> npt.NDArray[np.generic]:
    """The values of a tensor of numbers, flat.

    Raises:
        BadArgument: (a ValueError) naming the tensor, of another size than its shape says.
    """
    kind = np.dtype(NUMBERS[datatype])
    if len(raw) != count * kind.itemsize:
        accepted = f"{count * kind.itemsize}, as its shape says,"
        raise BadArgument(f"{name}, binary_data_size", str(len(raw)), accepted)
    return np.frombuffer(raw, kind)


def texts(name: str, raw: bytes, count: int) -> list[str]:
    """The values of a tensor of BYTES, as UTF-8.

    Raises:
        BadArgument: (a ValueError) naming the tensor.
    """
    found: list[str] = []
    at = 0
    while at + 4 <= len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        piece = raw[at + 4 : at + 4 + length]
        at += 4 + length
        try:
            found.append(piece.decode("utf-8"))
        except UnicodeDecodeError:
            raise BadArgument(name, quoted(piece), "UTF-8") from None
    if at != len(raw) or len(found) != count:
        raise BadArgument(f"{name}, data", f"{len(raw)} bytes", f"{count} texts, each behind its length,")
    return found


def answer(document: dict[str, object], pieces: list[bytes]) -> Response:
    """A document with the bytes of its tensors behind it; without any, JSON as ever."""
    if not pieces:
        return Json(document)
    head = Json(document).body
    return Response(b"".join((bytes(head), *pieces)), headers={HEADER: str(len(head))}, media_type=KIND)
