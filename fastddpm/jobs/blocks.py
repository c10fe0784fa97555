"""Seeds cut into shards, and shards into blocks of one fixed size, which are what a network sees at once.

Convolutions may round otherwise in another batch size. So that a seed's pixels do not depend on who draws
them or what was drawn before, its block holds the same seeds in the same places every time; the last one is
padded.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument, check_count, whole

Int64 = npt.NDArray[np.int64]


LARGEST = 2**24
"""Images in a shard or a block: more would not fit into a file or a machine."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The seeds of a job in their order, and where they are cut.

    Attributes:
        seeds: int64 [N], each once, in [0, 2**63).
        labels: int64 [N], or None without classes.
        batch_size: seeds in a block.
        shard_size: seeds in a shard: a multiple of ``batch_size``.
    """

    seeds: Int64
    labels: Int64 | None
    batch_size: int
    shard_size: int

    @classmethod
    def of(
        cls,
        seeds: Sequence[int] | npt.ArrayLike,
        labels: int | Sequence[int] | npt.ArrayLike | None,
        batch_size: int,
        shard_size: int,
    ) -> Blocks:
        """The same from what a caller gives: a label for all, or one each.

        Raises:
            ValueError: naming the argument, what was given and what is accepted.
        """
        for name, size in (("batch_size", batch_size), ("shard_size", shard_size)):
            whole(name, size, least=1, most=LARGEST)
        if shard_size % batch_size:
            raise BadArgument("shard_size", str(shard_size), f"a multiple of the batch size, {batch_size}")
        every = _integers("seeds", seeds)
        if not len(every) or every.min() < 0:
            raise BadArgument("seeds", reprlib.repr(seeds), "at least one integer in [0, 2**63)")
        values, counts = np.unique(every, return_counts=True)
        if counts.max() > 1:
            raise BadArgument("seeds", f"{values[counts.argmax()]} more than once", "every seed once")
        if labels is None:
            return cls(every, None, batch_size, shard_size)
        each: Any = [labels] * len(every) if np.ndim(labels) == 0 else labels
        given = _integers("class_labels", each)
        check_count("class_labels", len(given), len(every), of="seeds", accepted="one for all, or one each,")
        return cls(every, given, batch_size, shard_size)

    def __len__(self) -> int:
        """How many shards there are."""
        return -(-len(self.seeds) // self.shard_size)

    def shard(self, index: int) -> tuple[Int64, Int64 | None]:
        """Seeds and labels of a shard; the last may be shorter."""
        part = slice(index * self.shard_size, (index + 1) * self.shard_size)
        return self.seeds[part], None if self.labels is None else self.labels[part]

    def of_shard(self, index: int) -> Iterator[tuple[Int64, Int64 | None, int]]:
        """Blocks of a shard: seeds and labels of exactly ``batch_size``, and how many of them are wanted."""
        for places, count in self.places(index):
            yield self.seeds[places], None if self.labels is None else self.labels[places], count

    def places(self, index: int) -> Iterator[tuple[Int64, int]]:
        """The same blocks by the places of their seeds in the job."""
        first = index * self.shard_size
        end = min(first + self.shard_size, len(self.seeds))
        for start in range(first, end, self.batch_size):
            places = np.minimum(np.arange(start, start + self.batch_size), end - 1)
            yield places, min(self.batch_size, end - start)


def as_ranges(values: Sequence[int] | Int64) -> str:
    """[0, ..., 9, 20] -> ``0-9,20``, in the given order."""
    every = np.asarray(values, np.int64)
    starts = np.flatnonzero(np.diff(every, prepend=every[0] - 2) != 1)
    ends = np.append(starts[1:], len(every)) - 1
    pairs = zip(every[starts].tolist(), every[ends].tolist(), strict=True)
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in pairs)


def _integers(name: str, values: Sequence[int] | npt.ArrayLike) -> Int64:
    try:
        array = np.asarray(values)
        if array.ndim != 1 or array.dtype.kind not in "iu" or (len(array) and int(array.max()) >= 2**63):
            raise OverflowError
        return array.astype(np.int64)
    except (OverflowError, ValueError, TypeError):
        raise BadArgument(name, reprlib.repr(values), "a flat list of integers below 2**63") from None
