"""A list of image files -> uint8 pixels ``(N, C, H, W)`` in memory, or decoded when they are asked for.

Every file is decoded once before anything is returned, so that broken ones are known, all of them, before
work begins.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fastddpm.checks import BadArgument, fitted, shortened

from .dataset import Pixels
from .decoding import Header, decode, read_header

# Threads help because pillow's decoders let go of Python's lock.
WORKERS = 8
BLOCK = 64
"""Files that a thread takes at a time, at most: a future for each of a million files would be memory."""


LISTED = 100
"""Broken files that an error names."""


class BrokenImagesError(ValueError):
    """Image files that cannot be read; ``files`` holds a (name, reason) for each, the message `LISTED`."""

    def __init__(self, files: Sequence[tuple[str, str]], total: int) -> None:
        self.files, self.total = list(files), total
        lines = [f"  {fitted(name, 200)}: {shortened(reason, 200)}" for name, reason in files[:LISTED]]
        if len(files) > LISTED:
            lines.append(f"  and {len(files) - LISTED} more")
        listed = "\n".join(lines)
        super().__init__(
            f"{len(files)} of {total} image files cannot be read:\n{listed}\n"
            "Repair or remove them, or leave them out with skip_broken=True."
        )

    def __reduce__(self) -> tuple[type[BrokenImagesError], tuple[list[tuple[str, str]], int]]:
        """Whole from another process."""
        return type(self), (self.files, self.total)


@dataclass(frozen=True)
class ImageFile:
    """One image: the name that errors show, and where its bytes are."""

    name: str
    read: Callable[[], Path | bytes]


@dataclass(frozen=True)
class LazyPixels:
    """Image files read like a uint8 tensor ``(N, C, H, W)``, each decoded when it is asked for."""

    files: Sequence[ImageFile]
    image_shape: tuple[int, int, int]
    size: int | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return len(self.files), *self.image_shape

    def __getitem__(self, indices: Tensor, /) -> Tensor:
        """uint8 ``(B, C, H, W)``; BrokenImagesError if a file has changed since it was checked."""
        chosen = [self.files[i] for i in indices.tolist()]
        pixels = np.empty((len(chosen), *self.image_shape), np.uint8)
        broken = _decode_all(chosen, self.image_shape, self.size, pixels)
        if broken:
            raise BrokenImagesError([(chosen[i].name, reason) for i, reason in broken.items()], len(chosen))
        return torch.from_numpy(pixels)


@dataclass(frozen=True)
class Gathered:
    """Pixels of the files that can be read, which of the given files they are, and names of the others."""

    pixels: Pixels
    kept: list[int]
    skipped: list[str]


def gather(
    files: Sequence[ImageFile],
    *,
    size: int | None,
    channels: int | None,
    skip_broken: bool,
    memory_limit: int,
) -> Gathered:
    """Decodes every file once; keeps the pixels if they fit into ``memory_limit`` bytes.

    Args:
        files: one or more.
        size: as in `decode`; None: all files must have one size.
        channels: 1, 3, or None: 1 if all files are grey, else 3.
        skip_broken: leave out files that cannot be read, with one warning that names them.
        memory_limit: bytes of uint8 pixels above which files are decoded at every use instead.

    Raises:
        ValueError: files of several sizes and no ``size``; no file that can be read.
        BrokenImagesError: files that cannot be read, without ``skip_broken``.
    """
    headers, broken = _read_headers(files, upright=size is None)
    if len(broken) == len(files):
        raise BrokenImagesError([(files[i].name, broken[i]) for i in sorted(broken)], len(files))
    height, width = (size, size) if size is not None else _common_size(files, headers)
    if channels is None:
        channels = 1 if all(header.grey for header in headers.values()) else 3
    shape = (channels, height, width)

    readable = sorted(headers)
    fits = len(readable) * channels * height * width <= memory_limit
    store = np.empty((len(readable), *shape), np.uint8) if fits else None
    undecodable = _decode_all([files[i] for i in readable], shape, size, store)
    broken |= {readable[row]: reason for row, reason in undecodable.items()}
    listed = [(files[i].name, broken[i]) for i in sorted(broken)]
    if listed and (not skip_broken or len(listed) == len(files)):
        raise BrokenImagesError(listed, len(files))
    if listed:
        names = "".join(f"\n  {name}: {reason}" for name, reason in listed)
        warnings.warn(f"{len(listed)} of {len(files)} image files left out:{names}", stacklevel=2)

    kept = [i for i in readable if i not in broken]
    if store is None:
        return Gathered(LazyPixels([files[i] for i in kept], shape, size), kept, [n for n, _ in listed])
    if undecodable:
        store = np.delete(store, list(undecodable), axis=0)
    return Gathered(torch.from_numpy(store), kept, [name for name, _ in listed])


def _read_headers(files: Sequence[ImageFile], upright: bool) -> tuple[dict[int, Header], dict[int, str]]:
    headers: dict[int, Header] = {}

    def read(i: int) -> None:
        headers[i] = read_header(files[i].read(), upright)

    return headers, _for_each(len(files), read)


def _decode_all(
    files: Sequence[ImageFile],
    shape: tuple[int, int, int],
    size: int | None,
    store: npt.NDArray[np.uint8] | None,
) -> dict[int, str]:
    """Decodes files into the rows of ``store`` if there is one; what is wrong with those that are broken."""

    def decode_one(i: int) -> None:
        pixels = decode(files[i].read(), shape[0], size)
        if pixels.shape != shape:
            raise ValueError(f"decodes to {pixels.shape}, {shape} expected")
        if store is not None:
            store[i] = pixels

    return _for_each(len(files), decode_one)


def _for_each(count: int, work: Callable[[int], None]) -> dict[int, str]:
    """Calls ``work(i)`` for i in 0 .. count-1 on some threads; the reasons of those that failed, by i.

    On one thread in a worker process of torch's, of which there are as many as somebody wanted.
    """
    failed: dict[int, str] = {}
    workers = 1 if get_worker_info() is not None else min(WORKERS, os.cpu_count() or 1)
    size = min(BLOCK, count // workers + 1)

    def block(start: int) -> None:
        for i in range(start, min(start + size, count)):
            try:
                work(i)
            except MemoryError:
                raise
            except Exception as error:  # a row of a damaged data set raises what it trips its library over
                kind = "ValueError" if isinstance(error, ValueError) else type(error).__name__
                failed[i] = f"{kind}: {error}"

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(block, range(0, count, size)):
            pass
    return dict(sorted(failed.items()))


def _common_size(files: Sequence[ImageFile], headers: dict[int, Header]) -> tuple[int, int]:
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, header in sorted(headers.items()):
        by_size.setdefault((header.height, header.width), []).append(i)
    if len(by_size) > 1:
        commonest = sorted(by_size, key=lambda s: -len(by_size[s]))[:3]
        examples = ", ".join(
            f"{h}x{w} ({len(by_size[h, w])}, such as {files[by_size[h, w][0]].name})" for h, w in commonest
        )
        raise BadArgument(
            "data",
            f"images of {len(by_size)} sizes, height x width: {examples},",
            "one size, or size= to scale and crop them,",
        )
    ((height, width),) = by_size
    return height, width
