"""How a sound file is damaged, drawn by hypothesis: bits, cuts, splices, and lies in headers."""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
import zlib
from typing import Any

from hypothesis import strategies as st

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
NAMES = ("../x", "/etc/passwd", "", ".", "..", "a/b", "a\\b", "\0", "\ud800", "x" * 5000)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 10**6 + 1, 10**9, 2**31, 2**63, 10**18, -(2**63), 10**30),
    *(0.5, -1.0, 1e308, float("inf"), float("nan"), [], {}, [[]], [0], [-1, 8, 8], [10**9] * 3, [1] * 1000),
    *("a", {"a": 1}, [None], ["a"], [0.5], [10**6] * 20, *NAMES),
)
RAW_JSON = (
    "[" * 100_000,
    '{"a":' * 50_000,
    '"' + "//" * 50_000,
    '/"' * 50_000,
    '{"a": 1, "a": 2}',
    '{"a": ' + "9" * 10_000 + "}",
    "null",
    "[]",
    '"a"',
    "{}",
    '{"a": -Infinity}',
)
NPY_HEADERS = (
    "{'descr': '|u1', 'fortran_order': False, 'shape': (100000000000,), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8, 1), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': [('a', '<u4')], 'fortran_order': False, 'shape': (1, 1, 1, 1), }",
    "{'descr': '<f8', 'fortran_order': True, 'shape': (2, 8, 8, 1), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 8, 8, 1), }",
    "(" * 5000,
)


def damaged(draw: Any, content: bytes, other: bytes, suffix: str) -> bytes:
    """A file's content, damaged; ``draw`` is that of ``st.data()``, ``other`` another file to splice.

    JSON and archives are taken apart in half of the cases, and put together with a lie in them.
    """
    special = {".json": _json, ".npz": _archive, ".pth": _archive, ".safetensors": _safetensors, ".png": _png}
    if suffix in special and draw(st.booleans()):
        try:
            return special[suffix](draw, content)
        except (ValueError, zipfile.BadZipFile):  # the legacy format of torch is no archive
            pass
    for _ in range(draw(st.integers(1, 3))):
        content = _bytes(draw, content, other)
    return content


def _bytes(draw: Any, content: bytes, other: bytes) -> bytes:
    if not content:
        return other[: draw(st.integers(0, 100))]
    at = draw(st.integers(0, len(content) - 1))
    end = min(len(content), at + draw(st.integers(1, 64)))
    how = draw(st.sampled_from(("bit", "number", "cut", "remove", "repeat", "splice", "insert", "head")))
    if how == "bit":
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    if how in ("number", "head"):
        width = draw(st.sampled_from((1, 2, 4, 8)))
        order = draw(st.sampled_from(("little", "big")))
        number = (draw(st.sampled_from(NUMBERS)) % 2 ** (8 * width)).to_bytes(width, order)
        at = at % 64 if how == "head" else at
        return content[:at] + number + content[at + width :]
    if how == "cut":
        return content[:at]
    if how == "remove":
        return content[:at] + content[end:]
    if how == "repeat":
        return content[:end] + content[at:]
    if how == "splice":
        start = draw(st.integers(0, max(0, len(other) - 1)))
        return content[:at] + other[start : start + 256] + content[end:]
    return content[:at] + draw(st.binary(max_size=32)) + content[at:]


def _json(draw: Any, content: bytes) -> bytes:
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(RAW_JSON)).encode()
    return json.dumps(_swapped(draw, json.loads(content))).encode()


def _swapped(draw: Any, document: Any) -> Any:
    """The document with a field replaced, removed or added, anywhere in it."""
    for _ in range(draw(st.integers(1, 2))):
        node = document
        while isinstance(node, (dict, list)) and node:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            if isinstance(node[key], (dict, list)) and node[key] and draw(st.integers(0, 3)):
                node = node[key]
                continue
            how = draw(st.integers(0, 9))
            if how == 0:
                del node[key]
            elif how == 1 and isinstance(node, dict):
                node[draw(st.text(max_size=8))] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            else:
                node[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
            break
    return document


def _archive(draw: Any, content: bytes) -> bytes:
    """An archive with one entry damaged, emptied, compressed or of another header; its checksums fit."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = draw(st.sampled_from(sorted(entries)))
    how = draw(st.sampled_from(("bytes", "bytes", "bytes", "bomb", "empty", "header", "missing")))
    if how == "bytes":
        entries[name] = _bytes(draw, entries[name], b"")
    elif how == "bomb":
        entries[name] = entries[name][:128] + bytes(draw(st.sampled_from((10**4, 10**7))))
    elif how == "empty":
        entries[name] = b""
    elif how == "header":
        text = draw(st.sampled_from(NPY_HEADERS)).ljust(118).encode() + b"\n"
        entries[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + entries[name][128:]
    else:
        del entries[name]
    kind = zipfile.ZIP_DEFLATED if draw(st.integers(0, 3)) == 0 or how == "bomb" else zipfile.ZIP_STORED
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", kind) as archive:
        for entry, value in entries.items():
            archive.writestr(entry, value)
    return target.getvalue()


def _safetensors(draw: Any, content: bytes) -> bytes:
    length = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(_swapped(draw, json.loads(content[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _png(draw: Any, content: bytes) -> bytes:
    """A PNG whose header says another size or depth, with a checksum that fits."""
    sides = st.sampled_from((0, 1, 7, 5000, 13_000, 2**16, 2**31 - 1))
    body = struct.pack(">II", draw(sides), draw(sides)) + bytes(
        (draw(st.sampled_from((1, 8, 16, 3))), draw(st.integers(0, 7)), *content[26:29])
    )
    chunk = b"IHDR" + body
    return content[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]
