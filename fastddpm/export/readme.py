"""The README of an export: its files, their inputs and outputs, and a snippet that runs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import onnx

from fastddpm.class_names import listed
from fastddpm.onnx.folder import LOG_SIGMA

LEVELS = "sqrt(alphas_cumprod), in (0, 1]"
_KINDS = {1: "float32", 2: "uint8", 6: "int32", 7: "int64", 9: "bool"}
PURPOSES = {
    "sampler.onnx": "The whole sampler: seeds in, images out. For the CPU and any language.",
    "denoiser.onnx": "The network alone.",
    "step.onnx": "The network and one reverse step, without control flow: for CUDA graphs and TensorRT.",
    "step_guided.onnx": "The same with classifier-free guidance: the network runs on the doubled batch.",
    "noise.onnx": "The sampler's noise alone, to test a provider's integer arithmetic (`self_test`).",
}


def readme(models: Mapping[str, onnx.ModelProto], about: Mapping[str, Any]) -> str:
    """The text.

    Args:
        models: the models by file name.
        about: the content of export.json.
    """
    parts = [
        "# A diffusion sampler in ONNX\n",
        f"Written by fastddpm {about['versions']['fastddpm']}. {_what(about)}; the network runs in "
        f"{about['network_dtype']}, state and noise in float32. Each file "
        "holds the weights it needs. `export.json` has the options, versions, sha256 sums and measured "
        "differences from PyTorch.\n",
        "```python\n" + snippet(about) + "```\n",
        "The image of a seed depends on that seed alone: not on the batch it is drawn in, nor on the "
        "machine's random state (noise spec v1: Philox4x32-10, as in fastddpm on any backend).\n",
    ]
    ranges = _ranges(about)
    for name in sorted(models, key=list(PURPOSES).index):
        graph = models[name].graph
        parts.append(f"## {name}\n\n{PURPOSES[name]}\n")
        stored = {one.name for one in graph.initializer}
        rows = [("input, optional" if one.name in stored else "input", one) for one in graph.input]
        rows += [("output", one) for one in graph.output]
        table = ["| | name | type | shape | range |", "|---|---|---|---|---|"]
        for role, one in rows:
            kind = one.type.tensor_type
            shape = ", ".join(dim.dim_param or str(dim.dim_value) for dim in kind.shape.dim)
            meaning = ranges.get(one.name, "")
            table.append(f"| {role} | `{one.name}` | {_KINDS[kind.elem_type]} | [{shape}] | {meaning} |")
        parts.append("\n".join(table) + "\n")
    if about["size_multiple"] is not None:
        padding = f" plus {about['size_padding']}" if about["size_padding"] else ""
        parts.append(
            f"Where height and width vary, each{padding} must be a multiple of {about['size_multiple']}.\n"
        )
    parts.append(_differences(about["parity"]))
    return "\n".join(parts)


def snippet(about: Mapping[str, Any]) -> str:
    """Python that draws images with numpy and onnxruntime alone, run in the folder."""
    method, known = about["defaults"]["method"], about["methods"]
    number = known.index(method) if method in known else len(known)
    # A solver's rows are in the file, and have their own.
    timesteps = _listed(about["timesteps"]) if method in known else "[]"
    lines = [
        "import numpy as np",
        "import onnxruntime as ort",
        "",
        'session = ort.InferenceSession("sampler.onnx", providers=["CPUExecutionProvider"])',
        "inputs = {",
        '    "seeds": np.arange(4, dtype=np.int64),',
        f'    "timesteps": np.array({timesteps}, dtype=np.int64),',
        f'    "method": np.array({number}, dtype=np.int64),  # {_methods(about)}',
        f'    "eta": np.array({about["defaults"]["eta"]}, dtype=np.float32),',
    ]
    if about["num_classes"] is not None:
        lines.append(f'    "class_labels": np.arange(4, dtype=np.int64) % {about["num_classes"]},')
    if is_guided(about):
        lines.append('    "guidance_scale": np.array(1.0, dtype=np.float32),')
    if about["condition_channels"]:
        shape = (4, about["condition_channels"], *about["image_shape"][1:])
        lines.append(f'    "condition": np.zeros({shape}, dtype=np.float32),  # an image in [-1, 1]')
    for one in about.get("cond", []):
        for name in _condition_names(about, one["name"]):
            lines.append(f'    "{name}": np.zeros({(4, *one["shape"])}, dtype=np.{one["dtype"]}),')
    if draws_images(about):
        lines += ["}", "images, pixels = session.run(None, inputs)", "print(images.shape, pixels.shape)"]
    else:
        lines += ["}", "(states,) = session.run(None, inputs)", "print(states.shape)"]
    return "\n".join(lines) + "\n"


def draws_images(about: Mapping[str, Any]) -> bool:
    """Whether what it draws are images, which sampler.onnx gives as pixels too."""
    return len(about["image_shape"]) == 3


def is_guided(about: Mapping[str, Any]) -> bool:
    """Whether an export has files for guidance; see `fastddpm.export.network.NetworkCall.guides`."""
    return about["null_label"] is not None or ("cond" in about and about["num_classes"] is None)


def _condition_names(about: Mapping[str, Any], name: str) -> list[str]:
    """Of the inputs of sampler.onnx."""
    return [f"cond_{name}", *([f"uncond_{name}"] if is_guided(about) else [])]


def _listed(timesteps: list[int]) -> str:
    """The timesteps, as a range where they are one."""
    strides = {a - b for a, b in pairwise(timesteps)}
    if len(strides) == 1:
        stride = strides.pop()
        return f"range({timesteps[0]}, {timesteps[-1] - stride}, {-stride})"
    return str(timesteps)


def _methods(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{index} {name}" for index, name in enumerate([*about["methods"], "rows"]))


def _what(about: Mapping[str, Any]) -> str:
    shape = " x ".join(map(str, about["image_shape"]))
    return (
        f"Images are {shape} (C x H x W)" if draws_images(about) else f"States, `images` below, are {shape}"
    )


def _ranges(about: Mapping[str, Any]) -> dict[str, str]:
    last = about["num_train_timesteps"] - 1
    labels = ""
    if about["num_classes"] is not None:
        labels = f"0 to {about['num_classes'] - 1}"
        if about["null_label"] is not None:
            labels += f"; {about['null_label']}: no class"
        if about.get("class_names"):
            labels += f"; in this order {listed(tuple(about['class_names']))}"
    time = {"index": f"0 to {last}", LOG_SIGMA: "log(sigma)/4"}.get(about["time"], LEVELS)
    method = about["defaults"]["method"]
    own = "none" if method in about["methods"] else f"those of {method}, as exported"
    cond: dict[str, str] = {}
    for one in about.get("cond", []):
        cond |= {f"cond_{one['name']}": f"the network's {one['name']}"}
        cond |= {f"uncond_{one['name']}": "the same for the half without conditions"}
    return cond | {
        "seeds": "0 to 2**63 - 1, one per image",
        "timesteps": f"strictly descending, 0 to {last}; with rows not read",
        "method": _methods(about),
        "eta": "of ddim: 0 deterministic to 1; 0 with the others",
        "rows": "`table` of any plan of fastddpm (`OnnxSampler.plan`), such as a solver's, with method "
        f"{len(about['methods'])}; left out: {own}",
        "times": "its `model_time`",
        "time_offset": "added to the time, which may so lie between two; left out: 0",
        "class_labels": labels,
        "guidance_scale": "classifier-free guidance; 1 is none" + ", without a second pass",
        "condition": "the network's, usually [-1, 1]",
        "t": time,
        "time": time,
        "x": "the state",
        "row": "a row of a plan's table: p q r a b e h c log_var_min log_var_max, 6 more unused",
        "noise": "standard normal; not read where c is 0",
        "x0_prev": "x0 of the row before; zeros at first",
        "x_next": "the next state",
        "x0": "the predicted clean image",
        "m": f"the network's output ({about['prediction_type']})",
        "images": "the model's range, unclamped",
        "pixels": "round((clamp(x, -1, 1) + 1) * 127.5), half to even",
        "step": "0: the start; k + 1: row k",
        "words": "raw 32-bit words",
        "normals": "standard normal",
    }


def _differences(parity: Mapping[str, Any] | None) -> str:
    if parity is None:
        return "The files were not verified against PyTorch.\n"
    lines = ["## Largest difference from PyTorch, measured at export", "", "| file | difference | limit |"]
    lines.append("|---|---|---|")
    for name, measured in parity.items():
        lines.append(f"| {name} | {measured['max_abs_error']:.1e} | {measured['limit']:.0e} |")
    return "\n".join(lines) + "\n"
