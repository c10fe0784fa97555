"""What sampling has to know of a model: seen in a network of this package, told or unknown of any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from fastddpm.checks import image_shape, state_shape
from fastddpm.class_names import Names
from fastddpm.conditions import LABELS, Signature, signature_of
from fastddpm.network import Model, model_device_dtype
from fastddpm.unet import UNet


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """A model as `fastddpm.request` checks a caller's wishes against it.

    Attributes:
        device: where it runs.
        dtype: what it takes x in.
        shape: of one state, ``(C, H, W)`` of an image; None where nobody said.
        images_only: whether its states have three axes and no other number.
        takes_labels: whether it has classes; None where that cannot be seen.
        num_classes: how many; None where it has none or that cannot be seen.
        null_label: the label that means "no class"; None without one.
        class_names: of classes 0, 1, ...; None where nobody said.
        in_channels: of condition and image together; None where that cannot be seen.
        size_multiple: what height and width, with ``padding``, are multiples of; None where that cannot be
            seen.
        padding: pixels that it adds to height and width.
        signature: what it can be called with; None where that cannot be seen.
    """

    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, ...] | None = None
    images_only: bool = False
    takes_labels: bool | None = None
    num_classes: int | None = None
    null_label: int | None = None
    class_names: Names | None = None
    in_channels: int | None = None
    size_multiple: int | None = None
    padding: int = 0
    signature: Signature | None = None

    def checked_shape(self, shape: Iterable[int]) -> tuple[int, ...]:
        """The shape of one state; BadArgument for one that its model cannot have."""
        return image_shape(shape) if self.images_only else state_shape(shape)

    @property
    def condition_channels(self) -> int | None:
        """Channels beyond the image's; None where that cannot be seen."""
        if self.in_channels is None or self.shape is None:
            return None
        return self.in_channels - self.shape[0]


def model_facts(
    model: Model,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    shape: tuple[int, ...] | None = None,
    null_label: int | None = None,
    class_names: Names | None = None,
) -> ModelFacts:
    """The facts of a model; what is given is taken, the rest is looked for in the model."""
    if device is None or dtype is None:
        seen_device, seen_dtype = model_device_dtype(model)
        device, dtype = device or seen_device, dtype or seen_dtype
    if not isinstance(model, UNet):
        return ModelFacts(
            device,
            dtype,
            shape,
            null_label=null_label,
            class_names=class_names,
            signature=signature_of(model),
        )
    config = model.config
    if null_label is None and config.null_class:
        null_label = config.num_classes
    return ModelFacts(
        device,
        dtype,
        shape,
        images_only=True,
        takes_labels=config.num_classes is not None,
        num_classes=config.num_classes,
        null_label=null_label,
        class_names=class_names,
        in_channels=config.in_channels,
        size_multiple=config.size_multiple,
        padding=2 * config.initial_pad,
        signature=Signature(
            type(model).__name__, ("x", "t"), () if config.num_classes is None else (LABELS,), (), False
        ),
    )
