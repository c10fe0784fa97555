"""`group_norm_silu` in plain torch: what runs on every device but CUDA, and on CUDA where no kernel fits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    pre_bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """The operations of a residual block one after the other; arguments as in `dispatch.group_norm_silu`."""
    per_sample_and_channel = (..., *(None,) * (x.dim() - 2))
    if pre_bias is not None:
        biased = x + pre_bias[per_sample_and_channel]
        # A wider bias than a map in half precision, whose norm has weights as narrow as the map.
        x = biased.to(x.dtype) if x.dtype in (torch.float16, torch.bfloat16) else biased
    x = F.group_norm(x, num_groups, weight, bias, eps)
    if scale is not None and shift is not None:
        x = x * (1 + scale[per_sample_and_channel]) + shift[per_sample_and_channel]
    return F.silu(x) if activation == "silu" else x
