"""What a model is given by name besides x and t, one row per image, checked against its own signature.

A condition has any shape and kind: text states ``(B, L, D)``, vectors, masks, floating labels. It is cut and
padded with the batches, and doubled under guidance, where each needs a value for the half without it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument, check_values, shown
from fastddpm.network import Model
from fastddpm.transfer import to_device
from fastddpm.wrappers import SAME

LABELS = "class_labels"
"""The condition that has arguments of its own: `class_labels`, and a null label for guidance."""
Conditions = Mapping[str, Tensor]
Labels = int | float | str | Sequence[int] | Sequence[float] | Sequence[int | str] | Tensor


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


def check_names(signature: Signature | None, cond: Collection[str], *, has_labels: bool) -> None:
    """BadArgument for names that a model does not take, and for those that it needs and was not given."""
    if LABELS in cond:
        raise BadArgument("cond", repr(LABELS), f"{LABELS}=, an argument of its own,")
    if signature is None:
        return
    if has_labels and not signature.takes(LABELS):
        first = next(iter(signature.names), None)
        instead = f"cond={{{first!r}: a tensor (B, ...)}}" if first else "None"
        raise BadArgument(LABELS, f"labels for {signature.model}, which takes {signature.in_words},", instead)
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


def checked(
    cond: Conditions | None, argument: str, count: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Conditions as a model takes them, ``(count, ...)`` each: floating ones in its dtype, on its device.

    Args:
        cond: tensors of ``count`` rows, or of one for all.
        argument: ``cond`` or ``uncond``, for messages.
        count: images.
        device: of the model.
        dtype: likewise.

    Raises:
        ValueError: naming the condition, what was given and what is accepted.
    """
    if cond is None:
        return {}
    if not isinstance(cond, Mapping) or not all(isinstance(name, str) for name in cond):
        raise BadArgument(argument, type(cond).__name__, "a dictionary of tensors by name")
    return {
        name: checked_one(f"{argument}[{name!r}]", value, count, device, dtype)
        for name, value in cond.items()
    }


def checked_one(name: str, value: object, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """One of them; as of `checked`."""
    tensor = value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        tensor = torch.tensor(np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("=")))
    accepted = f"a tensor ({count} or 1, ...)"
    if not isinstance(tensor, Tensor) or not tensor.ndim or tensor.shape[0] not in (1, count):
        raise BadArgument(name, shown(value), accepted)
    if not tensor.numel() or tensor.is_complex() or tensor.layout is not torch.strided:
        raise BadArgument(name, f"{tensor.dtype} of shape {tuple(tensor.shape)}", accepted)
    if tensor.is_floating_point():
        check_values(name, tensor)
    wanted = dtype if tensor.is_floating_point() else tensor.dtype
    return to_device(tensor.detach(), device, wanted).expand(count, *tensor.shape[1:])


def check_halves(cond: Conditions, uncond: Conditions, *, guided: bool) -> None:
    """BadArgument unless what is there without the conditions is as what is there with them.

    Args:
        cond: with them.
        uncond: without them.
        guided: both are used, so that each needs a value.
    """
    for name, value in uncond.items():
        if name not in cond:
            raise BadArgument("uncond", f"{name!r}, which is not in cond,", ", ".join(cond) or "None")
        if value.shape != cond[name].shape or value.dtype != cond[name].dtype:
            given = f"{value.dtype} of shape {tuple(value.shape)}"
            wanted = f"{cond[name].dtype} of shape {tuple(cond[name].shape)}, as in cond,"
            raise BadArgument(f"uncond[{name!r}]", given, wanted)
    missing = [name for name in cond if name not in uncond]
    if guided and missing:
        raise BadArgument(
            "guidance_scale",
            f"a number other than 1 without uncond of {', '.join(missing)}",
            f"1, or uncond={{{missing[0]!r}: a tensor as in cond}},",
        )
