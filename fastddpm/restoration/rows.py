"""A chain over a picture that is never whole: rows of it go from step to step, from the top down.

At each step the network sees overlapping tiles whose outputs are blended, as in `fastddpm.restoration.tiles`,
so that a row of the next state needs the rows of this one that a tile reaches, and no others. Each step
therefore begins as soon as the one before is a tile's height ahead, and what is kept is a band of about two
tiles' height for each step of the plan: it grows with the width of the picture, and not with its height. The
numbers are those of the whole picture at once: the same tiles, blended in the same order, on the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from fastddpm.network import unwrapped
from fastddpm.plans.plan import Plan
from fastddpm.restoration.tiles import TILES_AT_ONCE, blend_window, tile_starts
from fastddpm.transfer import to_device
from fastddpm_kernels import Column, reverse_step
from fastddpm_kernels.noise.torch_twin import normal_part

ConditionRows = Callable[[int, int], Tensor]
"""Rows [top, bottom) of the condition, float32 ``(1, Cc, bottom - top, W)``."""


@dataclass
class Band:
    """Rows of a state: float32 ``(B, C, rows, W)``; ``kept``: the predictions of earlier steps, or None."""

    x: Tensor
    kept: Tensor | None


@dataclass(frozen=True)
class Rows:
    """What all steps of a chain have in common.

    Attributes:
        network: takes the condition and the state, one on the other, and the times ``(b,)``.
        plan: its rows are the steps; without dynamic thresholding or Langevin steps.
        seeds: int64 ``(B,)``, on the device.
        shape: ``(C, H, W)`` of the whole; H and W are a tile's or more.
        tile: side of the network's images.
        overlap: pixels that neighbouring tiles share at least.
        condition: of the network, on the host.

    On a card nothing is waited for: the plan is sent once, the condition's rows from page-locked memory.
    """

    network: nn.Module
    plan: Plan
    seeds: Tensor
    shape: tuple[int, int, int]
    tile: int
    overlap: int
    condition: ConditionRows

    def drawn(self, advance: Callable[[int], None]) -> Iterator[Tensor]:
        """The last state from the top down, float32 ``(B, C, rows, W)``; ``advance(1)`` after every row of
        tiles of every step, of which there are ``len(self.plan) * len(self.tops)``."""
        bands = self._noise()
        for k in range(len(self.plan)):
            bands = self._step(bands, k, advance)
        for band in bands:
            yield band.x

    @property
    def tops(self) -> list[int]:
        """First rows of the tiles."""
        return tile_starts(self.shape[1], self.tile, self.overlap)

    @cached_property
    def _sent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The plan on the device: its table, a counter ``(S, B, 2)`` of each row, and its times ``(S,)``."""
        counters = np.zeros((len(self.plan), len(self.seeds), 2), np.int64)
        counters[..., 0] = np.arange(len(self.plan))[:, None]
        values = (np.array(self.plan.table), counters, np.array(self.plan.model_time))
        table, counter, times = (to_device(torch.from_numpy(one), self.seeds.device) for one in values)
        return table, counter, times

    def _noise(self) -> Iterator[Band]:
        plan, (channels, height, width) = self.plan, self.shape
        for top, bottom in pairwise([*self.tops, height]):
            x = self._normal(0, top, bottom)
            size = (plan.kept, len(x), channels, bottom - top, width)
            yield Band(x, torch.zeros(size, device=x.device) if plan.kept else None)

    def _step(self, bands: Iterator[Band], k: int, advance: Callable[[int], None]) -> Iterator[Band]:
        """Bands of the state after row k of the plan, from those before it."""
        device, (_, height, width) = self.seeds.device, self.shape
        table, counter, _ = self._sent
        is_noisy = bool(self.plan.table[k, Column.FROM_NOISE]) and self.plan.stochastic
        held = next(bands)
        total: Tensor | None = None
        weight = torch.zeros(1, 1, self.tile, width, device=device)
        for top, following in pairwise([*self.tops, height]):
            while held.x.shape[2] < self.tile:
                held = _joined(held, next(bands))
            total = self._tiles(held.x[:, :, : self.tile], top, k, total, weight)
            rows = following - top
            done, held = _split(held, rows)
            reverse_step(
                done.x,
                (total[:, :, :rows] / weight[:, :, :rows]).contiguous(),
                table,
                counter[k],
                noise=self._normal(k + 1, top, following)[None] if is_noisy else None,
                kept=done.kept,
                clip=self.plan.clip,
                combine=self.plan.combines,
                divide=self.plan.divides,
                rederive=self.plan.rederives,
            )
            total, weight = _moved_up(total, rows), _moved_up(weight, rows)
            advance(1)
            yield done

    def _tiles(self, x: Tensor, top: int, k: int, total: Tensor | None, weight: Tensor) -> Tensor:
        """Adds a row of tiles to the weighted sum of outputs, which it returns, and to that of weights."""
        batch, width = len(x), x.shape[3]
        condition = to_device(self.condition(top, top + self.tile), x.device, x.dtype)
        seen = torch.cat([condition.expand(batch, -1, -1, -1), x], dim=1)
        window = blend_window(self.tile, self.overlap, x)
        time = self._sent[2][k : k + 1]
        lefts = tile_starts(width, self.tile, self.overlap)
        at_once = max(1, TILES_AT_ONCE // batch)
        for start in range(0, len(lefts), at_once):
            chunk = lefts[start : start + at_once]
            tiles = torch.cat([seen[..., left : left + self.tile] for left in chunk])
            outputs = unwrapped(self.network(tiles, time.expand(len(tiles))))
            if total is None:
                total = outputs.new_zeros((batch, outputs.shape[1], self.tile, width))
            for output, left in zip(outputs.chunk(len(chunk)), chunk, strict=True):
                total[..., left : left + self.tile] += output * window
                weight[..., left : left + self.tile] += window
        assert total is not None
        return total

    def _normal(self, step: int, top: int, bottom: int) -> Tensor:
        """Rows of the noise of the whole."""
        channels, height, width = self.shape
        n = channels * height * width
        planes = [
            normal_part(self.seeds, step, n, (c * height + top) * width, (c * height + bottom) * width)
            for c in range(channels)
        ]
        return torch.stack([plane.view(len(self.seeds), bottom - top, width) for plane in planes], dim=1)


def _joined(first: Band, second: Band) -> Band:
    kept = None
    if first.kept is not None and second.kept is not None:
        kept = torch.cat([first.kept, second.kept], dim=3)
    return Band(torch.cat([first.x, second.x], dim=2), kept)


def _split(band: Band, rows: int) -> tuple[Band, Band]:
    """The first rows and the others, each with memory of its own."""
    parts: Sequence[slice] = (slice(None, rows), slice(rows, None))
    first, second = (
        Band(
            band.x[:, :, part].clone(memory_format=torch.contiguous_format),
            None
            if band.kept is None
            else band.kept[:, :, :, part].clone(memory_format=torch.contiguous_format),
        )
        for part in parts
    )
    return first, second


def _moved_up(images: Tensor, rows: int) -> Tensor:
    """Without its first rows, with as many zeros below."""
    moved = torch.zeros_like(images)
    moved[:, :, : images.shape[2] - rows] = images[:, :, rows:]
    return moved
