"""Noise of several rows drawn at once, where Python runs a step on a CPU.

Most of a small draw's time goes by between its hundred operators. A number of the noise spec depends on its
seed, row and repeat alone, so that it is the same whenever it is drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastddpm_kernels import normal

AT_ONCE = 2**17
"""Numbers in one draw at most; from there on memory takes what the host no longer does."""
MOST_ROWS = 32


def rows_at_once(shape: tuple[int, ...]) -> int:
    """Rows to draw together for states ``(B, ...)``; 0 where each is better drawn by itself."""
    rows = min(MOST_ROWS, AT_ONCE // math.prod(shape))
    return rows if rows > 1 else 0


class DrawnAhead:
    """Keeps the ring that steps read filled with the noise of the rows that come.

    Args:
        seeds: int64 ``(B,)``; `forget` is to be called where they become others.
        ring: float32 ``(K, B, ...)``; plan row k has the slot ``k % K``.
    """

    def __init__(self, seeds: Tensor, ring: Tensor) -> None:
        self._seeds, self._ring = seeds, ring
        self._slots = torch.arange(len(ring))
        self.forget()

    def forget(self) -> None:
        """What is in the ring is of no use any more."""
        self._first, self._repeat = -len(self._ring), 0

    def fill(self, counter: Tensor) -> None:
        """Has the noise of plan row ``counter[0]`` and repeat ``counter[1]`` in its slot."""
        row, repeat = counter.tolist()
        rows = len(self._ring)
        if repeat == self._repeat and self._first <= row < self._first + rows:
            return
        # Step k + 1 of the noise spec is plan row k.
        steps = row + 1 + (self._slots - row) % rows
        batch = len(self._seeds)
        drawn = normal(
            self._seeds.repeat(rows),
            steps.repeat_interleave(batch),
            self._ring.shape[2:],
            repeat=repeat,
        )
        self._ring.copy_(drawn.view_as(self._ring))
        self._first, self._repeat = row, repeat
