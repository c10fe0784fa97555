"""The libraries that run a network in ONNX on a CPU, from the inputs' own memory into a buffer that stays."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from fastddpm.engine.errors import EngineUnavailable
from fastddpm.extras import EXTRAS

RuntimeName = Literal["onnxruntime", "openvino"]
Runtime = Callable[[Sequence[Tensor]], Tensor]
"""The inputs of a network's core, contiguous or not, to its output, which the next call overwrites."""
PREFIX = "input_"
TITLES: dict[RuntimeName, str] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
# torch traces into ONNX with the first.
_PACKAGES = {"onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}


def missing(engine: RuntimeName) -> str:
    """What is to be installed; empty if it is there."""
    absent = [package for package in _PACKAGES[engine] if find_spec(package) is None]
    install = f"pip install 'fastddpm[{EXTRAS[engine][1]}]'"
    return f"{', '.join(absent)}, not installed here: {install}" if absent else ""


def place_name(place: int) -> str:
    """What the input at a place is called in ONNX."""
    return f"{PREFIX}{place}"


class OnnxRuntime:
    """ONNX Runtime, with as many threads as torch has."""

    def __init__(self, proto: bytes) -> None:
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        self._names = [one.name for one in self._session.get_inputs()]  # of those that it uses
        (output,) = self._session.get_outputs()
        self._output = torch.empty(output.shape, dtype=torch.float32)
        self._binding = self._session.io_binding()
        place = (tuple(self._output.shape), self._output.data_ptr())
        self._binding.bind_output(output.name, "cpu", 0, "float32", *place)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        for name in self._names:
            self._binding.bind_cpu_input(name, _array(inputs, name))
        self._session.run_with_iobinding(self._binding)
        return self._output


class OpenVino:
    """OpenVINO, with as many threads as torch has, in float32.

    Raises:
        EngineUnavailable: it computes in another precision, whatever it is told; this process was forked from
            one that runs it, whose threads it would wait for without end.
    """

    _process: ClassVar[int | None] = None

    def __init__(self, proto: bytes) -> None:
        import openvino  # type: ignore[import-not-found, import-untyped, unused-ignore]

        if OpenVino._process not in (None, os.getpid()):
            raise EngineUnavailable(
                "engine: OpenVINO does not run in a process forked from one that runs it; "
                "a process begun by 'spawn', or onnxruntime, accepted"
            )
        OpenVino._process = os.getpid()
        core = openvino.Core()
        # By itself it takes bfloat16 wherever the processor has that.
        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = core.compile_model(core.read_model(proto), "CPU", options)
        precision = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if precision != "f32":
            raise EngineUnavailable(f"engine: OpenVINO computes in {precision} here; f32 accepted")
        self._request = model.create_infer_request()
        named = (sorted(port.get_names()) for port in model.inputs)  # one may have several
        self._names = [next(name for name in names if name.startswith(PREFIX)) for names in named]
        self._output = torch.empty(tuple(model.output(0).shape), dtype=torch.float32)
        shared = openvino.Tensor(self._output.numpy(), shared_memory=True)
        self._request.set_output_tensor(0, shared)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        given = {name: _array(inputs, name) for name in self._names}
        self._request.infer(given, share_inputs=True, share_outputs=True)
        return self._output


RUNTIMES: dict[RuntimeName, Callable[[bytes], Runtime]] = {"onnxruntime": OnnxRuntime, "openvino": OpenVino}


def _array(inputs: Sequence[Tensor], name: str) -> Any:
    return cast("Any", inputs[int(name.removeprefix(PREFIX))].detach().contiguous().numpy())
