"""The launches of the `group_norm_silu` kernels, and their registration as operators with a gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from ..compat import wrap_triton
from ..launch import Launch, multiprocessors
from . import tiles as cut
from .backward import backward_kernel
from .kernel import group_norm_silu_kernel, statistics_kernel
from .reference import Arguments
from .tiles import FULL_CARD, PER_THREAD, Tiles, is_channels_last, one_each, power_of_two


def configure(
    given: Arguments,
    tiles: Tiles,
    y: Tensor,
    statistics: Tensor,
    partials: Tensor | None = None,
    total: Tensor | None = None,
) -> Launch:
    """The launch of `group_norm_silu_kernel`, which writes y and statistics; partials if a group is split.

    What is normalised has the shape and layout of y; it is x, or, written to total, x + residual, with the
    channels of other behind it.
    """
    x, num_groups, weight, bias, eps, pre_bias, scale, shift, silu, residual, other, mish = given
    block_chunks = 1 if partials is None else power_of_two(tiles.chunks)
    cases = {"SILU": silu, "MISH": mish, "BLOCK_CHUNKS": block_chunks, "GROUP_PIXELS": tiles.group_pixels}
    grid, sizes = launch_sizes(y, num_groups, tiles)
    arguments = (
        *(x, residual, other, total, x.shape[1], weight, bias, pre_bias, row_stride(pre_bias)),
        *(scale, row_stride(scale), shift, row_stride(shift)),
        *(partials, y, statistics, eps, *sizes),
    )
    return grid, arguments, tiles.options(per_thread(y, grid, tiles)) | cases | layout_cases(y, tiles)


def configure_statistics(given: Arguments, tiles: Tiles, partials: Tensor, total: Tensor | None) -> Launch:
    """The launch of `statistics_kernel`, which writes partials, and total where it is not x alone."""
    x, pre_bias = given.x, given.pre_bias
    whole = x if total is None else total
    grid, sizes = launch_sizes(whole, given.num_groups, tiles)
    options = tiles.options(per_thread(whole, grid, tiles)) | layout_cases(whole, tiles)
    maps = (x, given.residual, given.other, total, x.shape[1])
    return grid, (*maps, pre_bias, row_stride(pre_bias), partials, *sizes), options


def configure_backward(
    given: Arguments,
    dy: Tensor,
    statistics: Tensor,
    tiles: Tiles,
    sums: Tensor | None,
    means: Tensor | None,
    dx: Tensor | None,
) -> Launch:
    """The launch of `backward_kernel`: which of sums and dx it writes, and what it has of the means."""
    x, num_groups, weight, bias, _, pre_bias, scale, shift, silu, *_ = given
    grid, sizes = launch_sizes(x, num_groups, tiles)
    arguments = (
        *(dy, x, statistics, weight, bias, pre_bias, row_stride(pre_bias)),
        *(scale, row_stride(scale), shift, row_stride(shift), sums, means, dx, *sizes),
    )
    options = tiles.options(PER_THREAD["backward"])
    return grid, arguments, options | {"SILU": silu, **layout_cases(x, tiles)}


def launch_sizes(x: Tensor, num_groups: int, tiles: Tiles) -> tuple[tuple[int, int], tuple[int, ...]]:
    """The grid, and the sizes that every kernel is told."""
    n_statistics = x.shape[0] * num_groups
    pixels = math.prod(x.shape[2:])
    return (n_statistics // tiles.groups, tiles.chunks), (
        num_groups,
        pixels,
        tiles.pixel_chunks,
        n_statistics,
    )


def per_thread(x: Tensor, grid: tuple[int, int], tiles: Tiles) -> int:
    """Elements of a thread in a launch of so many programs."""
    if tiles.is_shared:
        return PER_THREAD["shared"]
    full = FULL_CARD * one_each(multiprocessors(x.device))
    return PER_THREAD["full" if math.prod(grid) >= full else "small"]


def layout_cases(x: Tensor, tiles: Tiles) -> dict[str, bool]:
    """What is compile-time about a map: its layout, and whether its tiles have an element everywhere."""
    whole = tiles.group_channels % tiles.block_channels == 0
    exact = whole and math.prod(x.shape[2:]) % tiles.group_pixels == 0
    return {"CHANNELS_LAST": is_channels_last(x), "EXACT": exact}


def row_stride(vectors: Tensor | None) -> int:
    """What lies between the vectors of two samples: 0 where one serves all."""
    return 0 if vectors is None or vectors.shape[0] == 1 else vectors.stride(0)


def forward(given: Arguments) -> tuple[Tensor, Tensor, Tensor | None]:
    """(y, statistics, what is normalised unless it is x), with one kernel or, where groups are split, two."""
    x, num_groups = given.x, given.num_groups
    y = torch.empty_like(x) if given.other is None else cut.empty_whole(x, given.other)
    total = None if given.residual is None and given.other is None else torch.empty_like(y)
    statistics = x.new_empty((3, x.shape[0], num_groups), dtype=torch.float32)
    card = multiprocessors(x.device)
    tiles = cut.shared(y, num_groups, card) or cut.one_pass(y, num_groups, multiprocessors=card)
    if tiles is not None:
        grid, arguments, options = configure(given, tiles, y, statistics, None, total)
    else:
        tiles = cut.split(y, num_groups)
        assert tiles is not None
        partials = x.new_empty((4, x.shape[0], num_groups, tiles.chunks), dtype=torch.float32)
        grid, arguments, options = configure_statistics(given, tiles, partials, total)
        wrap_triton(statistics_kernel)[grid](*arguments, **options)
        whole = given if total is None else given._replace(x=total, residual=None, other=None)
        grid, arguments, options = configure(whole, tiles, y, statistics, partials)
    wrap_triton(group_norm_silu_kernel)[grid](*arguments, **options)
    return y, statistics, total


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

    `op.group_norm_silu` checks the arguments and asks `tiles` whether they fit.
    """
    given = Arguments(x, num_groups, weight, bias, eps, pre_bias, scale, shift, silu)
    y, statistics, _ = forward(given)
    return y, statistics


