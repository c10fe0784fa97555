"""The public `pad_sum`: argument checks, then the Triton operator on CUDA, else plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compat import runs_kernels
from .reference import Arguments
from .reference import pad_sum as reference_pad_sum

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def pad_sum(
    x: Tensor, residual: Tensor | None = None, bias: Tensor | None = None, *, pad: int = 0
) -> tuple[Tensor, Tensor]:
    """(x + residual + bias with zeros below and to the right, x + residual): a map before it is halved.

    Args:
        x: (B, C, H, W). On CUDA channels_last maps of float32, float16 and bfloat16 go through the kernel.
        residual: of x's shape and dtype, or None.
        bias: (C,), of a floating dtype, or None.
        pad: rows and columns of zeros, as TensorFlow's "SAME" puts them before a strided convolution.

    Returns:
        Both in x's dtype and, on CUDA, layout: (B, C, H + pad, W + pad), and the sum, which is x itself where
        there is no residual. The bias is added to the rounded sum, as the norms add it. The kernel is for no
        gradient; where one is needed plain torch runs.

    Raises:
        ValueError: x has another rank, or an argument another shape, dtype or device.
    """
    _check(x, residual, bias, pad)
    given = Arguments(x, residual, bias, pad)
    tensors = [tensor for tensor in (x, residual, bias) if tensor is not None]
    is_plain = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    is_last = x.movedim(1, -1).is_contiguous() and x.dtype in DTYPES and x.numel() > 0
    if is_plain or not is_last or not runs_kernels(x.device):
        return reference_pad_sum(given)
    from .kernel import pad_sum_op

    if residual is not None and residual.stride() != x.stride():
        residual = torch.empty_like(x).copy_(residual)
    padded, total = pad_sum_op(x, residual, None if bias is None else bias.contiguous(), pad)
    return padded, x if residual is None else total


def _check(x: Tensor, residual: Tensor | None, bias: Tensor | None, pad: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; accepted is (B, C, H, W)")
    if pad < 0:
        raise ValueError(f"pad is {pad}; accepted are 0 and more")
    if residual is not None:
        kind = (residual.shape, residual.dtype, residual.device)
        if kind != (x.shape, x.dtype, x.device):
            raise ValueError(
                f"residual: {tuple(residual.shape)}, {residual.dtype} on {residual.device} given; "
                f"accepted is {tuple(x.shape)}, {x.dtype} on {x.device}, as x is"
            )
    if bias is not None and (bias.shape != x.shape[1:2] or bias.device != x.device):
        raise ValueError(
            f"bias: {tuple(bias.shape)} on {bias.device} given; accepted is {(x.shape[1],)} on {x.device}"
        )
