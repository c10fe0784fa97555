"""A model repository of NVIDIA Triton Inference Server: the sampler of requests, and its config.pbtxt.

    DIR/NAME/config.pbtxt
    DIR/NAME/1/model.onnx

Layout and fields are those of its documentation ("Model Repository", "Model Configuration") and of its
model_config.proto, to which `tests/export/test_triton.py` holds the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import helper

from fastddpm.checks import BadArgument
from fastddpm.export.folder import EXTERNAL_ABOVE, save_model, weight_bytes
from fastddpm.export.nodes import BOOL, FLOAT, INT32, INT64, UINT8
from fastddpm.export.settings import ExportSettings
from fastddpm.export.spacing import spacing_of
from fastddpm.files import made_folder, replacing
from fastddpm.plans.registry import formulas

CONFIG, VERSION, MODEL = "config.pbtxt", "1", "model.onnx"
HEADER = "# Written by fastddpm"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TYPES: dict[int, str] = {
    FLOAT: "TYPE_FP32",
    INT64: "TYPE_INT64",
    INT32: "TYPE_INT32",
    UINT8: "TYPE_UINT8",
    BOOL: "TYPE_BOOL",
}


def check_place(repository: Path, name: str) -> Path:
    """The folder of a model in a repository.

    Raises:
        ValueError: a name that is none, or a folder of that name that fastddpm has not written.
    """
    if not _NAME.fullmatch(name):
        raise BadArgument("name", repr(name), "letters, digits, '.', '_' and '-', beginning with no sign,")
    folder = repository / name
    for part in (repository, folder):
        if part.exists() and not part.is_dir():
            raise BadArgument("repository", f"{str(part)!r}, which is a file,", "a folder")
    if folder.is_dir() and any(folder.iterdir()):
        config = folder / CONFIG
        if not config.is_file() or not config.read_text(errors="replace").startswith(HEADER):
            given = f"{str(folder)!r}, which somebody else has written,"
            raise BadArgument("repository", given, "a new folder, or a model written there before")
    return folder


def described(model: onnx.ModelProto, settings: ExportSettings) -> dict[str, str]:
    """What is said of a model, in its file and in its configuration: names and values, and written into it.

    Raises:
        ValueError: it is too large for one file.
    """
    import fastddpm

    if weight_bytes(model.graph) > EXTERNAL_ABOVE:
        given = f"weights of {weight_bytes(model.graph):,} bytes"
        raise BadArgument("model", given, f"at most {EXTERNAL_ABOVE:,}, which one file holds")
    call, method = settings.call, settings.method
    numbered = [*formulas(), *([] if method.has_formula else [method.method])]
    about = {
        "fastddpm_version": fastddpm.__version__,
        "noise_spec": "1",
        "methods": ", ".join(f"{number} {name}" for number, name in enumerate(numbered)),
        "default_method": str(numbered.index(method.method)),
        "default_steps": str(len(settings.sampler.plan)),
        "default_eta": str(method.eta),
        "timestep_spacing": spacing_of(method),
        "num_train_timesteps": str(len(settings.schedule)),
        "prediction_type": method.prediction_type,
    }
    if call.num_classes is not None:
        about["num_classes"] = str(call.num_classes)
    if call.null_label is not None:
        about["null_label"] = str(call.null_label)
    if settings.sampler.class_names is not None:
        about["class_names"] = json.dumps(list(settings.sampler.class_names))
    helper.set_model_props(model, about)
    return about


def config(name: str, model: onnx.ModelProto, about: Mapping[str, str], max_batch: int) -> str:
    """The text of config.pbtxt.

    Instances are on the CPU: ONNX Runtime's CUDA provider has no kernels for the integer operators of the
    noise and would copy back and forth at every step.

    Args:
        name: of the model.
        model: whose inputs and outputs have the batch as first axis.
        about: parameters.
        max_batch: images in a batch, at most.
    """
    parts = [
        f"{HEADER} {about['fastddpm_version']}: docs/onnx.md says what the inputs are.",
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch}",
        *_tensors("input", model.graph.input),
        *_tensors("output", model.graph.output),
        "# Every input is an image's own, so requests of any kind make one batch.",
        "dynamic_batching { }",
        "instance_group [ { kind: KIND_CPU, count: 1 } ]",
    ]
    for key, text in about.items():
        parts.append(f"parameters {{ key: {_quoted(key)}, value: {{ string_value: {_quoted(text)} }} }}")
    return "\n".join(parts) + "\n"


@contextmanager
def written(folder: Path, model: onnx.ModelProto, text: str) -> Iterator[Path]:
    """Yields the model's file under a temporary name; then it and the configuration are put into its folder.

    Raises:
        OSError: they cannot be written.
    """
    with made_folder(folder / VERSION):
        with replacing(folder / VERSION / MODEL) as temporary:
            save_model(model, temporary)
            yield temporary
        with replacing(folder / CONFIG) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _tensors(kind: str, values: Iterable[onnx.ValueInfoProto]) -> list[str]:
    lines = []
    for one in values:
        tensor = one.type.tensor_type
        sides = [str(dim.dim_value) for dim in tensor.shape.dim[1:]]
        dims = f"dims: [ {', '.join(sides)} ]" if sides else "dims: [ 1 ], reshape { shape: [ ] }"
        dtype = _TYPES[tensor.elem_type]
        lines.append(f"{kind} [ {{ name: {_quoted(one.name)}, data_type: {dtype}, {dims} }} ]")
    return lines


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = text.encode().decode("latin-1").encode("unicode_escape").decode("ascii")
    return '"' + escaped.replace('"', '\\"') + '"'
