"""Registration of `fastddpm::noise_mse` and its gradient: the Triton kernels as operators."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from ..compat import wrap_triton
from .kernel import configure, gradient_kernel, loss_kernel, tiles


@triton_op("fastddpm::noise_mse", mutates_args={})
def noise_mse_op(
    prediction: Tensor,
    seeds: Tensor,
    ordinals: Tensor,
    loss: str,
    x_0: Tensor | None,
    signal: Tensor | None,
    sigma: Tensor | None,
) -> Tensor:
    """The mean distance of each sample, float32 (B,); arguments as in `dispatch.noise_mse`."""
    sums = torch.empty(
        (prediction.shape[0], tiles(prediction)), dtype=torch.float32, device=prediction.device
    )
    grid, arguments, options = configure(prediction, seeds, ordinals, loss, x_0, signal, sigma, sums)
    wrap_triton(loss_kernel)[grid](*arguments, **options)
    return sums.sum(dim=1) / math.prod(prediction.shape[1:])


@triton_op("fastddpm::noise_mse_backward", mutates_args={})
def noise_mse_backward_op(
    grad_loss: Tensor,
    prediction: Tensor,
    seeds: Tensor,
    ordinals: Tensor,
    loss: str,
    x_0: Tensor | None,
    signal: Tensor | None,
    sigma: Tensor | None,
) -> Tensor:
    """The gradient of prediction, in its dtype and layout, from that of the distances, float32 (B,)."""
    grad = torch.empty_like(prediction)
    grid, arguments, options = configure(
        prediction, seeds, ordinals, loss, x_0, signal, sigma, grad_loss, grad
    )
    wrap_triton(gradient_kernel)[grid](*arguments, **options)
    return grad


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    prediction, seeds, ordinals, ctx.loss, x_0, signal, sigma = inputs
    ctx.save_for_backward(prediction, seeds, ordinals, x_0, signal, sigma)


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    prediction, seeds, ordinals, x_0, signal, sigma = ctx.saved_tensors
    # The gradient of a mean is one number expanded to (B,).
    grad = noise_mse_backward_op(
        grad_loss.contiguous(), prediction, seeds, ordinals, ctx.loss, x_0, signal, sigma
    )
    return grad, None, None, None, None, None, None


noise_mse_op.register_autograd(_backward, setup_context=_setup_context)
