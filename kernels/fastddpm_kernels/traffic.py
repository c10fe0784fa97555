"""What one call of an operator asks of a device, counted from its tensors: bytes and operations."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Traffic(NamedTuple):
    """Bytes that must be read and written, and float32 operations of the formula.

    Every tensor of the size of the state counts as often as it is read or written; tables, counters, seeds,
    vectors of channels and partial sums, up to a few per cent of them, are left out. Each +, -, *, / and
    function of an element is an operation; those that draw noise, most of them on integers, are left out.
    """

    bytes: int
    flops: int


def size(*tensors: Tensor | None) -> int:
    """Bytes of the elements of those that are there."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
