"""Samplers exported by `fastddpm.export_onnx`, run by ONNX Runtime. Needs numpy and onnxruntime, not torch.

    from fastddpm.onnx import OnnxSampler

    sampler = OnnxSampler("digits-onnx")
    images = sampler.sample(seeds=range(10), class_labels=3)      # NumPy float32 (10, 1, 28, 28)

`folder` reads and checks what was exported, `providers` starts sessions, `request` checks the caller's
arguments, `walk` says which plan the one-file sampler walks, `step_loop` walks one with one-step models and
`kept` what a solver keeps, and `sampler` brings them together.
"""

from fastddpm.extras import needed

needed("onnxruntime", by="fastddpm.onnx")

from fastddpm.onnx.errors import OnnxFolderError, ProviderError  # noqa: E402
from fastddpm.onnx.sampler import OnnxSampler  # noqa: E402

__all__ = ["OnnxFolderError", "OnnxSampler", "ProviderError"]
