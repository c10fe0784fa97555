"""Registration of `fastddpm::group_norm_silu`: the Triton kernels as an operator, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from ..compat import wrap_triton
from . import tiles as cut
from .backward import backward_kernel, configure_backward
from .kernel import Vectors, configure, configure_statistics, group_norm_silu_kernel, statistics_kernel


@triton_op("fastddpm::group_norm_silu", mutates_args={})
def group_norm_silu_op(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pre_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """(y, statistics), the latter float32 (3, N, G) for the backward pass.

    Arguments as in `dispatch.group_norm_silu`, which checks them and asks `tiles` whether they fit.
    """
    return _forward(x, None, None, num_groups, eps, Vectors(weight, bias, pre_bias, scale, shift), silu)


@triton_op("fastddpm::add_group_norm_silu", mutates_args={})
def add_group_norm_silu_op(
    x: Tensor,
    residual: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pre_bias: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """(y, x + residual); residual is like x. It has no gradient."""
    total = torch.empty_like(x)
    vectors = Vectors(weight, bias, pre_bias, None, None)
    return _forward(x, residual, total, num_groups, eps, vectors, silu)[0], total


def _forward(
    x: Tensor,
    residual: Tensor | None,
    total: Tensor | None,
    num_groups: int,
    eps: float,
    vectors: Vectors,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x)
    statistics = x.new_empty((3, x.shape[0], num_groups), dtype=torch.float32)
    tiles = cut.one_pass(x, num_groups)
    partials = None
    if tiles is None:
        tiles = cut.split(x, num_groups)
        assert tiles is not None
        partials = x.new_empty((4, x.shape[0], num_groups, tiles.chunks), dtype=torch.float32)
        grid, arguments, options = configure_statistics(
            x, num_groups, vectors.pre_bias, tiles, partials, residual, total
        )
        wrap_triton(statistics_kernel)[grid](*arguments, **options)
        if total is not None:
            x, residual, total = total, None, None
    grid, arguments, options = configure(
        x, num_groups, eps, vectors, silu, tiles, y, statistics, partials, residual, total
    )
    wrap_triton(group_norm_silu_kernel)[grid](*arguments, **options)
    return y, statistics


@triton_op("fastddpm::group_norm_silu_backward", mutates_args={})
def group_norm_silu_backward_op(
    dy: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pre_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """(dx, sums): the gradient of x, and A, B, X of `backward`, float32 (3, N, C)."""
    vectors = Vectors(weight, bias, pre_bias, scale, shift)
    num_groups = statistics.shape[2]
    if dy.stride() != x.stride():
        dy = torch.empty_like(x).copy_(dy)
    dx = torch.empty_like(x)
    tiles = cut.one_pass(x, num_groups, cut.LARGEST_BACKWARD_TILE)
    is_split = tiles is None
    if tiles is None:
        tiles = cut.split(x, num_groups)
        assert tiles is not None
    sums = x.new_empty((3, tiles.pixel_chunks, *x.shape[:2]), dtype=torch.float32)
    grid, arguments, options = configure_backward(
        dy, x, statistics, vectors, silu, tiles, sums, None, None if is_split else dx
    )
    wrap_triton(backward_kernel)[grid](*arguments, **options)
    sums = sums.sum(1)
    if is_split:
        means = _group_means(sums, _gain(x, weight, scale), x, num_groups)
        grid, arguments, options = configure_backward(
            dy, x, statistics, vectors, silu, tiles, None, means, dx
        )
        wrap_triton(backward_kernel)[grid](*arguments, **options)
    return dx, sums


def _gain(x: Tensor, weight: Tensor | None, scale: Tensor | None) -> Tensor:
    """k = weight * (1 + scale), float32 (N or 1, C)."""
    gain = x.new_ones((1, x.shape[1]), dtype=torch.float32)
    if weight is not None:
        gain = gain * weight
    return gain if scale is None else gain * (1 + scale.to(torch.float32))


def _group_means(sums: Tensor, gain: Tensor, x: Tensor, num_groups: int) -> Tensor:
    """The means of k*dv and of k*dv * x_hat over each group, float32 (2, N, G)."""
    of_groups = (sums[:2] * gain).reshape(2, x.shape[0], num_groups, -1).sum(-1)
    return of_groups * (x.shape[0] * num_groups / x.numel())


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, weight, bias, _, pre_bias, scale, shift, silu = inputs
    statistics = output[1]
    ctx.save_for_backward(x, statistics, weight, bias, pre_bias, scale, shift)
    ctx.silu = silu
    ctx.mark_non_differentiable(statistics)


def _backward(ctx: Any, dy: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, statistics, weight, bias, pre_bias, scale, shift = ctx.saved_tensors
    dx, sums = group_norm_silu_backward_op(dy, x, statistics, weight, bias, pre_bias, scale, shift, ctx.silu)
    of_dv, of_product = sums[0], sums[1]
    factor = 1 if scale is None else 1 + scale.to(torch.float32)
    d_weight = d_bias = d_pre_bias = d_scale = d_shift = None
    if weight is not None:
        d_weight = (factor * of_product).sum(0).to(weight.dtype)
    if bias is not None:
        d_bias = (factor * of_dv).sum(0).to(bias.dtype)
    if pre_bias is not None:
        d_pre_bias = _rows(_pre_bias_gradient(x, statistics, sums, _gain(x, weight, scale)), pre_bias)
    if scale is not None:
        d_scale = of_product if weight is None else of_product * weight
        d_scale = _rows(d_scale if bias is None else d_scale + of_dv * bias, scale)
        d_shift = _rows(of_dv, shift)
    return dx, None, d_weight, d_bias, None, d_pre_bias, d_scale, d_shift, None


def _pre_bias_gradient(x: Tensor, statistics: Tensor, sums: Tensor, gain: Tensor) -> Tensor:
    """The sum of dx over the pixels of each channel, from the sums that dx was made of: float32 (N, C)."""
    batch, channels = x.shape[:2]
    num_groups = statistics.shape[2]
    pixels = x.numel() // (batch * channels)
    of_gradient, of_projection = _group_means(sums, gain, x, num_groups)[..., None]
    by_group = (batch, num_groups, channels // num_groups)
    of_dx: Tensor = (gain * sums[0]).reshape(by_group) - pixels * of_gradient
    of_dx = (of_dx - sums[2].reshape(by_group) * of_projection) * statistics[2, ..., None]
    return of_dx.reshape(batch, channels)


def _rows(gradient: Tensor, vectors: Tensor) -> Tensor:
    """A gradient (N, C) for vectors (N or 1, C)."""
    if vectors.shape[0] == 1:
        gradient = gradient.sum(0, keepdim=True)
    return gradient.to(vectors.dtype)


group_norm_silu_op.register_autograd(_backward, setup_context=_setup_context)
