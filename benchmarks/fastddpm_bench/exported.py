"""ONNX files of the networks that contests run, and what runs them: ONNX Runtime and OpenVINO on the CPU."""

from __future__ import annotations

import functools
import io
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastddpm.plans.method_options import MethodName
from fastddpm.sampler import Sampler
from fastddpm_bench.contest import LeftOut
from fastddpm_bench.workloads import Workload

DEFAULT_STEPS = 50
Model = Callable[[Tensor, Tensor], Tensor]
"""``(x, t) -> m``."""


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


def by_torch(workload: Workload, batch: int) -> bytes:
    """A network of fixed shapes as torch's own exporter writes it, with inputs x and t and the output m."""
    file = io.BytesIO()
    given = (torch.zeros(batch, *workload.shape), torch.zeros(batch, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            workload.unet(torch.device("cpu")),
            given,
            file,  # type: ignore[arg-type]  # said of the other exporter alone
            dynamo=False,
            opset_version=20,
            input_names=["x", "t"],
            output_names=["m"],
        )
    return file.getvalue()


def by_onnxruntime(workload: Workload, batch: int) -> Model:
    """ONNX Runtime, with as many threads as torch has."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        by_torch(workload, batch), options, providers=["CPUExecutionProvider"]
    )

    def run(x: Tensor, t: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["m"], {"x": x.numpy(), "t": t.numpy()})[0])

    return run


def by_openvino(workload: Workload, batch: int, precision: Literal["f32", "bf16"]) -> Model:
    """OpenVINO, with as many threads as torch has, computing in a precision.

    Raises:
        ImportError: openvino is not installed.
        LeftOut: it computes in another precision here, as it does without a word on a CPU without bfloat16.
    """
    import openvino  # type: ignore[import-not-found, import-untyped, unused-ignore]

    core = openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = core.compile_model(core.read_model(by_torch(workload, batch)), "CPU", options)
    found = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != precision:
        raise LeftOut(f"OpenVINO computes in {found} on this CPU, not in {precision}")
    request = model.create_infer_request()

    def run(x: Tensor, t: Tensor) -> Tensor:
        found = request.infer({"x": x.numpy(), "t": t.numpy()}, share_inputs=True)
        return torch.from_numpy(found[0])

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
