"""How fast the kernels move memory on a card, beside a copy of as many bytes, both in the same rounds.

Calls rotate over buffers of their own, more of them together than any card's second-level cache holds, so
that small maps are read from memory as well; on a card a rotation is one graph, since the host could not
launch small calls as fast as they run. Serves `fastddpm doctor` and scripts/card.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator

import torch

from fastddpm.doctor import movements
from fastddpm.doctor.movements import Call, Movement
from fastddpm.timing import Effort, interleaved, make_clock, replayed

BEYOND_ANY_CACHE = 256 * 2**20
"""Twice the largest second-level cache of a card, 126 MB (NVIDIA's B200)."""

EFFORT = Effort(0.1, least=5, most=60, warm_up=1)


@dataclasses.dataclass(frozen=True)
class Rate:
    """What was measured of a movement.

    Attributes:
        name: of the movement.
        n_bytes: that a call must move.
        seconds: of a call, the median of the rounds.
        copied: seconds of a copy of as many bytes, in the same rounds.
    """

    name: str
    n_bytes: int
    seconds: float
    copied: float

    @property
    def bytes_per_second(self) -> float:
        """What a call reads and writes."""
        return self.n_bytes / self.seconds

    @property
    def share(self) -> float:
        """Of the copy's bandwidth."""
        return self.copied / self.seconds


def working_set(device: torch.device) -> int:
    """Bytes that a rotation visits at least: twice what the device's second-level cache holds, or any's."""
    if device.type != "cuda":
        return BEYOND_ANY_CACHE
    held = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    return max(2 * int(held), BEYOND_ANY_CACHE)


def rotation(movement: Movement, together: int) -> tuple[Call, int]:
    """One call after the other, each on buffers of its own, and how many.

    They visit ``together`` bytes before one is visited again, and are two at least. What they return is kept
    until the last has run: freed before, it would be the memory that the next one writes to.
    """
    calls = [movement.make() for _ in range(max(2, -(-together // movement.footprint)))]
    return lambda: [call() for call in calls], len(calls)


def measure(movement: Movement, device: torch.device, together: int, effort: Effort = EFFORT) -> Rate:
    """A movement beside the copy of as many bytes; ``together`` as of `rotation`."""
    copied = movements.copy(movement.n_bytes, device)
    runs: dict[str, Call] = {}
    counts: dict[str, int] = {}
    with torch.no_grad():
        for name, one in (("kernel", movement), ("copy", copied)):
            run, counts[name] = rotation(one, together)
            runs[name] = replayed(run, warm_up=1) if device.type == "cuda" else run
        times = interleaved(runs, make_clock(device), effort)
    seconds = {name: statistics.median(each.wall) / counts[name] for name, each in times.items()}
    return Rate(
        movement.name,
        movement.n_bytes,
        seconds["kernel"],
        seconds["copy"] * movement.n_bytes / copied.n_bytes,
    )


def examined(device: torch.device) -> Iterator[Movement]:
    """What `fastddpm doctor` measures: a copy, and each of the four kernels."""
    shape = (256, 3, 128, 128)
    yield movements.copy(2 * 4 * 256 * 3 * 128 * 128, device)
    yield from movements.steps(shape, device)
    yield from movements.training(shape, device)
    yield from movements.norms(movements.CIFAR10_MAPS, 64, device)
