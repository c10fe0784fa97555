"""`group_norm_silu` in plain torch: what runs on every device but CUDA, and on CUDA where no kernel fits."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..traffic import Traffic, size


class Arguments(NamedTuple):
    """Of one call, in the order of the operator's schema; what each is says `op.group_norm_silu`."""

    x: Tensor
    num_groups: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    pre_bias: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    silu: bool = True
    residual: Tensor | None = None
    other: Tensor | None = None
    mish: bool = False

    def traffic(self) -> Traffic:
        """x and other are read, y written, a residual read and what becomes of x written, as in one pass.

        Operations: x + residual, x + pre_bias, a sum, the difference from the mean, its square and their sum,
        one multiply-add for what comes after, SiLU or Mish.
        """
        whole = size(self.x, self.other)
        written = 1 if self.residual is None and self.other is None else 2
        n_elements = whole // self.x.element_size()
        added = size(self.residual) // self.x.element_size() + (self.pre_bias is not None) * n_elements
        flops = added + (6 + 4 * self.silu + 8 * self.mish) * n_elements
        return Traffic((1 + written) * whole + size(self.residual), flops)


def group_norm_silu(given: Arguments) -> Tensor:
    """The operations of a residual block one after the other; a residual was added before."""
    x, num_groups, weight, bias, eps, pre_bias, scale, shift, silu, *_, mish = given
    per_sample_and_channel = (..., *(None,) * (x.dim() - 2))
    if pre_bias is not None:
        biased = x + pre_bias[per_sample_and_channel]
        # A wider bias than a map in half precision, whose norm has weights as narrow as the map.
        x = biased.to(x.dtype) if x.dtype in (torch.float16, torch.bfloat16) else biased
    x = F.group_norm(x, num_groups, weight, bias, eps)
    if scale is not None and shift is not None:
        x = x * (1 + scale[per_sample_and_channel]) + shift[per_sample_and_channel]
    if mish:
        return F.mish(x)
    return F.silu(x) if silu else x
