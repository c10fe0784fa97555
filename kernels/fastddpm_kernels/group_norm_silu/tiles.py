"""How a feature map is cut into tiles of channels and pixels, a program each.

A tile is BLOCK_CHANNELS channels of GROUPS groups by BLOCK_PIXELS pixels: powers of two, masked where the map
is not. A tile that holds a whole group normalises it in one pass. The rules are fixed, the same for every
card, so that a result does not depend on where it was computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_TILE = 16384
"""Elements of a one-pass tile: 512 threads hold 32 float32 values each."""

LARGEST_BACKWARD_TILE = 8192
"""Of the backward one, which holds two values of every element."""

SMALLEST_TILE = 1024
"""Elements of a tile below which it takes in another group."""

SPLIT_TILE = 4096
"""Elements of a tile where a group is split."""

FULL_CARD = 256
"""Programs that fill a card: about two per multiprocessor (an A100 has 108, an H100 132)."""

PER_THREAD = {"full": 32, "small": 8, "backward": 16}
"""Elements of a thread. What a thread computes besides its elements (addresses, vectors, sums over the
others) is some 300 instructions: 32 elements share them where programs fill the card. In a small batch a
multiprocessor has one program, and more threads hide more of its waiting; the backward kernel would need 128
registers with 32."""

MOST_THREADS = 512
"""Of a program."""

WORTH_SPLITTING = 8192
"""Elements of a group below which a second launch costs more than idle multiprocessors."""

MAX_CHUNKS = 4096
"""Partial statistics per group that a program combines."""

SECTOR = 32
"""Bytes that memory moves at least."""


@dataclass(frozen=True)
class Tiles:
    """A way of cutting a map: the tile, how many of them make up a group, the warps that work on one."""

    group_channels: int
    groups: int
    block_channels: int
    block_pixels: int
    channel_chunks: int
    pixel_chunks: int

    @property
    def chunks(self) -> int:
        """Tiles to a group: 1 in the one-pass case."""
        return self.channel_chunks * self.pixel_chunks

    @property
    def elements(self) -> int:
        return self.groups * self.block_channels * self.block_pixels

    def options(self, per_thread: int) -> dict[str, int]:
        """Compile-time arguments of the kernels, with so many elements to a thread where they make a warp."""
        threads = min(max(self.elements // per_thread, 32), MOST_THREADS)
        return {
            "GROUP_CHANNELS": self.group_channels,
            "GROUPS": self.groups,
            "BLOCK_CHANNELS": self.block_channels,
            "BLOCK_PIXELS": self.block_pixels,
            "num_warps": max(threads // (64 if torch.version.hip else 32), 1),
        }


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of (N, C, ...) are neighbours in memory; False for a contiguous tensor."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def one_pass(x: Tensor, num_groups: int, largest: int = LARGEST_TILE) -> Tiles | None:
    """Tiles of whole groups; None where a group does not fit, or too few large ones would idle the card.

    A tile has several groups where one would be little work, or where its channels are less than a sector of
    a channels_last pixel; as long as the card stays full.
    """
    batch, channels = int(x.shape[0]), int(x.shape[1])
    pixels = math.prod(x.shape[2:])  # not of a generator: torch.compile cannot pass one to a function
    size = channels // num_groups
    block = power_of_two(size) * power_of_two(pixels)
    if block > largest or (size * pixels > WORTH_SPLITTING and batch * num_groups < FULL_CARD):
        return None
    channels_last = is_channels_last(x)
    groups = 1
    while (
        (groups * block < SMALLEST_TILE or (channels_last and groups * size * x.element_size() < SECTOR))
        and _can_double(groups, num_groups, block, largest)
        and batch * num_groups // (2 * groups) >= FULL_CARD
    ):
        groups *= 2
    return Tiles(size, groups, power_of_two(size), power_of_two(pixels), 1, 1)


def split(x: Tensor, num_groups: int) -> Tiles | None:
    """Tiles of parts of groups; None where a group has more of them than a program can combine."""
    channels = int(x.shape[1])
    pixels = math.prod(x.shape[2:])
    size = channels // num_groups
    groups = 1
    if is_channels_last(x):
        block_channels = min(power_of_two(size), 64)
        while (
            block_channels >= size
            and groups * size * x.element_size() < 2 * SECTOR
            and _can_double(groups, num_groups, block_channels, SPLIT_TILE)
        ):
            groups *= 2
        block_pixels = min(power_of_two(pixels), SPLIT_TILE // (groups * block_channels))
    else:
        block_pixels = min(power_of_two(pixels), SPLIT_TILE)
        block_channels = min(power_of_two(size), SPLIT_TILE // block_pixels)
    tiles = Tiles(
        size, groups, block_channels, block_pixels, -(-size // block_channels), -(-pixels // block_pixels)
    )
    return tiles if tiles.chunks <= MAX_CHUNKS else None


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def _can_double(groups: int, num_groups: int, block: int, largest: int) -> bool:
    return num_groups % (2 * groups) == 0 and 2 * groups * block <= largest


def fits(x: Tensor, num_groups: int) -> bool:
    """Whether the kernels take this map."""
    return one_pass(x, num_groups) is not None or split(x, num_groups) is not None
