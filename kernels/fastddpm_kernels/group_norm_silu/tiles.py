"""How a feature map is cut into tiles of channels and pixels, a program each.

A tile is BLOCK_CHANNELS channels of GROUPS groups by BLOCK_PIXELS pixels: powers of two, masked where the map
is not. A tile that holds a whole group normalises it in one pass; where that would leave multiprocessors
idle, several programs read the group and normalise a share of its pixels each; a group that no tile holds is
split, over two kernels. The rules are fixed, with the number of multiprocessors for all that they ask of a
card; the constants below are the choices, each with its reason, for a measurement to correct.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..launch import MULTIPROCESSORS

LARGEST_TILE = 16384
"""Elements of a one-pass tile: 512 threads hold 32 float32 values each."""

LARGEST_BACKWARD_TILE = 8192
"""Of the backward one, which holds two values of every element."""

SMALLEST_TILE = 1024
"""Elements of a tile below which it takes in another group."""

SPLIT_TILE = 4096
"""Elements of a tile where a group is split."""

SHARED_TILE = 4096
"""Elements of a shared tile up to which it takes in another group, for a whole sector of every pixel: all its
programs compute the statistics of all of them, and 8 warps of 16 elements are two to a scheduler. On sm_90 a
tile of two groups of 4x32x32 would issue 1,884 instructions where one issues 826, and move 36 KiB for 40."""

SMALLEST_SHARE = 32
"""Elements that a program of a shared group normalises at least: one to a thread."""

FULL_CARD = 2
"""Programs of a multiprocessor that fill a card; more than one, so that one waits while another computes."""

PER_THREAD = {"full": 32, "small": 8, "shared": 16, "backward": 16}
"""Elements of a thread. What a thread computes besides its elements (addresses, vectors, sums over the
others) is some 300 instructions: 32 elements share them where programs fill the card. In a small batch a
multiprocessor has one program, and more threads hide more of its waiting; a shared tile, whose elements are
read for their sums alone, issues 1,440 instructions with 8 and 826 with 16 (4x32x32 on sm_90). The backward
kernel would need 128 registers with 32."""

MOST_THREADS = 512
"""Of a program."""

WORTH_SPLITTING = 8192
"""Elements of a group up to which a second launch costs more than what it saves: idle multiprocessors, or,
where the group is shared, that each of its programs reads it whole. 8x32x32 in half precision are 32 KiB of
sectors: 0.3 us, where a launch is 1.3."""

MAX_CHUNKS = 4096
"""Partial statistics per group that a program combines."""

MOST_ELEMENTS = 2**31 - 1
"""Of a sample, whose places in it are numbers of 32 bits."""

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
    group_pixels: int
    """Pixels of its groups that a program reads: more than block_pixels where it normalises a share."""

    @property
    def chunks(self) -> int:
        """Tiles to a group: 1 in the one-pass case."""
        return self.channel_chunks * self.pixel_chunks

    @property
    def is_shared(self) -> bool:
        return self.group_pixels > self.block_pixels

    @property
    def elements(self) -> int:
        """That a program reads."""
        return self.groups * self.block_channels * self.group_pixels

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


def empty_whole(x: Tensor, other: Tensor) -> Tensor:
    """A map in x's layout with the channels of x and of other."""
    batch, channels, *space = x.shape
    channels += other.shape[1]
    if is_channels_last(x):
        return x.new_empty((batch, *space, channels)).movedim(-1, 1)
    return x.new_empty((batch, channels, *space))


def one_each(multiprocessors: int) -> int:
    """Programs that give about every multiprocessor one: of 132, 128. Programs come by 32, as groups do."""
    return multiprocessors // 32 * 32 or multiprocessors


def one_pass(
    x: Tensor, num_groups: int, largest: int = LARGEST_TILE, multiprocessors: int = MULTIPROCESSORS
) -> Tiles | None:
    """Tiles of whole groups; None where a group does not fit, or too few large ones would idle the card.

    A tile has several groups where one would be little work, or where its channels are less than a sector of
    a channels_last pixel; as long as the card stays full.
    """
    batch, channels = int(x.shape[0]), int(x.shape[1])
    pixels = math.prod(x.shape[2:])  # not of a generator: torch.compile cannot pass one to a function
    size = channels // num_groups
    block = power_of_two(size) * power_of_two(pixels)
    full = FULL_CARD * one_each(multiprocessors)
    if block > largest or (size * pixels > WORTH_SPLITTING and batch * num_groups < full):
        return None
    channels_last = is_channels_last(x)
    groups = 1
    while (
        (groups * block < SMALLEST_TILE or (channels_last and groups * size * x.element_size() < SECTOR))
        and _can_double(groups, num_groups, block, largest)
        and batch * num_groups // (2 * groups) >= full
    ):
        groups *= 2
    return Tiles(size, groups, power_of_two(size), power_of_two(pixels), 1, 1, power_of_two(pixels))


def shared(x: Tensor, num_groups: int, multiprocessors: int) -> Tiles | None:
    """Tiles of shares of groups; None where every multiprocessor has a program anyway, or groups are large.

    Each program reads its groups whole, for their statistics, and then its own pixels again, which are near:
    as many bytes as it would read of them alone, fewer written, and no second launch.
    """
    batch, channels = int(x.shape[0]), int(x.shape[1])
    pixels = math.prod(x.shape[2:])
    size = channels // num_groups
    group_pixels = power_of_two(pixels)
    block = power_of_two(size) * group_pixels
    if (
        block > LARGEST_TILE
        or size * pixels > WORTH_SPLITTING
        or batch * num_groups >= one_each(multiprocessors)
    ):
        return None
    channels_last = is_channels_last(x)
    groups = 1
    while (
        channels_last
        and groups * size * x.element_size() < SECTOR
        and _can_double(groups, num_groups, block, SHARED_TILE)
    ):
        groups *= 2
    wanted = power_of_two(-(-one_each(multiprocessors) * groups // (batch * num_groups)))
    smallest = 1 if channels_last else SECTOR // x.element_size()
    shares = min(wanted, groups * block // SMALLEST_SHARE, group_pixels // smallest)
    if shares < 2:
        return None
    share = group_pixels // shares
    return Tiles(size, groups, power_of_two(size), share, 1, -(-pixels // share), group_pixels)


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
    channel_chunks, pixel_chunks = -(-size // block_channels), -(-pixels // block_pixels)
    tiles = Tiles(size, groups, block_channels, block_pixels, channel_chunks, pixel_chunks, block_pixels)
    return tiles if tiles.chunks <= MAX_CHUNKS else None


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def _can_double(groups: int, num_groups: int, block: int, largest: int) -> bool:
    return num_groups % (2 * groups) == 0 and 2 * groups * block <= largest


def fits(x: Tensor, num_groups: int) -> bool:
    """Whether the kernels take this map."""
    if math.prod(x.shape[1:]) > MOST_ELEMENTS:
        return False
    return one_pass(x, num_groups) is not None or split(x, num_groups) is not None


def surely_fits(shape: torch.Size, num_groups: int) -> bool:
    """Whether the kernels take a map of this shape in either layout, for one that is yet to be made.

    The tiles of `split` hold at least 64 pixels of 64 channels, or as many elements, up to masked ones.
    """
    size, pixels = shape[1] // num_groups, math.prod(shape[2:])
    if shape[1] * pixels > MOST_ELEMENTS:
        return False
    return -(-size // 64) * -(-pixels // 64) <= MAX_CHUNKS // 4
