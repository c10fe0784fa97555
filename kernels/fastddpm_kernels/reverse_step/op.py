"""Registration of `fastddpm::reverse_step`: the Triton kernel as an operator that torch.compile traces."""

from __future__ import annotations

from torch import Tensor
from torch.library import triton_op

from ..compat import wrap_triton
from .kernel import configure, reverse_step_kernel


@triton_op("fastddpm::reverse_step", mutates_args={"x", "x0"})
def reverse_step_op(
    x: Tensor,
    m: Tensor,
    table: Tensor,
    counter: Tensor,
    noise: Tensor | None,
    x0: Tensor | None,
    guidance: Tensor | None,
    threshold: Tensor | None,
    clip: bool,
    multistep: bool,
    divide: bool,
    rederive: bool,
) -> None:
    """In place on x and x0; arguments as in `dispatch.reverse_step`, which checks them. No gradient."""
    grid, arguments, options = configure(
        x, m, table, counter, noise, x0, guidance, threshold, clip, multistep, divide, rederive
    )
    wrap_triton(reverse_step_kernel)[grid](*arguments, **options)
