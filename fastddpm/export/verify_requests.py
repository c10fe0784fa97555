"""The sampler of requests in ONNX Runtime, a batch of unlike ones, against PyTorch, each alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor

from fastddpm.export.errors import ExportError
from fastddpm.export.settings import ExportSettings
from fastddpm.export.spacing import spacing_of
from fastddpm.export.verify import (
    FEW_STEPS,
    GUIDANCE,
    LIMITS,
    Arrays,
    fed,
    named,
    outputs_of,
    random_inputs,
    relative_error,
    session,
)
from fastddpm.plans import METHODS, Method
from fastddpm.plans.method_options import MethodName
from fastddpm.plans.registry import formulas
from fastddpm.sampler import Sampler

_NUMBERS = ("seeds", "method", "steps", "eta", "class_labels", "guidance_scale")


def verified_requests(model: Path, settings: ExportSettings) -> float:
    """Runs a batch, one image of each method that the file has, and gives the largest error.

    Raises:
        ExportError: it is above the limit of sampler.onnx.
    """
    limit = LIMITS["float16" if settings.call.half else "float32"]["sampler.onnx"]
    requests = [*_requests(settings)]
    given = random_inputs(settings, len(requests), settings.call.shape[1:])
    run = session(model)
    seeds = np.arange(1, len(requests) + 1, dtype=np.int64)
    scales = [GUIDANCE if settings.call.guides and place % 2 else 1.0 for place in range(len(requests))]
    feed: Arrays = {
        "seeds": seeds,
        "method": np.array([number for number, _ in requests], np.int64),
        "steps": np.array([len(method.plan(settings.schedule)) for _, method in requests], np.int64),
        "eta": np.array([method.eta for _, method in requests], np.float32),
        **({"guidance_scale": np.array(scales, np.float32)} if settings.call.guides else {}),
    }
    feed |= fed([one.name for one in run.get_inputs()], given)
    column = (len(requests), 1)
    feed = {name: array.reshape(column) if name in _NUMBERS else array for name, array in feed.items()}
    images, *_ = outputs_of(run, feed)
    error = 0.0
    for place, (_, method) in enumerate(requests):
        wanted = _alone(settings, method, given, place, scales[place])
        error = max(error, relative_error(images[place : place + 1], wanted.numpy()))
    if not error <= limit:
        raise ExportError(
            f"verification: model.onnx differs from PyTorch by {error:.2e}; at most {limit:.0e} accepted"
        )
    return error


def _requests(settings: ExportSettings) -> Iterator[tuple[int, Method]]:
    """(number, method) for each that the file has, of unlike lengths."""
    for number, name in enumerate(formulas()):
        method = settings.method.adapted(
            method=cast("MethodName", name),
            num_inference_steps=min(FEW_STEPS - number % FEW_STEPS, len(settings.schedule)),
            timestep_spacing=spacing_of(settings.method),
            eta=0.5 if "eta" in METHODS[name].takes else 0.0,
        )
        try:
            method.plan(settings.schedule)
        except ValueError:
            continue  # zero terminal SNR, which this method cannot start from with these options
        yield number, method
    if not settings.method.has_formula:
        yield len(formulas()), settings.method


def _alone(
    settings: ExportSettings, method: Method, given: dict[str, Tensor], place: int, scale: float
) -> Tensor:
    """The image of one request, by PyTorch."""
    own = {name: tensor[place : place + 1] for name, tensor in given.items()}
    cond, without = named(settings, own), named(settings, own, without=True)
    sampler = Sampler.from_plan(
        settings.sampler.model,
        settings.schedule,
        method.plan(settings.schedule),
        null_label=settings.call.null_label,
        shape=settings.call.shape,
        engine="eager",
    )
    return sampler.sample(
        seeds=[place + 1],
        guidance_scale=scale,
        class_labels=cond.pop("class_labels", None),
        condition=own.get("condition"),
        cond=cond,
        uncond={name: without[name] for name in cond},
        progress=False,
    )
