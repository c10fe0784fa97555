"""Kernels of fastddpm: fused Triton operators for CUDA and ROCm, with plain torch for every other device.

    normal        counter-based noise (noise spec v1)
    reverse_step  one row of a sampler's table applied to the state, in place
    q_sample      x_t from x_0
    noise_mse     the training loss of a predicted noise, drawn again
    group_norm_silu  GroupNorm and SiLU, with the time embedding's bias or scale and shift
    add_group_norm_silu  the same of a sum, which it returns too
    cat_group_norm_silu  the same of a concatenation
    pad_sum       maps and a bias added, with the zeros that a strided convolution wants behind
    Column        the columns of such a table, N_COLUMNS wide

Importing this package imports neither triton nor torch: torch is loaded when an operator is first asked for,
and a kernel when a CUDA tensor first reaches it. `noise.reference` and the table need NumPy alone.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .table import N_COLUMNS, Column

if TYPE_CHECKING:
    from .group_norm_silu import add_group_norm_silu, cat_group_norm_silu, group_norm_silu
    from .noise import normal
    from .noise_mse import noise_mse
    from .pad_sum import pad_sum
    from .q_sample import q_sample
    from .reverse_step import reverse_step

__all__ = [
    "N_COLUMNS",
    "Column",
    "add_group_norm_silu",
    "cat_group_norm_silu",
    "group_norm_silu",
    "noise_mse",
    "normal",
    "pad_sum",
    "q_sample",
    "reverse_step",
]


def _operator(folder: str, name: str) -> property:
    def get(package: ModuleType) -> Any:
        return getattr(importlib.import_module(folder, __name__), name)

    def leave(package: ModuleType, submodule: ModuleType) -> None:
        """The import system would put the folder of the same name here."""

    return property(get, leave)


class _Package(ModuleType):
    """The operators, loaded when asked for. Properties, because some of them are named like their folders."""

    add_group_norm_silu = _operator(".group_norm_silu.op", "add_group_norm_silu")
    cat_group_norm_silu = _operator(".group_norm_silu.op", "cat_group_norm_silu")
    group_norm_silu = _operator(".group_norm_silu.op", "group_norm_silu")
    normal = _operator(".noise.torch_twin", "normal")
    noise_mse = _operator(".noise_mse.op", "noise_mse")
    pad_sum = _operator(".pad_sum.op", "pad_sum")
    q_sample = _operator(".q_sample.op", "q_sample")
    reverse_step = _operator(".reverse_step.op", "reverse_step")


if not TYPE_CHECKING:
    sys.modules[__name__].__class__ = _Package
