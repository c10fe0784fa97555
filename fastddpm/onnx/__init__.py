"""Samplers exported by `fastddpm.export_onnx`, run by ONNX Runtime. Needs numpy and onnxruntime, not torch.

    from fastddpm.onnx import OnnxSampler

    sampler = OnnxSampler("digits-onnx")
    images = sampler.sample(seeds=range(10), class_labels=3)      # NumPy float32 (10, 1, 28, 28)

`folder` reads and checks what was exported, `providers` starts sessions, `request` checks the caller's
arguments, `walk` says which plan the one-file sampler walks, `step_loop` walks one with one-step models and
`kept` what a solver keeps, and `sampler` brings them together.
"""

from importlib.util import find_spec

if find_spec("onnxruntime") is None:
    raise ImportError(
        "fastddpm.onnx needs onnxruntime, not installed here: pip install onnxruntime, or onnxruntime-gpu"
    )

from fastddpm.onnx.errors import OnnxFolderError, ProviderError
from fastddpm.onnx.sampler import OnnxSampler

__all__ = ["OnnxFolderError", "OnnxSampler", "ProviderError"]
