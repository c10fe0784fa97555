"""x_t from x_0 in one pass, the noise drawn in registers or read.

    x_t = sqrt_alphas_cumprod[t] * x_0 + sqrt_one_minus_alphas_cumprod[t] * z

x_0, x_t and the noise are float32 (B, C, H, W) contiguous, t, seeds and ordinals int64 (B,), the tables
float32 (T,). z is the noise given, or stream 1 of the noise spec with step = ordinal modulo 2**32,
repeat = ordinal // 2**32.

Bytes per element: read x_0 (4), write x_t (4): 8; given noise is read (4), drawn noise is written (4) if
asked for.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from ..compat import wrap_triton
from ..launch import Launch, geometry
from ..noise.kernel import lanes, normals
from .reference import TRAINING_NOISE_STREAM, Arguments

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


def configure(given: Arguments, x_t: Tensor, drawn: Tensor | None) -> Launch:
    """The launch for these arguments: grid, positional and keyword arguments. x_t and drawn are written.

    Raises:
        ValueError: a sample has too many elements for a grid.
    """
    n_elements, plane_16, grid, options = geometry("x_0", given.x_0)
    return grid, (*given[:7], x_t, drawn, n_elements, plane_16, given.signal.numel()), options


@triton_op("fastddpm::q_sample", mutates_args={})
def q_sample_op(
    x_0: Tensor,
    t: Tensor,
    sqrt_alphas_cumprod: Tensor,
    sqrt_one_minus_alphas_cumprod: Tensor,
    noise: Tensor | None,
    seeds: Tensor | None,
    ordinals: Tensor | None,
    return_noise: bool,
) -> tuple[Tensor, Tensor]:
    """(x_t, the drawn noise); the noise is empty where it was given or nobody asks for it.

    `op.q_sample` checks the arguments.
    """
    tables = (sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod)
    given = Arguments(x_0, t, *tables, noise, seeds, ordinals, return_noise)
    x_t = torch.empty_like(given.x_0)
    drawn = torch.empty_like(x_t) if given.return_noise and given.noise is None else None
    grid, operands, options = configure(given, x_t, drawn)
    wrap_triton(q_sample_kernel)[grid](*operands, **options)
    return x_t, given.x_0.new_empty(0) if drawn is None else drawn


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, t, sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod, *_ = inputs
    ctx.save_for_backward(t, sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_x_t: Tensor, grad_drawn: Tensor | None) -> tuple[Tensor | None, ...]:
    t, sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod = ctx.saved_tensors
    per_sample = (-1, *(1,) * (grad_x_t.dim() - 1))
    grad_x_0 = grad_noise = None
    if ctx.needs_input_grad[0]:
        grad_x_0 = sqrt_alphas_cumprod.index_select(0, t).reshape(per_sample) * grad_x_t
    if ctx.needs_input_grad[4]:
        grad_noise = sqrt_one_minus_alphas_cumprod.index_select(0, t).reshape(per_sample) * grad_x_t
    return grad_x_0, None, None, None, grad_noise, None, None, None


q_sample_op.register_autograd(_backward, setup_context=_setup_context)
