"""The moving average of a network's weights, by a count of steps that the host keeps.

`torch.optim.swa_utils.AveragedModel` keeps its count in a tensor and hands it over on the weights' device, so
that a decay that follows from it is read from a card at every step.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class MovingAverage(Generic[M]):
    """Weights averaged as they are trained: a <- a + (1 - d) * (w - a), d = min(decay, (1 + n) / (10 + n)).

    The first update copies, so that the initial weights do not count. Buffers are always copied.

    Args:
        network: what is trained; its parameters must stay the objects that they are.
        decay: the largest d.

    Attributes:
        module: a network of the same kind, with the averaged weights.
    """

    def __init__(self, network: M, decay: float) -> None:
        self.module = copy.deepcopy(network)
        self.decay = decay
        self._parameters: tuple[list[Tensor], list[Tensor]]
        self._parameters = [*self.module.parameters()], [*network.parameters()]
        self._buffers = [*self.module.buffers()], [*network.buffers()]

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Takes in the weights after an optimiser step, the n-th from 0; reads nothing of the device."""
        averages, weights = self._parameters
        if n == 0:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + n) / (10 + n)))
        if self._buffers[0]:
            torch._foreach_copy_(*self._buffers)
