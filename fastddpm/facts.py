"""What sampling has to know of a model: seen in a network of this package, told or unknown of any other.

What it can be called with is read from its own signature.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Collection, Iterable

import torch
from torch import nn

from fastddpm.checks import BadArgument, image_shape, state_shape
from fastddpm.class_names import Names
from fastddpm.conditions import LABELS
from fastddpm.network import Model, model_device_dtype
from fastddpm.unet import UNet
from fastddpm.wrappers import SAME


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a model can be called with.

    Attributes:
        model: its class or function, for messages.
        first: the names of its first two arguments, x and t.
        names: those that it takes by name besides.
        required: of these, those without a default.
        is_open: whether it takes names that it does not list (``**kwargs``).
    """

    model: str
    first: tuple[str, ...]
    names: tuple[str, ...]
    required: tuple[str, ...]
    is_open: bool

    def takes(self, name: str) -> bool:
        """Whether a condition may have this name."""
        return name in self.names or (self.is_open and name not in self.first)

    @property
    def in_words(self) -> str:
        """What it takes, for messages."""
        return ", ".join([*self.names, *(["any other"] if self.is_open else [])]) or "no conditions"


def signature_of(model: Model) -> Signature | None:
    """The signature of a model inside its wrappers; None where Python does not know it."""
    while isinstance(model, nn.Module):
        inner = next((model._modules[name] for name in SAME if name in model._modules), None)
        if inner is None:
            break
        model = inner
    called = model.forward if isinstance(model, nn.Module) else model
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return None
    kinds = inspect.Parameter
    first = [
        one.name for one in parameters if one.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    named = [
        one
        for one in parameters
        if one.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY) and one.name not in first[:2]
    ]
    function = called.func if isinstance(called, functools.partial) else called
    of_module = isinstance(model, nn.Module)
    name = type(model).__name__ if of_module else getattr(function, "__name__", type(model).__name__)
    return Signature(
        name,
        tuple(first[:2]),
        tuple(one.name for one in named),
        tuple(one.name for one in named if one.default is kinds.empty),
        any(one.kind is kinds.VAR_KEYWORD for one in parameters),
    )


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

    def check_names(self, cond: Collection[str], *, has_labels: bool) -> None:
        """BadArgument for names that the model does not take, and for those that it needs and has not."""
        if LABELS in cond:
            raise BadArgument("cond", repr(LABELS), f"{LABELS}=, an argument of its own,")
        signature = self.signature
        if signature is None:
            return
        if has_labels and not signature.takes(LABELS):
            first = next(iter(signature.names), None)
            instead = f"cond={{{first!r}: a tensor (B, ...)}}" if first else "None"
            raise BadArgument(
                LABELS, f"labels for {signature.model}, which takes {signature.in_words},", instead
            )
        for name in cond:
            if not signature.takes(name):
                given = f"{name!r}, which {signature.model} does not take,"
                raise BadArgument("cond", given, signature.in_words)
        there = {*cond, *([LABELS] if has_labels else [])}
        for name in signature.required:
            if name not in there:
                is_labels = name == LABELS
                raise BadArgument(
                    LABELS if is_labels else "cond",
                    f"no {name!r}, which {signature.model} needs,",
                    "labels" if is_labels else f"cond={{{name!r}: a tensor (B, ...)}}",
                )

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
