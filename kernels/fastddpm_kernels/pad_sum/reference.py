"""`pad_sum` in plain torch: what runs on every device but CUDA, and what the kernel is held against."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..traffic import Traffic, size


class Arguments(NamedTuple):
    """Of one call, in the order of the operator's schema; what each is says `op.pad_sum`."""

    x: Tensor
    residual: Tensor | None = None
    bias: Tensor | None = None
    pad: int = 0

    def traffic(self) -> Traffic:
        """x and a residual are read; the padded map is written, and the sum where there is a residual."""
        batch, channels, height, width = self.x.shape
        padded = batch * channels * (height + self.pad) * (width + self.pad) * self.x.element_size()
        added = (self.residual is not None) + (self.bias is not None)
        return Traffic(size(self.x) + 2 * size(self.residual) + padded, added * self.x.numel())


def pad_sum(given: Arguments) -> tuple[Tensor, Tensor]:
    """(x + residual + bias with zeros below and to the right, x + residual)."""
    x, residual, bias, pad = given
    total = x if residual is None else x + residual
    whole = total
    if bias is not None:
        whole = (total + bias.to(torch.promote_types(bias.dtype, x.dtype))[:, None, None]).to(x.dtype)
    return F.pad(whole, (0, pad, 0, pad)) if pad else whole, total
