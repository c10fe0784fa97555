"""npz files that are the same bytes whenever they are written: entries in order, with a fixed date."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Part = tuple[tuple[int, ...], np.dtype[np.generic], Iterable[Array]]
"""Shape and dtype of an array, and its pieces along the first axis."""

# The oldest date that a zip file can hold, which NumPy writes too.
DATE = (1980, 1, 1, 0, 0, 0)


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Writes arrays, uncompressed."""
    write_parts(path, {name: (array.shape, array.dtype, [array]) for name, array in arrays.items()})


def write_parts(path: Path, parts: Mapping[str, Part]) -> None:
    """Writes arrays that come in pieces, of which one is in memory at a time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, (shape, dtype, pieces) in parts.items():
            entry = zipfile.ZipInfo(f"{name}.npy", DATE)
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for piece in pieces:
                    file.write(np.ascontiguousarray(piece, dtype).tobytes())
