"""`fastddpm sample --backend onnx`: the images of an export, drawn by ONNX Runtime, into the same files.

Needs no torch: `fastddpm-onnx sample` is the same (`fastddpm.cli.onnx_command`).
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from fastddpm.checks import BadArgument
from fastddpm.cli.outputs import Outputs, summary
from fastddpm.cli.ranges import choose_labels
from fastddpm.extras import needed

if TYPE_CHECKING:
    from fastddpm.onnx.request import PlanOptions


def refuse_torch_options(*, engine: str, dtype: str, **given: object) -> None:
    """ValueError where an option was given that an export has fixed or does not know."""
    given |= {"engine": None if engine == "auto" else engine, "dtype": None if dtype == "float32" else dtype}
    for name, value in given.items():
        if value is not None:
            raise BadArgument(
                f"--{name.replace('_', '-')}",
                f"{str(value)!r} with --backend onnx, where it is fixed or there is none,",
                "no value",
            )


def refuse_condition(folder: str, channels: int) -> None:
    """ValueError where the network wants a condition image of so many channels; 0 is none."""
    if channels:
        raise BadArgument(
            "MODEL",
            f"{folder}, a super-resolution network, which needs an image of {channels} channels as its "
            "condition,",
            "one without (fastddpm.onnx.OnnxSampler(...).sample(condition=image) takes one)",
        )


def refuse_other_states(folder: str, shape: tuple[int, ...]) -> None:
    """ValueError where what is drawn are no images, which files of pictures could not hold."""
    if len(shape) != 3:
        raise BadArgument(
            "MODEL",
            f"{folder}, whose states of shape {shape} are no images,",
            "one of images, or --format npz (fastddpm.onnx.OnnxSampler(...).sample() gives any)",
        )


def sample_onnx(
    folder: str,
    outputs: Outputs,
    seeds: list[int],
    *,
    classes: str | None,
    device: str | None,
    guidance: float,
    batch: int,
    plan: PlanOptions,
    by: str = "--backend onnx",
) -> None:
    """Draws an image per seed and writes them.

    Args:
        folder: written by `fastddpm export`.
        outputs: the files asked for.
        seeds: one per image.
        classes: as typed; None for all in turn.
        device: cpu, cuda or cuda:N; None for CUDA where it starts, else the CPU.
        guidance: scale of classifier-free guidance; 1 is none.
        batch: images at a time.
        plan: the method and its options; None for what was exported.
        by: what needs ONNX Runtime, for the error where there is none.
    """
    needed("onnxruntime", by=by)
    from fastddpm.onnx import OnnxSampler
    from fastddpm.onnx.request import to_uint8

    match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", device or "cpu")
    if match is None or (match[1] == "cpu" and match[2]):
        raise BadArgument("--device", repr(device), "cpu, cuda or cuda:N")
    options = {"device_id": match[2]} if match[2] else None
    sampler = OnnxSampler(folder, "auto" if device is None else match[1], provider_options=options)
    refuse_condition(folder, sampler.folder.condition_channels)
    refuse_other_states(folder, sampler.image_shape)
    labels = choose_labels(sampler.folder.num_classes, classes, seeds, sampler.folder.class_names)
    with outputs.ready(seeds, sampler.image_shape[0]):
        began = time.perf_counter()
        drawn = sampler.sample(
            seeds=seeds, class_labels=labels, guidance_scale=guidance, max_batch=batch, **plan
        )
        seconds = time.perf_counter() - began
        pixels = to_uint8(drawn)
        written = outputs.write(pixels, seeds, labels)
    rows = sampler.plan(**plan)
    how = f"{rows.method}, {len(rows)} steps, ONNX Runtime {sampler.provider}, loop {sampler.loop}"
    print(summary(pixels, how, seconds, written))
