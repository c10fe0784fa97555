"""x_t from x_0 in one pass, the noise drawn in registers or read.

    x_t = sqrt_alphas_cumprod[t] * x_0 + sqrt_one_minus_alphas_cumprod[t] * z

x_0, x_t and the noise are float32 (B, C, H, W) contiguous, t, seeds and ordinals int64 (B,), the tables
float32 (T,). z is the noise given, or stream 1 of the noise spec with step = ordinal modulo 2**32,
repeat = ordinal // 2**32.

Bytes per element: read x_0 (4), write x_t (4): 8; given noise is read (4), drawn noise is written (4) if
asked for.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..launch import Launch, geometry
from ..noise.kernel import lanes, normals
from .reference import TRAINING_NOISE_STREAM

STREAM = tl.constexpr(TRAINING_NOISE_STREAM)


@triton.jit(do_not_specialize=["n_timesteps"])
def q_sample_kernel(
    x_0_ptr,
    t_ptr,
    signal_ptr,
    sigma_ptr,
    noise_ptr,
    seeds_ptr,
    ordinals_ptr,
    x_t_ptr,
    drawn_ptr,
    n_elements,
    plane_16,
    n_timesteps,
    BLOCK_SIZE: tl.constexpr,
):
    """Grid (B, tiles of a sample). Either noise_ptr or seeds_ptr and ordinals_ptr are None."""
    sample = tl.program_id(0).to(tl.int64)
    t = tl.load(t_ptr + sample)
    # The host cannot check t without waiting for the device: outside the tables it gives NaN.
    known = (t >= 0) & (t < n_timesteps)
    signal = tl.load(signal_ptr + t, mask=known, other=float("nan"))
    sigma = tl.load(sigma_ptr + t, mask=known, other=float("nan"))

    plane = plane_16 * 16
    block = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)[:, None, None]
    element = block + lanes() * plane
    # Every lane has its own bound: the last lane's alone would let small samples write into their neighbours.
    mask = (block < plane) & (element < n_elements)
    row = sample * n_elements

    x_0 = tl.load(x_0_ptr + row + element, mask=mask)
    if noise_ptr is not None:
        z = tl.load(noise_ptr + row + element, mask=mask)
    else:
        ordinal = tl.load(ordinals_ptr + sample)
        z = normals(tl.load(seeds_ptr + sample), block, ordinal, STREAM, ordinal >> 32)
        if drawn_ptr is not None:
            tl.store(drawn_ptr + row + element, z, mask=mask)
    tl.store(x_t_ptr + row + element, signal * x_0 + sigma * z, mask=mask)


def configure(
    x_0: Tensor,
    t: Tensor,
    signal: Tensor,
    sigma: Tensor,
    noise: Tensor | None,
    seeds: Tensor | None,
    ordinals: Tensor | None,
    x_t: Tensor,
    drawn: Tensor | None,
) -> Launch:
    """The launch for these arguments: grid, positional and keyword arguments. x_t and drawn are written.

    Raises:
        ValueError: a sample has too many elements for a grid.
    """
    n_elements, plane_16, grid, options = geometry("x_0", x_0)
    tensors = (x_0, t, signal, sigma, noise, seeds, ordinals, x_t, drawn)
    return grid, (*tensors, n_elements, plane_16, signal.numel()), options


def launch(x_0, t, signal, sigma, noise, seeds, ordinals, x_t, drawn):
    """Run the kernel into x_t and, unless it is None, drawn; on CPU tensors under Triton's interpreter."""
    grid, arguments, options = configure(x_0, t, signal, sigma, noise, seeds, ordinals, x_t, drawn)
    q_sample_kernel[grid](*arguments, **options)
