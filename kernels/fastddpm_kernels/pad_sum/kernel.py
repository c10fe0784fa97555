"""Two maps and a bias added, and zeros put behind each row and sample, in one pass.

    total  = x + residual                                              in the dtype of x
    padded = total + bias   in the first H rows and W columns, else 0   the sum in float32

x, residual and total are (B, C, H, W) channels_last float32, float16 or bfloat16, padded
(B, C, H + pad, W + pad) likewise, bias (C,) of any floating dtype. A row of such a map is one piece of
memory, so a program copies part of a row and no element asks where it is but by its row's length.

Bytes per element in half precision: x and the residual are read (2 each), the padded map is written (2) and,
where there is a residual, the sum (2). Operators of torch read and write these maps four times: a sum, the
bias, the zeros, and what is put between them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from ..compat import wrap_triton
from ..launch import Launch
from .reference import Arguments

BLOCK_SIZE = 1024
"""Elements of a program: 8 a thread, which are 128 bits in half precision."""


@triton.jit(do_not_specialize=["height", "padded_height"])
def pad_sum_kernel(
    x_ptr,
    residual_ptr,
    bias_ptr,
    padded_ptr,
    total_ptr,
    height,
    padded_height,
    row_size,
    padded_row_size,
    channels,
    BLOCK_SIZE: tl.constexpr,
):
    """Grid (B * padded_height, parts of a row). total_ptr is None where residual_ptr is."""
    line = tl.program_id(0)
    sample = line // padded_height
    row = line - sample * padded_height
    element = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    exists = (element < row_size) & (row < height)
    first = (sample.to(tl.int64) * height + row) * row_size
    h = tl.load(x_ptr + first + element, mask=exists, other=0.0)
    if residual_ptr is not None:
        other = tl.load(residual_ptr + first + element, mask=exists, other=0.0)
        h = (h.to(tl.float32) + other.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + first + element, h, mask=exists)
    v = h.to(tl.float32)
    if bias_ptr is not None:
        v += tl.load(bias_ptr + element % channels, mask=exists, other=0.0).to(tl.float32)
    place = line.to(tl.int64) * padded_row_size + element
    tl.store(padded_ptr + place, v, mask=element < padded_row_size)


def configure(given: Arguments, padded: Tensor, total: Tensor | None) -> Launch:
    """The launch for these arguments: grid, positional and keyword ones. padded and total are written."""
    x, residual, bias, pad = given
    batch, channels, height, width = x.shape
    padded_row = (width + pad) * channels
    grid = (batch * (height + pad), -(-padded_row // BLOCK_SIZE))
    sizes = (height, height + pad, width * channels, padded_row, channels)
    return grid, (x, residual, bias, padded, total, *sizes), {"BLOCK_SIZE": BLOCK_SIZE, "num_warps": 4}


@triton_op("fastddpm::pad_sum", mutates_args={})
def pad_sum_op(x: Tensor, residual: Tensor | None, bias: Tensor | None, pad: int) -> tuple[Tensor, Tensor]:
    """(padded, total); the total is empty where there is no residual. It has no gradient.

    `op.pad_sum` checks the arguments.
    """
    batch, channels, height, width = x.shape
    padded = x.new_empty((batch, height + pad, width + pad, channels)).movedim(-1, 1)
    total = None
    if residual is not None:
        total = x.new_empty((batch, height, width, channels)).movedim(-1, 1)
    grid, operands, options = configure(Arguments(x, residual, bias, pad), padded, total)
    wrap_triton(pad_sum_kernel)[grid](*operands, **options)
    return padded, x.new_empty(0) if total is None else total
