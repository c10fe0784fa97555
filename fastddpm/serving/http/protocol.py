"""The Open Inference Protocol, version 2, over HTTP, with its extension of binary tensors.

https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor

import fastddpm
from fastddpm.checks import BadArgument, check_choice, check_known, check_number, quoted, seed_list
from fastddpm.images import to_uint8
from fastddpm.serving.http.answers import Json
from fastddpm.serving.http.asked import Asked
from fastddpm.serving.http.binary import EXTENSION, HEADER, KIND, Tail, answer, split
from fastddpm.serving.http.bodies import document, read_body
from fastddpm.serving.http.door import entry_of, service_of
from fastddpm.serving.http.models import ServedModel
from fastddpm.serving.http.tensors import TensorSpec, Values, each, is_binary, parameters_of, written

FIELDS = ("id", "parameters", "inputs", "outputs")
LONGEST_ID = 256


def inputs_of(model: ServedModel) -> dict[str, TensorSpec]:
    """The tensors that a model takes; all but ``seeds`` and ``condition`` may be left out."""
    specs = [
        TensorSpec("seeds", "INT64", (-1,)),
        TensorSpec("method", "BYTES", (-1,)),
        TensorSpec("num_inference_steps", "INT64", (-1,)),
        TensorSpec("eta", "FP32", (-1,)),
        TensorSpec("guidance_scale", "FP32", (-1,)),
    ]
    if model.facts.takes_labels is not False:
        specs.append(TensorSpec("class_labels", "INT64", (-1,)))
    channels = model.facts.condition_channels
    if channels != 0:  # None: a model that does not say how many
        specs.append(TensorSpec("condition", "FP32", (-1, channels or -1, *model.shape[1:])))
    return {spec.name: spec for spec in specs}


def outputs_of(model: ServedModel) -> dict[str, TensorSpec]:
    """The tensors that a model gives."""
    channels, height, width = model.shape
    specs = (
        TensorSpec("images", "FP32", (-1, channels, height, width)),
        TensorSpec("pixels", "UINT8", (-1, height, width, channels)),
    )
    return {spec.name: spec for spec in specs}


async def server_metadata(request: Request) -> Response:
    """``GET /v2``."""
    return Json({"name": "fastddpm", "version": fastddpm.__version__, "extensions": [EXTENSION]})


async def live(request: Request) -> Response:
    """``GET /v2/health/live``."""
    return Json({"live": True})


async def ready(request: Request) -> Response:
    """``GET /v2/health/ready``: 503 once the service is being stopped."""
    is_ready = not service_of(request).is_stopping
    return Json({"ready": is_ready}, 200 if is_ready else 503)


async def model_metadata(request: Request) -> Response:
    """``GET /v2/models/{name}``."""
    model = service_of(request).model(request.path_params["name"])
    return Json(
        {
            "name": model.name,
            "versions": [],
            "platform": "fastddpm",
            "inputs": [spec.described() for spec in inputs_of(model).values()],
            "outputs": [spec.described() for spec in outputs_of(model).values()],
        }
    )


async def model_ready(request: Request) -> Response:
    """``GET /v2/models/{name}/ready``."""
    service = service_of(request)
    model = service.model(request.path_params["name"])
    return Json({"name": model.name, "ready": not service.is_stopping}, 503 if service.is_stopping else 200)


async def infer(request: Request) -> Response:
    """``POST /v2/models/{name}/infer``."""
    service, entry = service_of(request), entry_of(request)
    model = service.model(request.path_params["name"])
    entry.model = model.name
    header = request.headers.get(HEADER)
    # Triton's client names no kind. With a header of its own no page of another site can send this.
    kinds = () if header is None else (KIND, "")
    body = await read_body(request, service.limits.body, *kinds)
    asked, outputs, number = await asyncio.to_thread(_read, model, *split(body, header))
    images = await service.draw(request, model, asked)
    entry.images = len(images)
    return await asyncio.to_thread(_answer, model, images, outputs, number)


def _read(model: ServedModel, body: bytes, tail: Tail) -> tuple[list[Asked], dict[str, bool], str | None]:
    """The images that a request asks for, the outputs that it wants, which as bytes, and its id."""
    given = document(body)
    check_known(list(given), FIELDS, of="a request")
    number = given.get("id")
    if number is not None and not (isinstance(number, str) and len(number) <= LONGEST_ID):
        raise BadArgument("id", quoted(number), f"text of at most {LONGEST_ID} characters")
    parameters = parameters_of(given, "request", binary="binary_data_output")
    all_binary = is_binary(parameters, "binary_data_output")
    outputs = [_named(one, "outputs", outputs_of(model)) for one in _objects(given, "outputs")]
    binary = {}
    for name, one in zip(outputs, _objects(given, "outputs"), strict=True):
        check_known(list(one), ("name", "parameters"), of="an output")
        parameters = parameters_of(one, "outputs", binary="binary_data")
        binary[name] = is_binary(parameters, "binary_data", all_binary)
    specs, tensors = inputs_of(model), _objects(given, "inputs")
    names = [_named(one, "inputs", specs) for one in tensors]
    for what, listed in (("inputs", names), ("outputs", outputs)):
        if len(set(listed)) < len(listed):
            raise BadArgument(what, ", ".join(listed), "each once")
    if "seeds" not in names:
        raise BadArgument("inputs", ", ".join(names) or "none", "seeds, and others besides,")
    values = {name: specs[name].read(one, tail) for name, one in zip(names, tensors, strict=True)}
    tail.check_end()
    return _asked(model, values), binary or {"images": all_binary}, number


def _asked(model: ServedModel, values: dict[str, tuple[tuple[int, ...], Values]]) -> list[Asked]:
    seeds = seed_list(values["seeds"][1])
    count = len(seeds)
    model.limits.check_images(count)
    columns: dict[str, list[Any]] = {
        name: each(values[name][1], count, name)
        for name in ("method", "num_inference_steps", "eta", "guidance_scale", "class_labels")
        if name in values
    }
    for name in ("eta", "guidance_scale"):
        # As it was typed: 0.3 in float32 is another number than in float64, in which plans are made.
        columns[name] = [_shortest(value) for value in columns.get(name, [])]
    columns = {name: column for name, column in columns.items() if column}
    if "class_labels" in columns:
        columns["class_label"] = columns.pop("class_labels")
    if "condition" in values:
        (shape, flat) = values["condition"]
        tensor = torch.from_numpy(np.asarray(flat, np.float32)).reshape(shape)
        if len(tensor) not in (1, count):
            accepted = f"1 or {count} of them"
            raise BadArgument("condition, shape", f"{len(tensor)} for {count} images", accepted)
        columns["condition"] = [one[None] for one in tensor.expand(count, *tensor.shape[1:])]
    return [
        Asked(seed, **{name: column[index] for name, column in columns.items()})
        for index, seed in enumerate(seeds)
    ]


def _shortest(value: float) -> float:
    """The number that is written with the fewest digits among those that are this one in float32."""
    return check_number("value", float(str(np.float32(value))))


def _objects(given: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects in a request, at most a few."""
    listed = given.get(name)
    if listed is None and name == "outputs":
        return []
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed) or len(listed) > 16:
        raise BadArgument(name, quoted(listed), "a list of objects, at most 16,")
    return listed


def _named(one: dict[str, Any], what: str, accepted: dict[str, TensorSpec]) -> str:
    name = one.get("name")
    check_choice(f"{what}, name", name, accepted)
    return str(name)


def _answer(
    model: ServedModel, images: list[Tensor], outputs: dict[str, bool], number: str | None
) -> Response:
    stacked, specs = torch.stack(images).detach().cpu().float(), outputs_of(model)
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    if "images" in outputs:
        arrays["images"] = stacked.numpy()
    if "pixels" in outputs:
        arrays["pixels"] = to_uint8(stacked)
    found: dict[str, object] = {"model_name": model.name}
    if number is not None:
        found["id"] = number
    tensors = [written(specs[name], arrays[name], binary=binary) for name, binary in outputs.items()]
    found["outputs"] = [tensor for tensor, _ in tensors]
    return answer(found, [piece for _, pieces in tensors for piece in pieces])
