"""The samplers that `fastddpm export` writes, run by ONNX Runtime, without torch.

    from fastddpm_onnx import OnnxSampler

    sampler = OnnxSampler("digits-onnx")
    images = sampler.sample(seeds=range(10), class_labels=3)      # NumPy float32 (10, 1, 28, 28)

Names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastddpm_onnx.onnx import OnnxFolderError, OnnxSampler, ProviderError

__all__ = ["OnnxFolderError", "OnnxSampler", "ProviderError"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("fastddpm_onnx.onnx"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
