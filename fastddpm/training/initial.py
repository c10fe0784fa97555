"""Training that begins with the weights of a model that is there (fine-tuning)."""

from __future__ import annotations

import dataclasses
import hashlib

import torch

from fastddpm.checks import BadArgument
from fastddpm.sampler import Sampler
from fastddpm.tasks import Task
from fastddpm.unet import UNet, UNetConfig

OF_CLASSES = "class_embed"
"""In the names of tensors that belong to the classes."""


def fine_tuned(
    source: Sampler, channels: int, num_classes: int | None, task: Task | None, dropout: float
) -> UNetConfig:
    """The architecture of a model for other classes.

    Args:
        source: of the model.
        channels: of the images.
        num_classes: of the data.
        task: what the network is trained for; None for generation.
        dropout: while it is trained.

    Raises:
        ValueError: the model is no `UNet`, takes images of other channels, or predicts more than an image.
    """
    network = source.model
    if not isinstance(network, UNet):
        given = f"a model whose network is a {type(network).__name__}"
        raise BadArgument("init_from", given, "one whose network is a UNet of fastddpm")
    config = network.config
    taken, returned = channels + (0 if task is None else task.channels(channels)), config.out_channels
    if config.in_channels != taken or returned not in (None, channels):
        raise BadArgument(
            "init_from",
            f"a model of {config.in_channels} channels in and {returned or config.in_channels} out",
            f"one of {taken} in and {channels} out, as the data has",
        )
    null_class = num_classes is not None
    return dataclasses.replace(config, num_classes=num_classes, null_class=null_class, dropout=dropout)


@torch.no_grad()
def begin_with(network: UNet, initial: UNet) -> None:
    """Copies the weights of ``initial``. What belongs to classes is copied where there are as many of them.

    Raises:
        ValueError: another architecture.
    """
    theirs, ours = (
        dataclasses.replace(one.config, num_classes=None, null_class=False, dropout=0.0)
        for one in (initial, network)
    )
    if theirs != ours:
        raise BadArgument("initial", "a network of another architecture", "one of the model's")
    classes = [(one.config.num_classes, one.config.null_class) for one in (initial, network)]
    weights = initial.state_dict()
    for name, tensor in network.state_dict().items():
        if classes[0] == classes[1] or OF_CLASSES not in name.split("."):
            tensor.copy_(weights[name])


def digest(network: UNet | None) -> str | None:
    """The weights as a hash, by which a run that is gone on with knows what it began with."""
    if network is None:
        return None
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return f"weights {found.hexdigest()[:16]}"
