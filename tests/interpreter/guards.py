"""Tensors that stand between guard values, to see a kernel write outside of them."""

import torch
from torch import Tensor

GUARD = 77.0
MARGIN = 64
"""Guard elements on each side: 256 bytes, which keeps the tensor aligned."""


class Guarded:
    """A copy of `values` in the middle of a larger buffer."""

    def __init__(self, values: Tensor) -> None:
        self.buffer = torch.full((values.numel() + 2 * MARGIN,), GUARD, dtype=values.dtype)
        self.tensor = self.buffer[MARGIN:-MARGIN].view(values.shape)
        self.tensor.copy_(values)

    def intact(self) -> bool:
        """Whether every guard value is still there."""
        return bool((self.buffer[:MARGIN] == GUARD).all() and (self.buffer[-MARGIN:] == GUARD).all())
