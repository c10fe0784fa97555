"""Registration of `fastddpm::group_norm_silu`: the Triton kernels as an operator, with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from . import tiles as cut
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
    vectors = Vectors(weight, bias, pre_bias, scale, shift)
    y = torch.empty_like(x)
    statistics = x.new_empty((3, x.shape[0], num_groups), dtype=torch.float32)
    tiles = cut.one_pass(x, num_groups)
    partials = None
    if tiles is None:
        tiles = cut.split(x, num_groups)
        assert tiles is not None
        partials = x.new_empty((4, x.shape[0], num_groups, tiles.chunks), dtype=torch.float32)
        grid, arguments, options = configure_statistics(x, num_groups, pre_bias, tiles, partials)
        wrap_triton(statistics_kernel)[grid](*arguments, **options)
    grid, arguments, options = configure(x, num_groups, eps, vectors, silu, tiles, y, statistics, partials)
    wrap_triton(group_norm_silu_kernel)[grid](*arguments, **options)
    return y, statistics
