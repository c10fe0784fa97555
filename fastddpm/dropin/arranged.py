"""A library's network as a GPU runs it fastest without becoming another: channels_last, its norms fused."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastddpm.copies import Copied
from fastddpm.fusion import FusedNorms, fuse_norms
from fastddpm.weights import Inventory


class ForGpu(Copied):
    """A network with its convolutions' weights copied into channels_last order, each norm one kernel.

    Everything else is shared with the original, whose structure is copied and which stays as it is. Where a
    norm cannot be fused, or does not give its output once it is, all of them run as they are.

    Args:
        original: left as it is.
        dtype: of the copy, which shares nothing then; None for the original's.

    Attributes:
        fused: the norms that are.
        words: what was done, for a report.
    """

    def __init__(self, original: nn.Module, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        super().__init__(original, self._arranged)

    def _arranged(self, original: nn.Module) -> nn.Module:
        shared = {} if self._dtype else {id(tensor): tensor for tensor in Inventory([original]).tensors()}
        module = copy.deepcopy(original, shared)
        module = module if self._dtype is None else module.to(self._dtype).requires_grad_(False)
        moved: dict[Tensor, nn.Parameter] = {}  # a weight that convolutions share stays one
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                weight = part.weight
                # Of a kernel of 1x1 the strides alone tell cuDNN's choice of a layout for its output.
                own = torch.empty_like(weight, memory_format=torch.channels_last)
                if own.stride() != weight.stride() and weight not in moved:
                    moved[weight] = nn.Parameter(own.copy_(weight.detach()), requires_grad=False)
                part.weight = moved.get(weight, weight)
        self.words = "in channels_last, its norms fused"
        try:
            self.fused = fuse_norms(module)
            if not self.fused.replaced:
                self.words = "in channels_last"
        except (RuntimeError, TypeError, ValueError) as error:
            self.fused = FusedNorms()
            why = (str(error).splitlines() or [type(error).__name__])[0]
            self.words = f"in channels_last, its norms not fused ({why})"
        return module
