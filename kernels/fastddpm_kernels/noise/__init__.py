"""Counter-based normal noise, the same number for the same (seed, step, stream, repeat, element) everywhere.

reference.py (NumPy) defines it; torch_twin.py and kernel.py (Triton) repeat it, the words bit for bit. torch
is loaded when `normal` or `words` is first asked for; the reference needs NumPy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .torch_twin import normal, words

__all__ = ["normal", "words"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import torch_twin

        return getattr(torch_twin, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