@triton_op("fastddpm::group_norm_mish", mutates_args={})
def group_norm_mish_op(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pre_bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> Tensor:
    """y, with Mish in the place of SiLU. It has no gradient."""
    given = Arguments(x, num_groups, weight, bias, eps, pre_bias, scale, shift, silu=False, mish=True)
    return forward(given)[0]


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
    given = Arguments(x, num_groups, weight, bias, eps, pre_bias, silu=silu, residual=residual)
    y, _, total = forward(given)
    assert total is not None
    return y, total


@triton_op("fastddpm::cat_group_norm_silu", mutates_args={})
def cat_group_norm_silu_op(
    x: Tensor,
    residual: Tensor | None,
    other: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pre_bias: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """(y, x + residual and other, one behind the other); all of one layout. It has no gradient."""
    given = Arguments(x, num_groups, weight, bias, eps, pre_bias, silu=silu, residual=residual, other=other)
    y, _, total = forward(given)
    assert total is not None
    return y, total


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
    num_groups = statistics.shape[2]
    given = Arguments(x, num_groups, weight, bias, pre_bias=pre_bias, scale=scale, shift=shift, silu=silu)
    if dy.stride() != x.stride():
        dy = torch.empty_like(x).copy_(dy)
    dx = torch.empty_like(x)
    tiles = cut.one_pass(x, num_groups, cut.LARGEST_BACKWARD_TILE, multiprocessors(x.device))
    is_split = tiles is None
    if tiles is None:
        tiles = cut.split(x, num_groups)
        assert tiles is not None
    sums = x.new_empty((3, tiles.pixel_chunks, *x.shape[:2]), dtype=torch.float32)
    grid, arguments, options = configure_backward(
        given, dy, statistics, tiles, sums, None, None if is_split else dx
    )
    wrap_triton(backward_kernel)[grid](*arguments, **options)
    sums = sums.sum(1)
    if is_split:
        means = _group_means(sums, _gain(x, weight, scale), x, num_groups)
        grid, arguments, options = configure_backward(given, dy, statistics, tiles, None, means, dx)
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
