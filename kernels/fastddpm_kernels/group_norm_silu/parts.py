# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""What the kernels of `group_norm_silu` are made of: a tile's place and elements, sums over its groups."""

import triton
import triton.language as tl


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
def load_stored(ptr, mask, EXACT: tl.constexpr):
    """The elements at these addresses as they are."""
    if EXACT:
        return tl.load(ptr)
    else:
        return tl.load(ptr, mask=mask, other=0.0)


@triton.jit
def load_tile(ptr, element, mask, EXACT: tl.constexpr):
    """A tile's elements as float32."""
    return load_stored(ptr + element, mask, EXACT).to(tl.float32)


@triton.jit
def load_map(
    x_ptr,
    residual_ptr,
    other_ptr,
    total_ptr,
    x_channels,
    sample,
    channel,
    pixel_chunk,
    channels,
    pixels,
    element,
    mask,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    EXACT: tl.constexpr,
):
    """A tile of the map that is normalised, as it is stored: x + residual, with the channels of other behind.

    A sum is rounded to the dtype of total. `element` and `mask` are of `tile_elements`.
    """
    if other_ptr is None:
        first_element = sample * channels * pixels
        h = load_stored(x_ptr + first_element + element, mask, EXACT)
        if residual_ptr is not None:
            h = h.to(tl.float32) + load_tile(residual_ptr + first_element, element, mask, EXACT)
    else:
        pixel = pixel_chunk * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)[None, :]
        channel = channel[:, None]
        is_of_x = channel < x_channels
        others = channels - x_channels
        if CHANNELS_LAST:
            place, other_place = pixel * x_channels + channel, pixel * others + (channel - x_channels)
        else:
            place, other_place = channel * pixels + pixel, (channel - x_channels) * pixels + pixel
        # Two loads under masks, of which one is made: a choice of addresses breaks Triton 3.6 on gfx942.
        mask_of_x, mask_of_other = mask & is_of_x, mask & (channel >= x_channels)
        first_of_x, first_of_other = sample * x_channels * pixels, sample * others * pixels
        h_of_x = tl.load(x_ptr + first_of_x + place, mask=mask_of_x, other=0.0)
        h_of_other = tl.load(other_ptr + first_of_other + other_place, mask=mask_of_other, other=0.0)
        h = tl.where(is_of_x, h_of_x, h_of_other)
        if residual_ptr is not None:
            h = h.to(tl.float32) + load_tile(residual_ptr + first_of_x, place, mask_of_x, False)
    if residual_ptr is not None:
        h = h.to(total_ptr.dtype.element_ty)
    return h


@triton.jit
def store_tile(ptr, element, values, mask, EXACT: tl.constexpr):
    """The counterpart of `load_tile`."""
    if EXACT:
        tl.store(ptr + element, values)
    else:
        tl.store(ptr + element, values, mask=mask)


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
