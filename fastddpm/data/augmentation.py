"""Random flips and shifts, drawn per sample from its global ordinal and the run's seed.

A sample's draw depends on (seed, ordinal) alone: not on its batch, the process or what was drawn before. The
words are those of noise spec v1: key = seed, step = ordinal & 0xffffffff, stream 2, repeat = ordinal >> 32,
block 1. Block 0 of the same counter is left to t and class dropout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, whole
from fastddpm.randomness import check_ordinals
from fastddpm.signatures import check_fields, checked
from fastddpm_kernels.noise import words

from .order import MAX_ORDINAL, STREAM

BLOCK = 1


@dataclass(frozen=True)
class Augmentation:
    """What is done to an image at random, the flip first.

    Args:
        flip: mirror left and right, for half of the samples.
        shift: move by an integer number of pixels in [-shift, shift] down and across, each value as likely as
            the others; the edge's pixels are repeated into what is uncovered.

    Raises:
        ValueError: a negative shift.
    """

    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        whole("shift", self.shift, least=0)

    def draws(self, ordinals: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """(flipped bool, down int64, across int64), each ``(B,)``, for int64 ordinals ``(B,)``.

        Raises:
            ValueError: the seed or an ordinal outside [0, 2**63).
        """
        whole("seed", seed, least=0, most=MAX_ORDINAL)
        if (ordinals < 0).any():
            raise BadArgument("ordinals", str(int(ordinals.min())), "integers in [0, 2**63)")
        lanes = words(
            torch.full_like(ordinals, seed), ordinals & 0xFFFFFFFF, 1, stream=STREAM, repeat=ordinals >> 32
        )
        flip_word, down_word, across_word, _ = (lane[:, BLOCK] for lane in lanes)
        values = 2 * self.shift + 1
        flipped = (flip_word >> 31).bool() & self.flip
        # word * values / 2**32, rounded down: 0 .. values - 1.
        return flipped, (down_word * values >> 32) - self.shift, (across_word * values >> 32) - self.shift

    @checked
    def apply(self, images: Tensor, ordinals: Tensor, seed: int) -> Tensor:
        """uint8 ``(B, C, H, W)`` -> the same, changed by each sample's draw. ``images`` stay as they are."""
        if images.ndim != 4:
            raise BadArgument("images", f"shape {tuple(images.shape)}", "(B, C, H, W)")
        check_ordinals(ordinals, len(images))
        flipped, down, across = self.draws(ordinals, seed)
        channels, height, width = images.shape[1:]
        rows = (torch.arange(height) - down[:, None]).clamp(0, height - 1)
        columns = (torch.arange(width) - across[:, None]).clamp(0, width - 1)
        columns = torch.where(flipped[:, None], width - 1 - columns, columns)
        return images[
            torch.arange(len(images))[:, None, None, None],
            torch.arange(channels)[:, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
