"""`noise_mse` in plain torch: what runs on every device but CUDA, and what the kernel is held against."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..q_sample.reference import training_noise
from ..traffic import Traffic, size

DISTANCES = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}
"""d by name; torch calls the Huber function with delta 1 smooth_l1."""

OPERATIONS = {"l2": (1, 1), "l1": (1, 1), "huber": (4, 2)}
"""Of d, and of its slope."""


class Arguments(NamedTuple):
    """Of one call, in the order of the operator's schema; what each is says `op.noise_mse`."""

    prediction: Tensor
    seeds: Tensor
    ordinals: Tensor
    loss: str = "l2"
    x_0: Tensor | None = None
    signal: Tensor | None = None
    sigma: Tensor | None = None

    def traffic(self, *, backward: bool = False) -> Traffic:
        """The prediction and x_0 are read, the gradient written; u, d and its sum, or slope and scale."""
        n_bytes = size(self.prediction, self.x_0) + backward * size(self.prediction)
        operations = (1 if self.x_0 is None else 4) + OPERATIONS[self.loss][backward] + 1
        return Traffic(n_bytes, operations * self.prediction.numel())


def distances(given: Arguments) -> Tensor:
    """The mean of d over the elements of each sample, float32 (B,), differentiable in prediction."""
    prediction, seeds, ordinals, loss, x_0, signal, sigma = given
    target = training_noise(seeds, ordinals, tuple(prediction.shape[1:]))
    if x_0 is not None and signal is not None and sigma is not None:
        per_sample = (-1, *(1,) * (prediction.dim() - 1))
        target = signal.reshape(per_sample) * target - sigma.reshape(per_sample) * x_0
    return DISTANCES[loss](prediction.float(), target, reduction="none").flatten(1).mean(dim=1)
