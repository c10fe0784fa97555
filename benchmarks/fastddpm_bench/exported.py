"""ONNX files of the networks that contests run, exported once a process, and sessions on them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastddpm.plans.method import MethodName
from fastddpm.sampler import Sampler
from fastddpm_bench.workloads import Workload

DEFAULT_STEPS = 50


@functools.cache
def _folders() -> tempfile.TemporaryDirectory[str]:
    """Goes with the process."""
    return tempfile.TemporaryDirectory(prefix="fastddpm-bench-")


@functools.cache
def folder(workload: Workload) -> Path:
    """The folder that `fastddpm.export_onnx` writes for a network; a minute for the model in the box.

    Raises:
        ImportError: the extra `onnx` is not installed.
    """
    from fastddpm.export import export_onnx

    cpu = torch.device("cpu")
    sampler = Sampler(
        workload.unet(cpu),
        workload.schedule,
        method="ddim",
        prediction_type=workload.prediction_type,
        num_inference_steps=DEFAULT_STEPS,
        clip_sample_range=1.0,
        shape=workload.shape,
    )
    path = Path(_folders().name) / workload.name.split()[0]
    export_onnx(sampler, path, verify=False)
    return path


def network(workload: Workload) -> Callable[[Tensor, Tensor], Tensor]:
    """``(x, t) -> m`` by ONNX Runtime on the CPU, with as many threads as torch has."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = folder(workload) / "denoiser.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(x: Tensor, t: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["m"], {"x": x.numpy(), "t": t.numpy()})[0])

    return run


def chain(
    workload: Workload, method: MethodName, steps: int, loop: Literal["file", "steps"]
) -> Callable[[Sequence[int]], Tensor]:
    """``seeds -> images`` by `fastddpm.onnx.OnnxSampler`: the whole chain in one run, or a run a step."""
    from fastddpm.onnx import OnnxSampler

    sampler = OnnxSampler(folder(workload), "cpu", threads=torch.get_num_threads(), loop=loop)

    def run(seeds: Sequence[int]) -> Tensor:
        images = sampler.sample(seeds=seeds, method=method, num_inference_steps=steps, progress=False)
        return torch.from_numpy(images)

    return run
