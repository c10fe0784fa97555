"""A pipeline's UNet as chains run it: its shapes, its labels, its dtype, its learned variance."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument, is_whole
from fastddpm.dropin.peer import Peer
from fastddpm.network import unwrapped
from fastddpm.unet import UNet, UNetConfig
from fastddpm.unet import diffusers as dialect
from fastddpm.unet.diffusers_classes import check_live


@dataclasses.dataclass(frozen=True)
class Way:
    """How chains call a pipeline's network.

    Attributes:
        name: of the way: a pipeline keeps one form of its network for each.
        call: ``(network, x, t, **cond) -> output``.
        may_be_ours: whether our UNet may stand in for the network where it is called so.
    """

    name: str
    call: Callable[..., object]
    may_be_ours: bool


def check_network(unet: nn.Module) -> None:
    """ValueError for a network that wants more than ``(x, t)``, draws no pictures, or moves as it runs."""
    check_live(type(unet), "unet")
    check_call(unet, "unet", (), "a network of the image and the timestep, such as UNet2DModel,")


def check_call(network: nn.Module, name: str, conditions: Sequence[str], accepted: str) -> None:
    """ValueError for a network that moves as it runs, or that ``(x, t, **conditions)`` cannot call.

    Args:
        network: a pipeline's.
        name: of its attribute there, for messages.
        conditions: names of what it is given besides x and the timestep.
        accepted: what is, for messages.
    """
    try:
        inspect.signature(network.forward).bind(None, None, **dict.fromkeys(conditions))
    except TypeError as error:
        words = ", ".join(("x", "t", *conditions))
        given = f"{type(network).__name__}, called as {name}({words}): {error},"
        raise BadArgument(name, given, accepted) from error
    if any(hasattr(part, "_hf_hook") for part in network.modules()):
        raise BadArgument(
            name,
            "one with the hooks of CPU offloading, which move its weights while it runs,",
            "a pipeline as pipeline.to(device) leaves it",
        )


def image_shape(unet: Peer) -> tuple[int, int, int]:
    """``(C, H, W)`` of the images that a UNet makes, as the pipelines read it."""
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(unet.config.in_channels), int(height), int(width)


def label_tensors(
    unet: nn.Module, class_labels: int | Sequence[int] | Tensor | None, count: int
) -> dict[str, Tensor]:
    """``{"class_labels": (B, ...)}`` for a class-conditional UNet, else nothing.

    Args:
        unet: the network.
        class_labels: one integer for all images, or a list or tensor with one each; other UNets than those
            with a table of classes (``class_embed_type``) take a float tensor ``(B, ...)``.
        count: B.
        device: where the labels go.

    Raises:
        ValueError: labels missing, not accepted by this UNet, not one each, or outside its classes.
    """
    embedding = getattr(unet, "class_embedding", None)
    if embedding is None:
        if class_labels is not None:
            raise BadArgument("class_labels", "labels for a UNet without classes", "None")
        return {}
    if class_labels is None:
        raise BadArgument("class_labels", "None for a class-conditional UNet", "one each")
    if isinstance(class_labels, Iterable):
        labels = class_labels if isinstance(class_labels, Tensor) else torch.tensor(list(class_labels))
    else:
        labels = torch.full((count,), class_labels)
    if labels.ndim == 0 or len(labels) != count:
        raise BadArgument("class_labels", f"shape {tuple(labels.shape)} for {count} images", "one each")
    if isinstance(embedding, nn.Embedding):
        classes = embedding.num_embeddings
        if not all(is_whole(value) and 0 <= value < classes for value in labels.flatten().tolist()):
            raise BadArgument("class_labels", str(labels.tolist()), f"integers in 0 .. {classes - 1}")
    return {"class_labels": labels}


class Translation:
    """`fastddpm.unet.diffusers` as a `fastddpm.dropin.comparison.Dialect`, of one network at a time."""

    config: UNetConfig | None = None

    def from_module(self, module: nn.Module) -> UNet | None:
        """Our UNet around the module's own weights; None where it is of another architecture."""
        unet = dialect.from_module(module)
        self.config = None if unet is None else unet.config
        return unet

    def state_dict(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict from that of the network last translated."""
        assert self.config is not None
        return dialect.state_dict(theirs, self.config)


def call(unet: nn.Module, x: Tensor, t: Tensor, **cond: Tensor) -> object:
    """A UNet's output for x ``(B, C, H, W)`` and t ``(B,)``."""
    return unet(x, t, **cond)


def call_with_log_variance(channels: int, unet: nn.Module, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
    """Of a network of variance_type "learned", whose second half is the variance: a plan's row takes its log.

    Returns:
        float32 ``(B, 2C, H, W)``, C being ``channels``.
    """
    return with_log_variance(unwrapped(unet(x, t, **cond)), channels)


def with_log_variance(m: Tensor, channels: int) -> Tensor:
    """``m (B, 2C, ...)`` in float32 with the logarithm of its second half; ``(B, C, ...)`` as it is."""
    if m.shape[1] == channels:
        return m
    m = m.to(torch.float32)
    return torch.cat((m[:, :channels], m[:, channels:].log()), dim=1)
