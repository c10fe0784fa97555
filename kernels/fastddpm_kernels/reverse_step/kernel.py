"""The fused reverse step, one pass over the state.

    m      = m_u + w*(m_c - m_u)                                       guidance
    x0     = clip(p*x + q*m, -r, r)   or  clip(p*x + q*m, -s, s) / s   CLIP, threshold
             of (p*x + q*m) / d                                        DIVIDE
    x_next = a*x0 + b*x + e*m + h1*k1 + ... + h5*k5 + sigma*z          of k as many as KEPT
             linear_x*x + linear_m*m + sigma*z                         if nothing bends, reads or keeps x0
             a*x0 + e*((b*x + f*x0 + g*m) / w) + h1*k1 + ... + sigma*z REDERIVE
    k_slot = x0   or   i*x0 + j*x + n*m                                COMBINE
    sigma  = c   or   c * exp(0.5*(f*log_var_max + (1-f)*log_var_min)), f = (v+1)/2      LEARNED_RANGE

x and x0 are float32 (B, C, H, W) contiguous; m is float32, float16 or bfloat16, contiguous or channels_last,
of B or (guidance) 2B rows and C or (learned range) 2C channels. Row k = counter[b, 0] of the table, of each
sample b its own, the seeds and the counter are read on the device: a launch has nothing of a step baked in,
so that it can be replayed.

Bytes per element: read x (4), read m (4, or 2 in half precision), write x (4): 12 or 10. Guidance reads m
twice and learned range reads v too (as m); x0 is written (4); kept predictions are read (4 each), one of them
written (4); given noise is read (4).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from ..compat import wrap_triton
from ..launch import Launch, division, geometry
from ..noise.kernel import lanes, normals
from ..table import N_COLUMNS, Column
from .reference import Arguments

P = tl.constexpr(int(Column.X0_FROM_X))
Q = tl.constexpr(int(Column.X0_FROM_M))
R = tl.constexpr(int(Column.X0_BOUND))
A = tl.constexpr(int(Column.FROM_X0))
B = tl.constexpr(int(Column.FROM_X))
E = tl.constexpr(int(Column.FROM_M))
H1 = tl.constexpr(int(Column.FROM_KEPT_1))
H2 = tl.constexpr(int(Column.FROM_KEPT_2))
H3 = tl.constexpr(int(Column.FROM_KEPT_3))
H4 = tl.constexpr(int(Column.FROM_KEPT_4))
H5 = tl.constexpr(int(Column.FROM_KEPT_5))
C = tl.constexpr(int(Column.FROM_NOISE))
LOG_VAR_MIN = tl.constexpr(int(Column.LOG_VAR_MIN))
LOG_VAR_MAX = tl.constexpr(int(Column.LOG_VAR_MAX))
LINEAR_X = tl.constexpr(int(Column.LINEAR_X))
LINEAR_M = tl.constexpr(int(Column.LINEAR_M))
D = tl.constexpr(int(Column.X0_DIVISOR))
F = tl.constexpr(int(Column.EPS_FROM_X0))
G = tl.constexpr(int(Column.EPS_FROM_M))
W = tl.constexpr(int(Column.EPS_DIVISOR))
KEPT_X0 = tl.constexpr(int(Column.KEPT_FROM_X0))
KEPT_X = tl.constexpr(int(Column.KEPT_FROM_X))
KEPT_M = tl.constexpr(int(Column.KEPT_FROM_M))
SLOT = tl.constexpr(int(Column.KEPT_SLOT))
ROW = tl.constexpr(N_COLUMNS)


@triton.jit
def load_output(
    row_ptr,
    block,
    element,
    plane,
    n_elements,
    spatial,
    magic,
    shift,
    pixel_channels,
    CHANNELS_LAST: tl.constexpr,
):
    """C channels of a sample of m as a float32 tile; what follows n_elements serves channels_last only."""
    if not CHANNELS_LAST:
        mask = (block < plane) & (element < n_elements)
        return tl.load(row_ptr + element, mask=mask).to(tl.float32)
    # Lane by lane, in lines of neighbouring pixels: a tile of such scattered reads would get a layout of its
    # own, and the noise would then be computed in that one, once per lane.
    lane = lanes()
    line = tl.reshape(block, (block.shape[0],))
    tile = tl.zeros((block.shape[0], 2, 2), tl.float32)
    for i in tl.static_range(4):
        place = line + i * plane
        # place // spatial, see `division`.
        product = place.to(tl.uint32).to(tl.uint64) * tl.cast(magic, tl.uint32).to(tl.uint64)
        channel = ((product >> 32).to(tl.uint32) >> shift).to(tl.int32)
        pixel = place - channel * spatial
        mask = (line < plane) & (place < n_elements)
        values = tl.load(row_ptr + pixel * pixel_channels + channel, mask=mask).to(tl.float32)
        tile = tl.where(lane == i, values[:, None, None], tile)
    return tile


@triton.jit(do_not_specialize=["channels", "spatial", "magic", "shift", "ring_slots"])
def reverse_step_kernel(
    x_ptr,
    m_ptr,
    table_ptr,
    counter_ptr,
    noise_ptr,
    x0_ptr,
    guidance_ptr,
    threshold_ptr,
    kept_ptr,
    base_ptr,
    n_elements,
    plane_16,
    channels,
    spatial,
    magic,
    shift,
    ring_slots,
    CLIP: tl.constexpr,
    KEPT: tl.constexpr,
    COMBINE: tl.constexpr,
    DIVIDE: tl.constexpr,
    REDERIVE: tl.constexpr,
    SEEDED: tl.constexpr,
    LEARNED_RANGE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """Grid (B, tiles of a sample). A pointer that a case does not use is None; plane_16 is q/16 (noise)."""
    sample = tl.program_id(0).to(tl.int64)
    batch = tl.num_programs(0).to(tl.int64)
    counter_ptr += sample * 2
    k = tl.load(counter_ptr)
    row_ptr = table_ptr + k * ROW

    plane = plane_16 * 16
    block = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)[:, None, None]
    # Four neighbours to a thread whatever the width of m, so that x, m and the noise have one layout.
    element = tl.max_contiguous(block + lanes() * plane, [4, 1, 1])
    # Every lane has its own bound: the last lane's alone would let small samples write into their neighbours.
    mask = (block < plane) & (element < n_elements)

    x_row_ptr = x_ptr + sample * n_elements
    x = tl.load(x_row_ptr + element, mask=mask)

    pixel_channels = channels
    m_row_elements = n_elements
    if LEARNED_RANGE:
        pixel_channels = 2 * channels
        m_row_elements = 2 * n_elements
    m_row_ptr = m_ptr + sample * m_row_elements
    if guidance_ptr is not None:
        m_u = load_output(
            m_row_ptr, block, element, plane, n_elements, spatial, magic, shift, pixel_channels, CHANNELS_LAST
        )
        m_row_ptr += batch * m_row_elements
    m = load_output(
        m_row_ptr, block, element, plane, n_elements, spatial, magic, shift, pixel_channels, CHANNELS_LAST
    )
    if guidance_ptr is not None:
        m = m_u + tl.load(guidance_ptr + sample) * (m - m_u)

    if CLIP or DIVIDE or REDERIVE or KEPT or (threshold_ptr is not None) or (x0_ptr is not None):
        x0 = tl.load(row_ptr + P) * x + tl.load(row_ptr + Q) * m
        if DIVIDE:
            # Rounded once, as IEEE 754 has it; `/` may be off by two units in the last place.
            x0 = tl.div_rn(x0, tl.load(row_ptr + D))
        if threshold_ptr is not None:
            bound = tl.load(threshold_ptr + sample)
            x0 = tl.clamp(x0, -bound, bound, propagate_nan=tl.PropagateNan.ALL) / bound
        elif CLIP:
            bound = tl.load(row_ptr + R)
            x0 = tl.clamp(x0, -bound, bound, propagate_nan=tl.PropagateNan.ALL)
        if REDERIVE:
            eps = tl.load(row_ptr + B) * x + tl.load(row_ptr + F) * x0 + tl.load(row_ptr + G) * m
            eps = tl.div_rn(eps, tl.load(row_ptr + W))
            x_next = tl.load(row_ptr + A) * x0 + tl.load(row_ptr + E) * eps
        else:
            x_next = tl.load(row_ptr + A) * x0 + tl.load(row_ptr + B) * x + tl.load(row_ptr + E) * m
        if KEPT:
            kept_row_ptr = kept_ptr + sample * n_elements
            x_next += tl.load(row_ptr + H1) * tl.load(kept_row_ptr + element, mask=mask)
            if KEPT > 1:
                second_ptr = kept_row_ptr + batch * n_elements
                x_next += tl.load(row_ptr + H2) * tl.load(second_ptr + element, mask=mask)
            if KEPT > 2:
                third_ptr = kept_row_ptr + 2 * batch * n_elements
                x_next += tl.load(row_ptr + H3) * tl.load(third_ptr + element, mask=mask)
            if KEPT > 3:
                fourth_ptr = kept_row_ptr + 3 * batch * n_elements
                x_next += tl.load(row_ptr + H4) * tl.load(fourth_ptr + element, mask=mask)
            if KEPT > 4:
                fifth_ptr = kept_row_ptr + 4 * batch * n_elements
                x_next += tl.load(row_ptr + H5) * tl.load(fifth_ptr + element, mask=mask)
            own = x0
            if COMBINE:
                own = tl.load(row_ptr + KEPT_X0) * x0 + tl.load(row_ptr + KEPT_X) * x
                own += tl.load(row_ptr + KEPT_M) * m
            if KEPT > 1:
                kept_row_ptr += tl.load(row_ptr + SLOT).to(tl.int64) * batch * n_elements
            tl.store(kept_row_ptr + element, own, mask=mask)
        if x0_ptr is not None:
            tl.store(x0_ptr + sample * n_elements + element, x0, mask=mask)
    else:
        x_next = tl.load(row_ptr + LINEAR_X) * x + tl.load(row_ptr + LINEAR_M) * m

    if noise_ptr is not None:
        if base_ptr is not None:
            k -= tl.load(base_ptr + sample)
        if SEEDED:
            z = normals(tl.load(noise_ptr + sample), block, k + 1, 0, tl.load(counter_ptr + 1))
        else:
            slot_row = (k % ring_slots) * batch + sample
            z = tl.load(noise_ptr + slot_row * n_elements + element, mask=mask)
        sigma = tl.load(row_ptr + C)
        if LEARNED_RANGE:
            v_ptr = m_row_ptr + (channels if CHANNELS_LAST else n_elements)
            v = load_output(
                v_ptr, block, element, plane, n_elements, spatial, magic, shift, pixel_channels, CHANNELS_LAST
            )
            f = (v + 1.0) * 0.5
            log_var = f * tl.load(row_ptr + LOG_VAR_MAX) + (1.0 - f) * tl.load(row_ptr + LOG_VAR_MIN)
            sigma = sigma * tl.exp(0.5 * log_var)
        x_next += sigma * z
    tl.store(x_row_ptr + element, x_next, mask=mask)


def configure(given: Arguments) -> Launch:
    """The launch for these arguments: grid, positional and keyword arguments.

    Raises:
        ValueError: a sample has too many elements for a grid.
    """
    x, m, noise = given.x, given.m, given.noise
    n_elements, plane_16, grid, options = geometry("x", x)
    seeded = noise is not None and noise.dtype == torch.int64
    ring_slots = 1 if noise is None or seeded else noise.shape[0]
    channels_last = not m.is_contiguous()
    spatial = n_elements // x.shape[1]
    magic, shift = division(spatial if channels_last else 2)
    numbers = (n_elements, plane_16, x.shape[1], spatial, magic, shift, ring_slots)
    cases = {
        "CLIP": given.clip,
        "KEPT": 0 if given.kept is None else len(given.kept),
        "COMBINE": given.combine,
        "DIVIDE": given.divide,
        "REDERIVE": given.rederive,
        "SEEDED": seeded,
        "LEARNED_RANGE": m.shape[1] != x.shape[1],
        "CHANNELS_LAST": channels_last,
    }
    return grid, (*given[:10], *numbers), options | cases


@triton_op("fastddpm::reverse_step", mutates_args={"x", "x0", "kept"})
def reverse_step_op(
    x: Tensor,
    m: Tensor,
    table: Tensor,
    counter: Tensor,
    noise: Tensor | None,
    x0: Tensor | None,
    guidance: Tensor | None,
    threshold: Tensor | None,
    kept: Tensor | None,
    base: Tensor | None,
    clip: bool,
    combine: bool,
    divide: bool,
    rederive: bool,
) -> None:
    """In place on x, x0 and kept; `op.reverse_step` checks the arguments. No gradient."""
    bounds = (guidance, threshold)
    given = Arguments(x, m, table, counter, noise, x0, *bounds, kept, base, clip, combine, divide, rederive)
    grid, operands, options = configure(given)
    wrap_triton(reverse_step_kernel)[grid](*operands, **options)
