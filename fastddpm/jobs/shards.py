"""Shards on disk: npz arrays, folders of PNGs, or tar files of WebDataset; whole or not there; no timestamps.

npz         00000.npz       arr_0 uint8 (N, H, W, C), arr_1 int64 labels when there are, seeds int64;
                            of states that are no images arr_0 float32 (N, ...)
png         00000/          000123.png, named by its seed; labels.csv when there are labels
webdataset  00000.tar       000123.png, and 000123.cls with the label when there is one
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastddpm.arrays import read_array
from fastddpm.files import replacing, replacing_folder
from fastddpm.images import Pixels
from fastddpm.inputs import open_regular
from fastddpm.jobs.npz import Array, write_npz
from fastddpm.pictures import PictureError, opened

Int64 = npt.NDArray[np.int64]
Samples = npt.NDArray[np.uint8 | np.float32]
"""uint8 ``(N, H, W, C)``, or, of states that are no images, float32 ``(N, ...)``."""

SUFFIXES = {"npz": ".npz", "png": "", "webdataset": ".tar"}
FORMATS = tuple(SUFFIXES)
PICTURE_CHANNELS = (1, 3, 4)
LABELS = "labels.csv"


def shard_name(index: int, format: str) -> str:
    """``00012.npz``, ``00012`` or ``00012.tar``."""
    return f"{index:05d}{SUFFIXES[format]}"


def write_shard(path: Path, format: str, samples: Samples, seeds: Int64, labels: Int64 | None) -> None:
    """Writes a shard under a temporary name and renames it; one that is there is replaced.

    Args:
        path: named by `shard_name`, in a folder that is there.
        format: ``npz``, ``png`` or ``webdataset``.
        samples: uint8 ``(N, H, W, C)``; for ``npz`` also float32 ``(N, ...)``.
        seeds: int64 ``(N,)``.
        labels: int64 ``(N,)``, or None.

    Raises:
        OSError: a full disk, a folder that cannot be written.
    """
    if format == "npz":
        arrays: dict[str, Array] = {"arr_0": samples}
        if labels is not None:
            arrays["arr_1"] = labels
        arrays["seeds"] = seeds
        with replacing(path) as temporary:
            write_npz(temporary, arrays)
        return
    pixels = np.asarray(samples, dtype=np.uint8)
    if format == "png":
        _write_folder(path, lambda folder: _write_pictures(folder, pixels, seeds, labels))
    else:
        with replacing(path) as temporary:
            _write_tar(temporary, pixels, seeds, labels)


def read_samples(path: Path, format: str, seeds: Int64) -> Samples:
    """What a job wrote into a shard, in its order: images, as of `read_shard`, or float32 ``(N, ...)``.

    Args:
        path: of the shard.
        format: likewise.
        seeds: int64 ``(N,)``, those of the shard, as they were given.

    Raises:
        ValueError: as of `read_shard`.
    """
    if format == "png":
        return read_shard(path, format)[np.argsort(np.argsort(seeds))]
    if format != "npz":
        return read_shard(path, format)
    samples: Samples = read_array(path, "arr_0")
    fits = samples.dtype == np.float32 and samples.ndim > 1
    return samples if fits else _checked_pixels(path, samples)


def read_shard(path: Path, format: str) -> Pixels:
    """The images of a shard in its order, of a folder in that of their seeds, uint8 ``(N, H, W, C)``.

    Raises:
        ValueError: not a shard, damaged, or with images of several sizes; it names the file.
    """
    if format == "npz":
        return _checked_pixels(path, read_array(path, "arr_0"))
    if format == "png":
        pictures = [_decoded(file, str(file)) for file in _in_order(path) if file.suffix == ".png"]
    else:
        pictures = [_decoded(content, f"{path}: {name}") for name, content in _members(path)]
    if len({picture.shape for picture in pictures}) != 1:
        raise ValueError(f"{path}: {len(pictures)} images of several sizes, one or more of one size accepted")
    return np.stack(pictures)


def _checked_pixels(path: Path, values: Array) -> Pixels:
    if values.dtype != np.uint8 or values.ndim != 4:
        raise ValueError(f"{path}: arr_0 {values.dtype} {values.shape}, uint8 (N, H, W, C) accepted")
    pixels: Pixels = values.view(np.uint8)
    return pixels


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the PNGs in a tar file; of plain, uncompressed entries, which are no larger."""
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for entry in archive:
                if entry.name.endswith(".png"):
                    opened_entry = None if entry.issparse() or entry.islnk() else archive.extractfile(entry)
                    if opened_entry is None:
                        raise ValueError(f"{path}: {entry.name!r} in it is no plain file")
                    yield entry.name, opened_entry.read()
    except (tarfile.TarError, OSError, OverflowError, UnicodeError) as error:
        raise ValueError(f"{path}: not a complete tar file ({error})") from error


def digest(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a shard: of the file, or of the names and contents of a folder's files."""
    hashed, size = hashlib.sha256(), 0
    for file in _in_order(path) if path.is_dir() else [path]:
        if path.is_dir():
            hashed.update(f"{file.name} {file.stat().st_size}\n".encode())
        with open_regular(file) as content:
            while piece := content.read(2**20):
                hashed.update(piece)
                size += len(piece)
    return size, hashed.hexdigest()


def _in_order(folder: Path) -> list[Path]:
    """The files of a shard by the seed that names them, the longer name after the shorter."""
    return sorted(folder.iterdir(), key=lambda file: (len(file.name), file.name))


def _write_pictures(folder: Path, pixels: Pixels, seeds: Int64, labels: Int64 | None) -> None:
    names = [f"{seed:06d}.png" for seed in seeds]
    for name, image in zip(names, pixels, strict=True):
        (folder / name).write_bytes(_encoded(image))
    if labels is not None:
        with (folder / LABELS).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                [("file", "class"), *zip(names, labels.tolist(), strict=True)]
            )


def _write_tar(path: Path, pixels: Pixels, seeds: Int64, labels: Int64 | None) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for i, seed in enumerate(seeds):
            _add(archive, f"{seed:06d}.png", _encoded(pixels[i]))
            if labels is not None:
                _add(archive, f"{seed:06d}.cls", str(labels[i]).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # its time, owner and group are 0
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    # A thousand pictures would wait a second for the disk. What a power cut spoils is known by its checksum
    # and drawn again.
    with replacing_folder(path, durable=False) as temporary:
        fill(temporary)
        # A folder takes the name of an empty one only. What stands there is of no record, or of another
        # process that drew the same pixels.
        if path.exists():
            _check_is_shard(path, {file.name for file in temporary.iterdir()})
            shutil.rmtree(path, ignore_errors=True)


def _check_is_shard(path: Path, names: set[str]) -> None:
    """FileExistsError where a folder holds something else than some files of a shard."""
    others = sorted(set(os.listdir(path)) - names) if path.is_dir() else [path.name]
    if others:
        raise FileExistsError(errno.EEXIST, f"{path} holds {others[0]}, which is of no shard and stays")


def _encoded(image: Pixels) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="PNG")
    return file.getvalue()


def _decoded(content: Path | bytes, name: str) -> Pixels:
    with opened(content, name, formats=("PNG",)) as image:
        if image.mode not in ("L", "RGB", "RGBA"):
            raise PictureError(f"{name}: a PNG of mode {image.mode}, L, RGB or RGBA accepted")
        pixels: Pixels = np.array(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
