"""The launch geometry that the kernels share: a program per tile of 256 counters of one sample."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .noise.reference import plane_size

Launch: TypeAlias = "tuple[tuple[int, int], tuple[Any, ...], dict[str, int]]"
"""A grid, a kernel's positional and its keyword arguments: `kernel[grid](*arguments, **options)`."""

BLOCK_SIZE = 256
"""Counters per program, each for the 4 elements of its lanes: 64 threads of 16 elements."""

MULTIPROCESSORS = 132
"""Of an H100: what launches are cut for where there is no card, as in the interpreter and in fake tensors."""

MAX_ELEMENTS = 65535 * 4 * BLOCK_SIZE
"""Elements per sample that the second axis of a grid can cover."""


def geometry(name: str, x: Tensor) -> tuple[int, int, tuple[int, int], dict[str, int]]:
    """(elements per sample, q/16 of the noise spec, grid, launch options) for a tensor of samples (B, ...).

    q is passed to a kernel as q/16 and multiplied there: so the compiler knows that it is a multiple of 16.

    Raises:
        ValueError: a sample has more than MAX_ELEMENTS elements; `name` is the argument it names.
    """
    n_elements = math.prod(x.shape[1:])
    if n_elements > MAX_ELEMENTS:
        raise ValueError(f"{name} has {n_elements} elements per sample; accepted are up to {MAX_ELEMENTS}")
    plane = plane_size(n_elements)
    grid = (x.shape[0], -(-plane // BLOCK_SIZE))
    # 64 threads are two warps, or one of AMD's wavefronts.
    options = {"BLOCK_SIZE": BLOCK_SIZE, "num_warps": 1 if torch.version.hip else 2}
    return n_elements, plane // 16, grid, options


def multiprocessors(device: torch.device) -> int:
    """Of the card that a tensor is on."""
    if device.type == "cuda" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return MULTIPROCESSORS


def division(divisor: int) -> tuple[int, int]:
    """(magic, shift) with n // divisor = (n * magic >> 32) >> shift for all 0 <= n < 2**31, divisor >= 2.

    Two instructions instead of the twenty of a division (Granlund and Montgomery, "Division by Invariant
    Integers using Multiplication", 1994).
    """
    bits = (divisor - 1).bit_length()
    return -(-(1 << (31 + bits)) // divisor), bits - 1
