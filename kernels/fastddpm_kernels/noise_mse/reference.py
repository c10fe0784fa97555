"""`noise_mse` in plain torch: what runs on every device but CUDA, and what the kernel is held against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..q_sample.reference import training_noise

DISTANCES = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}
"""d by name; torch calls the Huber function with delta 1 smooth_l1."""


def distances(
    prediction: Tensor,
    seeds: Tensor,
    ordinals: Tensor,
    loss: str,
    x_0: Tensor | None,
    signal: Tensor | None,
    sigma: Tensor | None,
) -> Tensor:
    """The mean of d over the elements of each sample, float32 (B,), differentiable in prediction.

    Arguments as in `dispatch.noise_mse`.
    """
    target = training_noise(seeds, ordinals, tuple(prediction.shape[1:]))
    if x_0 is not None and signal is not None and sigma is not None:
        per_sample = (-1, *(1,) * (prediction.dim() - 1))
        target = signal.reshape(per_sample) * target - sigma.reshape(per_sample) * x_0
    return DISTANCES[loss](prediction.float(), target, reduction="none").flatten(1).mean(dim=1)
