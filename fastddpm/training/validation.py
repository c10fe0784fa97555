"""The loss on held-out images, always with the same noise and timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastddpm.training.objective import Noiser
from fastddpm.transfer import to_device
from fastddpm.unet import UNet

# Ordinals of validation samples: far from any that a run reaches.
VALIDATION_ORDINAL = 2**48
VALIDATION_BATCH = 256


class TrainingData(Protocol):
    """What the trainer needs of a data set."""

    def __len__(self) -> int:
        """Number of images."""

    def batch(
        self, indices: Tensor, ordinals: Tensor | None = None, *, seed: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Images float32 ``(B, C, H, W)`` in [-1, 1], labels int64 ``(B,)``; augmented by ordinal, seed."""


def on_device(
    network: UNet, x_0: Tensor, labels: Tensor | None, ordinals: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """A batch where the network is; labels only for a network that takes them."""
    device = next(network.parameters()).device
    used = None if labels is None or network.config.num_classes is None else to_device(labels, device)
    return to_device(x_0, device), used, to_device(ordinals, device)


@torch.no_grad()
def validation_loss(
    network: UNet, noiser: Noiser, data: TrainingData, stopped: Sequence[int] = ()
) -> float | None:
    """The mean loss over all of ``data`` as it is, without augmentation and class dropout.

    Args:
        network: in eval mode.
        noiser: with the run's seed and ``class_dropout=0``.
        data: at least one image.
        stopped: gets an element when the run is to stop.

    Returns:
        None where it was stopped.
    """
    total, count = 0.0, len(data)
    for start in range(0, count, VALIDATION_BATCH):
        if stopped:
            return None
        indices = torch.arange(start, min(start + VALIDATION_BATCH, count))
        x_0, labels = data.batch(indices)
        batch = noiser(*on_device(network, x_0, labels, indices + VALIDATION_ORDINAL))
        prediction = network(batch.inputs, batch.t, *batch.conditioning)
        total += float(noiser.loss(prediction, batch)) * len(indices)
    return total / count
