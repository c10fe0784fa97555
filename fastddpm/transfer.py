"""Tensors of the host brought to a device without a wait."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, quoted


def to_device(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The values on a device, in another dtype if one is given.

    From the host to a card they go through page-locked memory of their own: a copy from other memory waits
    for all that is queued in the stream. torch's allocator hands that memory out again once the copy has run.
    """
    dtype = dtype or values.dtype
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device, dtype)
    on_host = torch.empty_like(values, dtype=dtype, pin_memory=True).copy_(values)
    return on_host.to(device, non_blocking=True)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a device the current one: Triton launches there, wherever its tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def device_of(device: torch.device | str) -> torch.device:
    """The device that is named.

    Raises:
        ValueError: no name of one.
    """
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):  # in many words
        raise BadArgument(
            "device", quoted(device), "a device of torch, such as cpu, cuda or cuda:1,"
        ) from None


def locked(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
    """Page-locked memory on the host, of torch's caching allocator; not filled."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)
