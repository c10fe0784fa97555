"""Checks that the operators' public functions make before anything runs.

They read shapes, dtypes, devices and strides only, never a value: no host synchronisation, and torch.compile
can trace them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_tensor(
    name: str,
    tensor: Tensor,
    *,
    shape: tuple[int, ...],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    contiguous: bool = True,
) -> None:
    """Raise ValueError, naming the argument, unless it has this shape, a dtype of these and this device."""
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; accepted is {tuple(shape)}")
    if tensor.dtype not in dtypes:
        accepted = ", ".join(str(dtype) for dtype in dtypes)
        raise ValueError(f"{name} has dtype {tensor.dtype}; accepted: {accepted}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}; accepted is {device}, where x is")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}; accepted is a contiguous tensor")


def check_state(name: str, x: Tensor) -> None:
    """Raise ValueError unless x is a contiguous float32 (B, ...) of at least one element per sample."""
    if x.dim() < 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; accepted is (B, C, H, W) or any (B, ...)")
    check_tensor(name, x, shape=x.shape, dtypes=(torch.float32,), device=x.device)
