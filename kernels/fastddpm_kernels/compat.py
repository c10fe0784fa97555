"""What differs between the accepted versions of torch and Triton, and whether Triton is there at all.

torch >= 2.9 and triton >= 3.5 are accepted, and nothing else in the library knows of versions. What a
function takes is read off its signature, what an object is off its type: so a version that nobody has seen is
asked too, instead of being guessed from a number.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
"""Whether kernels can be built. A constant, which torch.compile guards; looked for, not imported."""


def runs_kernels(device: torch.device) -> bool:
    """Whether the Triton operators run on a device: CUDA (or ROCm, which torch calls so), with Triton there.

    Where Triton is missing, as on Windows, the plain references run on CUDA too, and one warning says so.
    """
    if device.type != "cuda":
        return False
    if not HAS_TRITON and not torch.compiler.is_compiling():
        _warn_of_missing_triton()
    return HAS_TRITON


@functools.cache
def _warn_of_missing_triton() -> None:
    """The first time only: a chain asks at every step."""
    warnings.warn(
        "Triton is not installed: on CUDA, plain PyTorch runs in place of the fused kernels; "
        "pip install triton (on Windows triton-windows) for the kernels",
        RuntimeWarning,
        stacklevel=3,
    )


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """torch.compile for fixed shapes, where other functions' compilations do not count against this one.

    torch compiles a code object a limited number of times and then runs it as it is. The loops of a process
    share the code of a step, so each is compiled with a count of its own: by `isolate_recompiles` where
    torch.compile takes it (2.14 does, 2.11 does not), else by a code object of its own.
    """
    if _takes(torch.compile, "isolate_recompiles"):
        options["isolate_recompiles"] = True
    else:
        function = _with_own_code(function)
    compile_: Any = torch.compile  # whose stubs do not know isolate_recompiles yet
    return compile_(function, dynamic=False, **options)


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    # Equal to the code of other calls, and another object: torch counts by object.
    code = call.__code__.replace()
    return types.FunctionType(code, call.__globals__, call.__name__, None, call.__closure__)


def wrap_triton(kernel: Any) -> Any:
    """`torch.library.wrap_triton`, which traces a kernel's launches, for kernels that Triton compiles.

    What TRITON_INTERPRET=1 makes of a kernel launches as it is; torch 2.11's wrap_triton refuses it.
    """
    from triton.runtime.jit import JITFunction

    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def pool_segments(pool: Any) -> list[dict[str, Any]]:
    """The segments that torch's allocator holds for a pool of CUDA graphs.

    Without the history of allocations where `memory_snapshot` can leave it out (2.11 can, 2.9 cannot).
    """
    snapshot: Any = torch.cuda.memory_snapshot
    options = {"include_traces": False} if _takes(snapshot, "include_traces") else {}
    segments: list[dict[str, Any]] = snapshot(pool, **options)
    return segments


def _takes(function: Callable[..., Any], parameter: str) -> bool:
    return parameter in inspect.signature(function).parameters
