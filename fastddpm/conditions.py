"""What a model is given by name besides x and t, one row per image.

A condition has any shape and kind: text states ``(B, L, D)``, vectors, masks, floating labels. It is cut and
padded with the batches, and doubled under guidance, where each needs a value for the half without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_values, shown
from fastddpm.transfer import to_device

LABELS = "class_labels"
"""The condition that has arguments of its own: `class_labels`, and a null label for guidance."""
Conditions = Mapping[str, Tensor]
Labels = int | float | str | Sequence[int] | Sequence[float] | Sequence[int | str] | Tensor


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
