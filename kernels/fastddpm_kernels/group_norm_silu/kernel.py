"""GroupNorm and what stands around it in a residual block, in one read and one write where a group fits.

    h     = x + pre_bias                                         per sample and channel
    x_hat = (h - mean) / sqrt(var + eps)                         over the pixels and channels of a group
    v     = (x_hat*weight + bias) * (1 + scale) + shift          scale, shift per sample and channel
    y     = v / (1 + exp(-v))   or   v

x and y are (N, C, ...) float32, float16 or bfloat16, contiguous or channels_last, and of one layout. weight
and bias are (C,); pre_bias, scale and shift (N, C) or (1, C), of any floating dtype; everything is computed
in float32. The statistics are float32 (3, N, G): a mean, what is left of the mean once that is subtracted,
and 1/sqrt(var + eps). Two floats for the mean, since one of them has an error of 5e-4 at a mean of 1e4.

Bytes per element: one pass reads x and writes y: 8 in float32, 4 in half precision. Where a group is split
(`tiles`), `statistics_kernel` reads x first: 12 or 6. There are no atomics: a chunk writes its statistics,
and each program of the second kernel combines those of its groups.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch
from .tiles import Tiles, is_channels_last, power_of_two


class Vectors(NamedTuple):
    """What a norm has per channel, (C,), and per sample and channel, (N or 1, C), channels side by side."""

    weight: Tensor | None
    bias: Tensor | None
    pre_bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None


NOT_SPECIALIZED = ["pre_bias_row", "scale_row", "shift_row", "pixel_chunks", "n_statistics"]


@triton.jit
def tile_place(
    num_groups, pixel_chunks, GROUP_CHANNELS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    """(sample, first group, chunk of pixels, channels [GROUPS * BLOCK_CHANNELS], which of them exist)."""
    group_sets = num_groups // GROUPS
    program = tl.program_id(0)
    sample = program // group_sets
    group = (program - sample * group_sets) * GROUPS
    chunk = tl.program_id(1)
    channel_chunk = chunk // pixel_chunks
    line = tl.arange(0, GROUPS * BLOCK_CHANNELS)
    if GROUPS == 1:
        within = channel_chunk * BLOCK_CHANNELS + line
        channel = group * GROUP_CHANNELS + within
    elif GROUP_CHANNELS == BLOCK_CHANNELS:
        within = line % BLOCK_CHANNELS
        channel = group * GROUP_CHANNELS + line
    else:
        within = line % BLOCK_CHANNELS
        channel = (group + line // BLOCK_CHANNELS) * GROUP_CHANNELS + within
    return sample.to(tl.int64), group, chunk - channel_chunk * pixel_chunks, channel, within < GROUP_CHANNELS


@triton.jit
def tile_elements(
    pixel_chunk,
    channel,
    exists,
    channels,
    pixels,
    CHANNELS_LAST: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    """Where in its sample the elements [channels, BLOCK_PIXELS] of a tile lie, and which of them exist."""
    pixel = pixel_chunk * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)[None, :]
    mask = pixel < pixels
    if not WHOLE:
        mask = mask & exists[:, None]
    if CHANNELS_LAST:
        element = pixel * channels + channel[:, None]
    else:
        element = channel[:, None] * pixels + pixel
    return element, mask


@triton.jit
def per_channel(ptr, row, channel, exists):
    """A vector's values of a tile's channels, as a float32 column."""
    return tl.load(ptr + row + channel, mask=exists, other=0.0).to(tl.float32)[:, None]


@triton.jit
def to_channels(per_group, GROUPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """A value per group as a column of channels, each with its group's; a single group's stays a number."""
    if GROUPS == 1:
        column = per_group
    else:
        spread = tl.broadcast_to(per_group[:, None], (GROUPS, BLOCK_CHANNELS))
        column = tl.reshape(spread, (GROUPS * BLOCK_CHANNELS,))[:, None]
    return column


@triton.jit
def group_sum(tile, GROUPS: tl.constexpr):
    """The sum of each group of a tile, whose rows are groups or their channels: [GROUPS], or a number."""
    if GROUPS == 1:
        total = tl.sum(tile)
    else:
        total = tl.sum(tl.reshape(tile, (GROUPS, tile.numel // GROUPS)), axis=1)
    return total


@triton.jit
def moments(h, mask, count, GROUPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """(deviations from the mean, mean, its rest, sum of squared deviations) of a tile, three by group.

    The mean is subtracted twice: the second time what the first, rounded, has left of it.
    """
    mean = group_sum(tl.where(mask, h, 0.0), GROUPS) / count
    deviation = tl.where(mask, h - to_channels(mean, GROUPS, BLOCK_CHANNELS), 0.0)
    rest = group_sum(deviation, GROUPS) / count
    deviation = tl.where(mask, deviation - to_channels(rest, GROUPS, BLOCK_CHANNELS), 0.0)
    return deviation, mean, rest, group_sum(deviation * deviation, GROUPS)


@triton.jit
def combine(partials_ptr, row, n_chunks, plane, total, GROUPS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr):
    """(mean, its rest, sum of squared deviations) of each group from those of its chunks.

    Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983), over all chunks at once;
    means are counted from the first chunk's, so that nothing of their digits is lost.
    """
    line_ptr = partials_ptr + (row + tl.arange(0, GROUPS)[:, None]) * n_chunks
    chunk = tl.arange(0, BLOCK_CHUNKS)[None, :]
    mask = chunk < n_chunks
    mean = tl.load(line_ptr + chunk, mask=mask, other=0.0)
    rest = tl.load(line_ptr + chunk + plane, mask=mask, other=0.0)
    squares = tl.load(line_ptr + chunk + 2 * plane, mask=mask, other=0.0)
    count = tl.load(line_ptr + chunk + 3 * plane, mask=mask, other=0.0)

    origin = tl.load(line_ptr)
    offset = tl.where(mask, (mean - origin) + rest, 0.0)
    common = group_sum(count * offset, GROUPS) / total
    offset -= to_channels(common, GROUPS, 1)
    return group_sum(origin, GROUPS), common, group_sum(squares + count * offset * offset, GROUPS)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def statistics_kernel(
    x_ptr,
    pre_bias_ptr,
    pre_bias_row,
    partials_ptr,
    num_groups,
    pixels,
    pixel_chunks,
    n_statistics,
    CHANNELS_LAST: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    """A chunk's statistics into partials, float32 (4, N, G, chunks). Grid (N * G / GROUPS, chunks).

    The fourth is the number of its elements.
    """
    sample, group, pixel_chunk, channel, exists = tile_place(
        num_groups, pixel_chunks, GROUP_CHANNELS, GROUPS, BLOCK_CHANNELS
    )
    channels = num_groups * GROUP_CHANNELS
    WHOLE: tl.constexpr = GROUP_CHANNELS % BLOCK_CHANNELS == 0
    element, mask = tile_elements(
        pixel_chunk, channel, exists, channels, pixels, CHANNELS_LAST, WHOLE, BLOCK_PIXELS
    )
    h = tl.load(x_ptr + sample * channels * pixels + element, mask=mask, other=0.0).to(tl.float32)
    if pre_bias_ptr is not None:
        h += per_channel(pre_bias_ptr, sample * pre_bias_row, channel, exists)
    first_channel = tl.program_id(1) // pixel_chunks * BLOCK_CHANNELS
    n_channels = tl.minimum(GROUP_CHANNELS - first_channel, BLOCK_CHANNELS)
    count = (n_channels * tl.minimum(pixels - pixel_chunk * BLOCK_PIXELS, BLOCK_PIXELS)).to(tl.float32)
    _, mean, rest, squares = moments(h, mask, count, GROUPS, BLOCK_CHANNELS)

    n_chunks = tl.num_programs(1)
    plane = n_chunks.to(tl.int64) * n_statistics
    row = sample * num_groups + group + tl.arange(0, GROUPS)
    place = partials_ptr + row * n_chunks + tl.program_id(1)
    tl.store(place, mean)
    tl.store(place + plane, rest)
    tl.store(place + 2 * plane, squares)
    tl.store(place + 3 * plane, tl.zeros((GROUPS,), tl.float32) + count)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def group_norm_silu_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    pre_bias_ptr,
    pre_bias_row,
    scale_ptr,
    scale_row,
    shift_ptr,
    shift_row,
    partials_ptr,
    y_ptr,
    statistics_ptr,
    eps,
    num_groups,
    pixels,
    pixel_chunks,
    n_statistics,
    SILU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    """Grid (N * G / GROUPS, chunks). partials_ptr is None where a tile holds whole groups."""
    sample, group, pixel_chunk, channel, exists = tile_place(
        num_groups, pixel_chunks, GROUP_CHANNELS, GROUPS, BLOCK_CHANNELS
    )
    channels = num_groups * GROUP_CHANNELS
    WHOLE: tl.constexpr = GROUP_CHANNELS % BLOCK_CHANNELS == 0
    element, mask = tile_elements(
        pixel_chunk, channel, exists, channels, pixels, CHANNELS_LAST, WHOLE, BLOCK_PIXELS
    )
    first_element = sample * channels * pixels
    h = tl.load(x_ptr + first_element + element, mask=mask, other=0.0).to(tl.float32)
    if pre_bias_ptr is not None:
        h += per_channel(pre_bias_ptr, sample * pre_bias_row, channel, exists)

    count = (GROUP_CHANNELS * pixels) * 1.0
    row = sample * num_groups + group
    if partials_ptr is None:
        deviation, mean, rest, squares = moments(h, mask, count, GROUPS, BLOCK_CHANNELS)
    else:
        n_chunks = tl.num_programs(1)
        plane = n_chunks.to(tl.int64) * n_statistics
        mean, rest, squares = combine(partials_ptr, row, n_chunks, plane, count, GROUPS, BLOCK_CHUNKS)
        deviation = h - to_channels(mean, GROUPS, BLOCK_CHANNELS)
        deviation -= to_channels(rest, GROUPS, BLOCK_CHANNELS)
    rstd = tl.rsqrt(squares / count + eps)
    if tl.program_id(1) == 0:
        place = statistics_ptr + row + tl.arange(0, GROUPS)
        tl.store(place, mean)
        tl.store(place + n_statistics, rest)
        tl.store(place + 2 * n_statistics, rstd)

    v = deviation * to_channels(rstd, GROUPS, BLOCK_CHANNELS)
    if weight_ptr is not None:
        v *= per_channel(weight_ptr, 0, channel, exists)
    if bias_ptr is not None:
        v += per_channel(bias_ptr, 0, channel, exists)
    if scale_ptr is not None:
        v = v * (1.0 + per_channel(scale_ptr, sample * scale_row, channel, exists))
        v += per_channel(shift_ptr, sample * shift_row, channel, exists)
    if SILU:
        v = v / (1.0 + tl.exp(-v))
    tl.store(y_ptr + first_element + element, v, mask=mask)


def configure(
    x: Tensor,
    num_groups: int,
    eps: float,
    vectors: Vectors,
    silu: bool,
    tiles: Tiles,
    y: Tensor,
    statistics: Tensor,
    partials: Tensor | None,
) -> Launch:
    """The launch of `group_norm_silu_kernel`, which writes y and statistics; partials if a group is split."""
    weight, bias, pre_bias, scale, shift = vectors
    cases = {"SILU": silu, "CHANNELS_LAST": is_channels_last(x), "BLOCK_CHUNKS": power_of_two(tiles.chunks)}
    grid, sizes = launch_sizes(x, num_groups, tiles)
    arguments = (
        *(
            x,
            weight,
            bias,
            pre_bias,
            row_stride(pre_bias),
            scale,
            row_stride(scale),
            shift,
            row_stride(shift),
        ),
        *(partials, y, statistics, eps, *sizes),
    )
    return grid, arguments, tiles.options | cases


def configure_statistics(
    x: Tensor, num_groups: int, pre_bias: Tensor | None, tiles: Tiles, partials: Tensor
) -> Launch:
    """The launch of `statistics_kernel`, which writes partials."""
    grid, sizes = launch_sizes(x, num_groups, tiles)
    options = tiles.options | {"CHANNELS_LAST": is_channels_last(x)}
    return grid, (x, pre_bias, row_stride(pre_bias), partials, *sizes), options


def launch_sizes(x: Tensor, num_groups: int, tiles: Tiles) -> tuple[tuple[int, int], tuple[int, ...]]:
    """The grid, and the sizes that every kernel is told."""
    n_statistics = x.shape[0] * num_groups
    pixels = math.prod(x.shape[2:])
    return (n_statistics // tiles.groups, tiles.chunks), (
        num_groups,
        pixels,
        tiles.pixel_chunks,
        n_statistics,
    )


def row_stride(vectors: Tensor | None) -> int:
    """What lies between the vectors of two samples: 0 where one serves all."""
    return 0 if vectors is None or vectors.shape[0] == 1 else vectors.stride(0)
