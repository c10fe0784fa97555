"""Registration of `fastddpm::q_sample`: the Triton kernel as an operator, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from ..compat import wrap_triton
from .kernel import configure, q_sample_kernel


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

    Arguments as in `dispatch.q_sample`, which checks them.
    """
    x_t = torch.empty_like(x_0)
    drawn = torch.empty_like(x_0) if return_noise and noise is None else None
    grid, arguments, options = configure(
        *(x_0, t, sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod, noise, seeds, ordinals, x_t, drawn)
    )
    wrap_triton(q_sample_kernel)[grid](*arguments, **options)
    return x_t, x_0.new_empty(0) if drawn is None else drawn


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
