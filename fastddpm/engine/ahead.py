"""Noise of several rows drawn at once, where Python runs a step on a CPU.

Most of a small draw's time goes by between its hundred operators. A number of the noise spec depends on its
seed, row and repeat alone, so that it is the same whenever it is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastddpm_kernels import normal

AT_ONCE = 2**17
"""Numbers in one draw at most; from there on memory takes what the host no longer does."""
MOST_ROWS = 32
NOTHING = range(0), 0


def rows_at_once(shape: tuple[int, ...]) -> int:
    """Rows to draw together for states ``(B, ...)``; 0 where each is better drawn by itself."""
    rows = min(MOST_ROWS, AT_ONCE // math.prod(shape))
    return rows if rows > 1 else 0


class DrawnAhead:
    """Keeps a ring filled with the noise of the rows that come, of each sample its own.

    Args:
        seeds: int64 ``(B,)``; `forget` is to be called where they become others.
        ring: float32 ``(K, B, ...)``; row k of a sample's plan has the slot ``k % K``.
    """

    def __init__(self, seeds: Tensor, ring: Tensor) -> None:
        self._seeds, self._ring = seeds, ring
        self._slots = torch.arange(len(ring))
        # Of each sample the rows whose noise is there, and their repeat.
        self._held = [NOTHING] * len(seeds)

    def forget(self, places: Sequence[int] | None = None) -> None:
        """What is in the ring is of no use any more, of some samples or of all."""
        for place in range(len(self._seeds)) if places is None else places:
            self._held[place] = NOTHING

    def noise_of(self, counter: Tensor, base: Tensor | None = None) -> Tensor:
        """The noise of each sample at its row and repeat, ``(1, B, C, H, W)``; of the ring's own memory
        where all are at one row.

        Args:
            counter: int64 ``(B, 2)``, of each sample the table's row and the repeat.
            base: int64 ``(B,)``, the table's row where each sample's plan begins; None: 0.
        """
        rows, repeats = counter.t().tolist()
        if base is not None:
            rows = [row - first for row, first in zip(rows, base.tolist(), strict=True)]
        absent = [
            place
            for place, (row, repeat) in enumerate(zip(rows, repeats, strict=True))
            if row not in self._held[place][0] or repeat != self._held[place][1]
        ]
        if absent:
            self._draw(absent, [rows[place] for place in absent], [repeats[place] for place in absent])
        slots = [row % len(self._ring) for row in rows]
        if slots.count(slots[0]) == len(slots):
            return self._ring[slots[0]][None]
        return self._ring[slots, torch.arange(len(slots))][None]

    def _draw(self, places: list[int], rows: list[int], repeats: list[int]) -> None:
        """Puts the noise of the next rows of some samples into their slots."""
        length, here = len(self._ring), torch.tensor(rows)
        # Step k + 1 of the noise spec is plan row k.
        steps = here + 1 + (self._slots[:, None] - here) % length
        drawn = normal(
            self._seeds[places].repeat(length),
            steps.flatten(),
            self._ring.shape[2:],
            repeat=torch.tensor(repeats).repeat(length),
        )
        self._ring[:, places] = drawn.view(length, len(places), *self._ring.shape[2:])
        for place, row, repeat in zip(places, rows, repeats, strict=True):
            self._held[place] = range(row, row + length), repeat
