"""GroupNorm and what stands around it in a residual block, in one read and one write where a group fits.

    h     = x + pre_bias                                         per sample and channel
    x_hat = (h - mean) / sqrt(var + eps)                         over the pixels and channels of a group
    v     = (x_hat*weight + bias) * (1 + scale) + shift          scale, shift per sample and channel
    y     = v / (1 + exp(-v)),   v tanh(log(1 + exp(v)))   or   v

An element costs an addition for each of pre_bias, the mean, its rest and the two sums, and one multiply-add
for what comes after, whose factor and offset are vectors of channels.

x and y are (N, C, ...) float32, float16 or bfloat16, contiguous or channels_last, and of one layout. weight
and bias are (C,); pre_bias, scale and shift (N, C) or (1, C), of any floating dtype; everything is computed
in float32. The statistics are float32 (3, N, G): a mean, what is left of the mean once that is subtracted,
and 1/sqrt(var + eps). Two floats for the mean, since one of them has an error of 5e-4 at a mean of 1e4.

With a residual, x + residual takes the place of x and is written too: the sum that ends a residual block, in
the pass of the norm that begins the next. With another map, whose channels follow those of x, what is
normalised is the two in one: the concatenation on a UNet's way up, written too.

Bytes per element: one pass reads x and writes y: 8 in float32, 4 in half precision. Where a group is shared
(`tiles`), each of its programs reads all of it, and its share once more; where it is split,
`statistics_kernel` reads x first: 12 or 6. A sum or a concatenation is one write more, a residual one read.
There are no atomics: a chunk writes its statistics, and each program of the second kernel combines those of
its groups.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..fast_math import mish, sigmoid_factor
from .parts import (
    combine,
    load_map,
    moments,
    per_channel,
    store_tile,
    tile_elements,
    tile_place,
    to_channels,
)

NOT_SPECIALIZED = ["pre_bias_row", "scale_row", "shift_row", "pixel_chunks", "n_statistics"]


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def statistics_kernel(
    x_ptr,
    residual_ptr,
    other_ptr,
    total_ptr,
    x_channels,
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
    EXACT: tl.constexpr,
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
    first_element = sample * channels * pixels
    maps = (x_ptr, residual_ptr, other_ptr, total_ptr, x_channels, sample, channel)
    h = load_map(*maps, pixel_chunk, channels, pixels, element, mask, CHANNELS_LAST, BLOCK_PIXELS, EXACT)
    if total_ptr is not None:
        store_tile(total_ptr + first_element, element, h, mask, EXACT)
    h = h.to(tl.float32)
    if pre_bias_ptr is not None:
        h += per_channel(pre_bias_ptr, sample * pre_bias_row, channel, exists)
    if EXACT:
        count = BLOCK_CHANNELS * BLOCK_PIXELS * 1.0
    else:
        first_channel = tl.program_id(1) // pixel_chunks * BLOCK_CHANNELS
        n_channels = tl.minimum(GROUP_CHANNELS - first_channel, BLOCK_CHANNELS)
        count = (n_channels * tl.minimum(pixels - pixel_chunk * BLOCK_PIXELS, BLOCK_PIXELS)).to(tl.float32)
    _, mean, rest, squares = moments(h, mask, count, GROUPS, BLOCK_CHANNELS, EXACT)

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
    residual_ptr,
    other_ptr,
    total_ptr,
    x_channels,
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
    MISH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    GROUP_PIXELS: tl.constexpr,
):
    """Grid (N * G / GROUPS, chunks). partials_ptr is None where a program reads whole groups.

    Those have GROUP_PIXELS pixels, of which it normalises BLOCK_PIXELS.
    """
    sample, group, pixel_chunk, channel, exists = tile_place(
        num_groups, pixel_chunks, GROUP_CHANNELS, GROUPS, BLOCK_CHANNELS
    )
    channels = num_groups * GROUP_CHANNELS
    WHOLE: tl.constexpr = GROUP_CHANNELS % BLOCK_CHANNELS == 0
    element, mask = tile_elements(
        pixel_chunk, channel, exists, channels, pixels, CHANNELS_LAST, WHOLE, BLOCK_PIXELS
    )
    first_element = sample * channels * pixels
    maps = (x_ptr, residual_ptr, other_ptr, total_ptr, x_channels, sample, channel)
    h = load_map(*maps, pixel_chunk, channels, pixels, element, mask, CHANNELS_LAST, BLOCK_PIXELS, EXACT)
    if total_ptr is not None:
        store_tile(total_ptr + first_element, element, h, mask, EXACT)
    h = h.to(tl.float32)
    if pre_bias_ptr is not None:
        h += per_channel(pre_bias_ptr, sample * pre_bias_row, channel, exists)

    count = (GROUP_CHANNELS * pixels) * 1.0
    row = sample * num_groups + group
    if partials_ptr is None and GROUP_PIXELS == BLOCK_PIXELS:
        difference, mean, rest, squares = moments(h, mask, count, GROUPS, BLOCK_CHANNELS, EXACT)
    elif partials_ptr is None:
        group_element, inside = tile_elements(
            0, channel, exists, channels, pixels, CHANNELS_LAST, WHOLE, GROUP_PIXELS
        )
        group_h = load_map(
            *maps, 0, channels, pixels, group_element, inside, CHANNELS_LAST, GROUP_PIXELS, EXACT
        ).to(tl.float32)
        if pre_bias_ptr is not None:
            group_h += per_channel(pre_bias_ptr, sample * pre_bias_row, channel, exists)
        _, mean, rest, squares = moments(group_h, inside, count, GROUPS, BLOCK_CHANNELS, EXACT)
        difference = h - to_channels(mean, GROUPS, BLOCK_CHANNELS)
    else:
        n_chunks = tl.num_programs(1)
        plane = n_chunks.to(tl.int64) * n_statistics
        mean, rest, squares = combine(partials_ptr, row, n_chunks, plane, count, GROUPS, BLOCK_CHUNKS)
        difference = h - to_channels(mean, GROUPS, BLOCK_CHANNELS)
    rstd = tl.rsqrt(squares / count + eps)
    if tl.program_id(1) == 0:
        place = statistics_ptr + row + tl.arange(0, GROUPS)
        tl.store(place, mean)
        tl.store(place + n_statistics, rest)
        tl.store(place + 2 * n_statistics, rstd)

    factor = to_channels(rstd, GROUPS, BLOCK_CHANNELS)
    offset = to_channels(tl.zeros_like(rstd), GROUPS, BLOCK_CHANNELS)
    if weight_ptr is not None:
        factor = factor * per_channel(weight_ptr, 0, channel, exists)
    if bias_ptr is not None:
        offset = offset + per_channel(bias_ptr, 0, channel, exists)
    if scale_ptr is not None:
        scale = 1.0 + per_channel(scale_ptr, sample * scale_row, channel, exists)
        factor = factor * scale
        offset = offset * scale + per_channel(shift_ptr, sample * shift_row, channel, exists)
    v = (difference - to_channels(rest, GROUPS, BLOCK_CHANNELS)) * factor + offset
    if SILU:
        v = sigmoid_factor(v, v)
    elif MISH:
        v = mish(v)
    store_tile(y_ptr + first_element, element, v, mask, EXACT)
