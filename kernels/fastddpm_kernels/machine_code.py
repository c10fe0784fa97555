"""Functions that numba compiles for this CPU, where it is installed and pays for its start.

torch's operators give the same numbers. Which of the two run is a matter of time alone, so that it may change
in the middle of a chain. Nothing here imports numba before it pays.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch

Function = Callable[..., Any]

HAS_NUMBA = importlib.util.find_spec("numba") is not None
"""Looked for, not imported."""

DRAWN, UPDATED = 8, 1
"""What numba saves of a number's time, drawn and in a step, in one unit: about 2 ns (docs/benchmarks.md)."""
PAYS_FROM = 2**28
"""Units that a process does by torch's operators before it starts numba: about what the start costs, where
the functions were compiled by another process before."""

_saved = 0

_library: Any = torch.library.Library("fastddpm", "FRAGMENT")  # type: ignore[no-untyped-call]


def pays(units: int) -> bool:
    """Whether compiled functions are to do so many units; where they are not, the units count as lost."""
    global _saved
    if not HAS_NUMBA:
        return False
    if _saved < PAYS_FROM:
        _saved += units
        return False
    return starts()


@functools.cache
def starts() -> bool:
    """Whether numba can be used: it is for this NumPy, and is not told to compile nothing."""
    try:
        numba: Any = importlib.import_module("numba")
    except (ImportError, OSError) as error:
        warnings.warn(
            f"numba is not used, since it cannot be imported: {error}", RuntimeWarning, stacklevel=3
        )
        return False
    return not numba.config.DISABLE_JIT


def jit(function: Function) -> Function:
    """Compiled for the types that it is called with: without the GIL, dividing by zero as IEEE 754 has it,
    and kept on disk where there is a place."""
    import numba

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Function = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that may be written to
        compiled = numba.njit(**options)(function)
    return compiled


def fused_multiply_add() -> Any:
    """``fma(a, b, c)`` of float32 for compiled functions: a*b + c, rounded once."""
    from numba import types
    from numba.extending import intrinsic

    real = types.float32

    @intrinsic
    def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            return builder.fma(*operands)

        return real(real, real, real), code

    return fma


def operator(schema: str, function: Function, fake: Function) -> Function:
    """A function of tensors on a CPU as an operator of torch, which its dispatch modes and fake tensors know.

    Args:
        schema: its name, arguments and results, as torch writes them.
        function: what it does.
        fake: gives tensors like its results, of what is known without the numbers.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, function, "CPU")
    torch.library.register_fake(f"fastddpm::{name}", fake, lib=_library)
    overload: Function = getattr(torch.ops.fastddpm, name).default
    return overload
