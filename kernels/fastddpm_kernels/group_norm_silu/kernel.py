"""GroupNorm and what stands around it in a residual block, in one read and one write where a group fits.

    h     = x + pre_bias                                         per sample and channel
    x_hat = (h - mean) / sqrt(var + eps)                         over the pixels and channels of a group
    v     = (x_hat*weight + bias) * (1 + scale) + shift          scale, shift per sample and channel
    y     = v / (1 + exp(-v))   or   v

An element costs an addition for each of pre_bias, the mean, its rest and the two sums, and one multiply-add
for what comes after, whose factor and offset are vectors of channels.

x and y are (N, C, ...) float32, float16 or bfloat16, contiguous or channels_last, and of one layout. weight
and bias are (C,); pre_bias, scale and shift (N, C) or (1, C), of any floating dtype; everything is computed
in float32. The statistics are float32 (3, N, G): a mean, what is left of the mean once that is subtracted,
and 1/sqrt(var + eps). Two floats for the mean, since one of them has an error of 5e-4 at a mean of 1e4.

With a residual, x + residual takes the place of x and is written too: the sum that ends a residual block, in
the pass of the norm that begins the next.

Bytes per element: one pass reads x and writes y: 8 in float32, 4 in half precision. Where a group is shared
(`tiles`), each of its programs reads all of it, and its share once more; where it is split,
`statistics_kernel` reads x first: 12 or 6. A residual is one read and one write more. There are no atomics: a
chunk writes its statistics, and each program of the second kernel combines those of its groups.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..fast_math import sigmoid_factor

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
def only_existing(tile, mask, EXACT: tl.constexpr):
    """A tile with 0 where there is no element; EXACT: there is one everywhere."""
    if EXACT:
        return tile
    else:
        return tl.where(mask, tile, 0.0)


@triton.jit
def load_tile(ptr, element, mask, EXACT: tl.constexpr):
    """A tile's elements as float32."""
    if EXACT:
        return tl.load(ptr + element).to(tl.float32)
    else:
        return tl.load(ptr + element, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def plus_residual(h, residual_ptr, sum_ptr, element, mask, EXACT: tl.constexpr):
    """h + residual as it is stored in sum, whose dtype it has been rounded to: float32."""
    total = (h + load_tile(residual_ptr, element, mask, EXACT)).to(sum_ptr.dtype.element_ty)
    if EXACT:
        tl.store(sum_ptr + element, total)
    else:
        tl.store(sum_ptr + element, total, mask=mask)
    return total.to(tl.float32)


@triton.jit
def moments(h, mask, count, GROUPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, EXACT: tl.constexpr):
    """(differences from the mean, mean, its rest, sum of squared deviations) of a tile, three by group.

    The mean is rounded, and what it lacks, the rest, is the mean of the differences. The squares are of those
    less the rest: sum d**2 - count*rest**2, whose second term is of the size of a rounding.
    """
    mean = group_sum(only_existing(h, mask, EXACT), GROUPS) / count
    difference = only_existing(h - to_channels(mean, GROUPS, BLOCK_CHANNELS), mask, EXACT)
    total = group_sum(difference, GROUPS)
    rest = total / count
    squares = group_sum(difference * difference, GROUPS) - total * rest
    # Not by a maximum, which would lose NaN.
    return difference, mean, rest, tl.where(squares < 0.0, 0.0, squares)


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
    first = group_sum(origin, GROUPS)
    mean = first + common
    return mean, common - (mean - first), group_sum(squares + count * offset * offset, GROUPS)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def statistics_kernel(
    x_ptr,
    residual_ptr,
    sum_ptr,
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
    h = load_tile(x_ptr + first_element, element, mask, EXACT)
    if residual_ptr is not None:
        h = plus_residual(h, residual_ptr + first_element, sum_ptr + first_element, element, mask, EXACT)
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
    sum_ptr,
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
    h = load_tile(x_ptr + first_element, element, mask, EXACT)
    if residual_ptr is not None:
        h = plus_residual(h, residual_ptr + first_element, sum_ptr + first_element, element, mask, EXACT)
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
        group_h = load_tile(x_ptr + first_element, group_element, inside, EXACT)
        if residual_ptr is not None:
            group_h += load_tile(residual_ptr + first_element, group_element, inside, EXACT)
            group_h = group_h.to(sum_ptr.dtype.element_ty).to(tl.float32)
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
    if EXACT:
        tl.store(y_ptr + first_element + element, v)
    else:
        tl.store(y_ptr + first_element + element, v, mask=mask)
