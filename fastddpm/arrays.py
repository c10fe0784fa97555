"""Arrays of npz files from outside: what their headers say is held to the file before it is believed."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastddpm.checks import shortened
from fastddpm.inputs import InputError, open_regular

Numbers: TypeAlias = npt.NDArray[Any]
"""Of whatever dtype a file has."""
MAX_INFLATED = 2**30
"""Bytes that a compressed array may become; stored ones are as large as the file says."""
_PIECE = 2**20


def read_array(path: Path, name: str) -> Numbers:
    """One array of numbers of an npz file, as `numpy.savez` or `numpy.savez_compressed` wrote it.

    Args:
        path: a regular file.
        name: of the array, such as ``arr_0``.

    Raises:
        InputError: no such file or array; damaged; an array of objects, which would be unpickled; one whose
            header says another size than its entry has, or a compressed one of more than `MAX_INFLATED`
            bytes.
    """
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _array(archive, f"{name}.npy", path.stat().st_size)
        except MemoryError:
            raise
        except Exception as error:  # zipfile raises whatever a damaged file trips it over
            reason = shortened(str(error), 160) or type(error).__name__
            raise InputError(f"{path}: no {name} can be read from it ({reason})") from error


def array_names(path: Path) -> set[str]:
    """Names of the arrays of an npz file, none of which is read.

    Raises:
        InputError: no such file; damaged.
    """
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        except MemoryError:
            raise
        except Exception as error:  # zipfile raises whatever a damaged file trips it over
            reason = shortened(str(error), 160) or type(error).__name__
            raise InputError(f"{path}: not readable as npz ({reason})") from error


def _array(archive: zipfile.ZipFile, name: str, size: int) -> Numbers:
    entry = archive.getinfo(name)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compressed in a way that NumPy does not")
    most = size if entry.compress_type == zipfile.ZIP_STORED else MAX_INFLATED
    if entry.file_size > most:
        raise ValueError(f"{entry.file_size:,} bytes, at most {most:,} accepted")
    with archive.open(entry) as stream:
        shape, fortran, dtype = _header(stream)
        if dtype.kind not in "biuf":
            raise ValueError(f"holds {dtype}, numbers accepted")
        declared = math.prod(shape) * dtype.itemsize
        if declared > entry.file_size:
            raise ValueError(f"its header says {declared:,} bytes, the file has {entry.file_size:,}")
        content = np.empty(declared, np.uint8)
        _fill(stream, content)
    return content.view(dtype).reshape(shape, order="F" if fortran else "C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of the npy format, (1, 0) or (2, 0) accepted")
    shape, fortran, dtype = readers[version](stream)
    if any(side < 0 for side in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype


def _fill(stream: IO[bytes], target: npt.NDArray[np.uint8]) -> None:
    done = 0
    while done < len(target):
        piece = stream.read(min(_PIECE, len(target) - done))
        if not piece:
            raise ValueError(f"ends after {done:,} of {len(target):,} bytes")
        target[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    if stream.read(1):
        raise ValueError("is longer than its header says")
