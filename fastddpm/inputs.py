"""Files from outside: regular ones alone, of bounded size; JSON of bounded depth. Needs no torch.

Whatever reads a file that someone else may have written opens it here: a named pipe would hang the reader, a
device would never end, and a document of brackets alone would overflow the stack.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from fastddpm.checks import BadArgument, shortened, state_shape

Json: TypeAlias = dict[str, Any]
"""An object of JSON: whoever reads its values checks what they are."""
Fields: TypeAlias = Mapping[str, Any]
"""A configuration as a file or a caller gave it, unchecked likewise."""
PIECE = 2**20
"""Bytes of a file read at a time."""

MAX_JSON = 32 * 2**20
"""Bytes of a JSON file: the betas of 1,000,000 timesteps fit."""
MAX_DEPTH = 32
"""Of lists and objects in one another."""
MAX_DIGITS = 20
"""Of an integer in JSON: any of 64 bits fits, and none that a float cannot hold."""
MAX_NAME = 255
"""Characters of a file's name."""
MAX_SIDE = 2**16
"""Of an image in pixels, and channels of a network, where a file says them."""
MAX_AXES = 8
"""Of the shape of a state, or of a row of a condition, where a file says it."""
MAX_VALUES = 2**28
"""Of an image of a shape that a file says: 1 GiB in float32."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Each alternative ends wherever the text does, so that nothing is scanned twice.
_STRING_OR_COMMENT = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*"?)|//[^\n]*', re.DOTALL)


class InputError(ValueError):
    """A file that is not there, not readable, not a regular file, too large, or not what it should be."""


def check_regular(path: Path) -> int:
    """Bytes of a regular file; for libraries that open a path themselves.

    Raises:
        InputError: not there, not allowed, or something else than a regular file; it says which.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_one, name in _KINDS if is_one(found.st_mode)), "no file")
        raise InputError(f"{path}: {kind}, a regular file accepted")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: cannot be read (permission denied)")
    return found.st_size


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened to be read; anything else is refused without waiting for it.

    Raises:
        InputError: as of :func:`check_regular`.
    """
    check_regular(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        file = os.fdopen(os.open(path, flags), "rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was another file a moment ago
        file.close()
        raise InputError(f"{path}: no regular file")
    return file


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        InputError: as of :func:`check_regular`, or larger than that.
    """
    pieces, left = [], limit + 1
    with open_regular(path) as file:
        try:
            # As much memory as the file has bytes: one read would ask for all that the limit allows.
            while left and (piece := file.read(min(left, PIECE))):
                pieces.append(piece)
                left -= len(piece)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not left:
        raise InputError(f"{path}: more than {limit:,} bytes, at most that accepted")
    return b"".join(pieces)


def read_json(path: Path) -> Json:
    """A JSON object, as of :func:`read_document`.

    Raises:
        InputError: as there, or not an object.
    """
    document = read_document(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds {type(document).__name__}, an object is expected")
    return document


def read_document(path: Path) -> object:
    """JSON in UTF-8; ``//`` comments, which the SR3 repository's files have, are left out.

    NaN and Infinity, which diffusers writes, are read as floats. A name that stands twice in one object is
    an error, since either value may have been meant.

    Raises:
        InputError: as of :func:`check_regular`; not JSON, more than `MAX_JSON` bytes, nested deeper than
            `MAX_DEPTH`, or with an integer of more than `MAX_DIGITS` digits.
    """
    content = read_bytes(path, MAX_JSON)
    try:
        return parse_json(without_comments(content.decode("utf-8")))
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error


def parse_json(text: str) -> object:
    """A JSON document from text, with the limits of :func:`read_document`.

    Raises:
        ValueError: not JSON, or beyond them.
    """
    try:
        document: object = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from None
    level: list[object] = [document]
    for _ in range(MAX_DEPTH + 1):
        level = [child for one in level for child in _children(one)]
        if not level:
            return document
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def without_comments(text: str) -> str:
    """JSON text without ``//`` comments, in one pass; ``//`` inside a string stays."""
    return _STRING_OR_COMMENT.sub(lambda match: match[1] or "", text)


def member(folder: Path, name: object) -> Path:
    """The path of a file or folder in ``folder`` whose name a file gave.

    Raises:
        InputError: no plain name: one with a separator or drive, empty, ``.``, ``..``, or longer than
            `MAX_NAME`.
    """
    plain = isinstance(name, str) and 0 < len(name) <= MAX_NAME and name not in (".", "..")
    if not plain or re.search(r"[/\\:\0]", str(name)):
        given = f"{shortened(repr(name))} given as the name of a file in it"
        raise InputError(f"{folder}: {given}, a plain name accepted")
    return folder / str(name)


def asked_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape of a state that a file asks for, ``(C, H, W)`` of an image.

    Raises:
        BadArgument: (a ValueError) no positive integers, more than `MAX_AXES` of them, a side above
            `MAX_SIDE`, or more than `MAX_VALUES` values in all.
    """
    sides = state_shape(shape)
    if len(sides) > MAX_AXES:
        raise BadArgument("shape", f"{len(sides)} sides by a file", f"at most {MAX_AXES}")
    if max(sides) > MAX_SIDE or math.prod(sides) > MAX_VALUES:
        raise BadArgument(
            "shape", f"{sides} by a file", f"sides up to {MAX_SIDE:,} and {MAX_VALUES:,} values"
        )
    return sides


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{shortened(repr(twice))} stands twice")
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits, at most {MAX_DIGITS} accepted")
    return int(text)


def _children(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()
