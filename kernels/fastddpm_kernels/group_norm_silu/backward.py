# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
"""The gradient of `group_norm_silu`: two reads and one write where a group fits, else four and one.

With the names of `kernel`, k = weight * (1 + scale), and means over the n values of a group:

    dv = dy * s * (1 + v*(1 - s)),  s = 1 / (1 + exp(-v))   or   dy
    A  = sum dv,  B = sum dv * x_hat,  X = sum x_hat          over the pixels of a channel
    dx = rstd * (k*dv - mean(k*dv) - x_hat * mean(k*dv * x_hat))

The gradients of the vectors follow from A, B and X alone (`launches`): float32 (3, pixel chunks, N, C).
Bytes per element in float32: one pass reads dy and x and writes dx: 12; where a group is split, the sums are
one pass over dy and x and dx another: 20.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..fast_math import sigmoid_factor
from .kernel import NOT_SPECIALIZED
from .parts import (
    group_sum,
    load_tile,
    only_existing,
    per_channel,
    store_tile,
    tile_elements,
    tile_place,
    to_channels,
)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def backward_kernel(
    dy_ptr,
    x_ptr,
    statistics_ptr,
    weight_ptr,
    bias_ptr,
    pre_bias_ptr,
    pre_bias_row,
    scale_ptr,
    scale_row,
    shift_ptr,
    shift_row,
    sums_ptr,
    means_ptr,
    dx_ptr,
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
):
    """Grid (N * G / GROUPS, chunks). Writes the sums unless sums_ptr is None, and dx unless dx_ptr is None.

    dx takes the group means from means_ptr, float32 (2, N, G), or, if that is None, from its own sums.
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
    row = sample * num_groups + group
    if GROUPS == 1:
        line = row
    else:
        line = row + tl.arange(0, GROUPS)
    mean = to_channels(tl.load(statistics_ptr + line), GROUPS, BLOCK_CHANNELS)
    rest = to_channels(tl.load(statistics_ptr + line + n_statistics), GROUPS, BLOCK_CHANNELS)
    rstd = to_channels(tl.load(statistics_ptr + line + 2 * n_statistics), GROUPS, BLOCK_CHANNELS)

    h = load_tile(x_ptr + first_element, element, mask, EXACT)
    if pre_bias_ptr is not None:
        h += per_channel(pre_bias_ptr, sample * pre_bias_row, channel, exists)
    x_hat = only_existing(((h - mean) - rest) * rstd, mask, EXACT)

    gain = tl.full((GROUPS * BLOCK_CHANNELS, 1), 1.0, tl.float32)
    v = x_hat
    if weight_ptr is not None:
        gain = per_channel(weight_ptr, 0, channel, exists)
        v = x_hat * gain
    if bias_ptr is not None:
        v += per_channel(bias_ptr, 0, channel, exists)
    if scale_ptr is not None:
        factor = 1.0 + per_channel(scale_ptr, sample * scale_row, channel, exists)
        gain = gain * factor
        v = v * factor + per_channel(shift_ptr, sample * shift_row, channel, exists)

    dv = load_tile(dy_ptr + first_element, element, mask, EXACT)
    if SILU:
        sigmoid = sigmoid_factor(v, 1.0)
        dv = dv * (sigmoid * (1.0 + v * (1.0 - sigmoid)))
    dv = only_existing(dv, mask, EXACT)

    if sums_ptr is not None:
        of_dv = tl.sum(dv, axis=1)
        of_product = tl.sum(dv * x_hat, axis=1)
        batch = n_statistics // num_groups
        place = sums_ptr + (pixel_chunk * batch + sample) * channels + channel
        plane = tl.cast(pixel_chunks, tl.int64) * batch * channels
        tl.store(place, of_dv, mask=exists)
        tl.store(place + plane, of_product, mask=exists)
        tl.store(place + 2 * plane, tl.sum(x_hat, axis=1), mask=exists)
    if dx_ptr is not None:
        if means_ptr is None:
            count = (GROUP_CHANNELS * pixels) * 1.0
            of_gradient = group_sum(of_dv[:, None] * gain, GROUPS) / count
            of_projection = group_sum(of_product[:, None] * gain, GROUPS) / count
        else:
            of_gradient = tl.load(means_ptr + line)
            of_projection = tl.load(means_ptr + line + n_statistics)
        dx = dv * gain - to_channels(of_gradient, GROUPS, BLOCK_CHANNELS)
        dx = (dx - x_hat * to_channels(of_projection, GROUPS, BLOCK_CHANNELS)) * rstd
        store_tile(dx_ptr + first_element, element, dx, mask, EXACT)
