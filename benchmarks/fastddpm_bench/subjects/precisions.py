"""Whole chains on a CPU in float32, bfloat16 and 8-bit integers, at one seed.

A stroke that lies a pixel farther is within what fewer bits may do, so contestants are held to each other by
the means of 16 squares of each image."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from fastddpm.engine.sessions import missing
from fastddpm.timing import Call
from fastddpm_bench.contest import BenchSettings, Contest, Contestant
from fastddpm_bench.subjects import pipelines
from fastddpm_bench.subjects.pipelines import Chain
from fastddpm_bench.subjects.variants import layouts
from fastddpm_bench.workloads import MNIST

TOLERANCE = 0.15
"""In [0, 1], of the square that is farthest off: twice what int8 was by 10 steps, 0.07; by 50 0.013."""
SQUARE = 7


def contests(settings: BenchSettings) -> list[Contest]:
    """The model in the box by DDIM; nothing on a GPU, whose precisions are contests of `pipelines`."""
    if settings.is_cuda:
        return []
    sizes = [(8, 10)] if settings.quick else [(8, 50), (1, 50), (32, 10)]
    return [
        Contest(
            subject="precisions",
            workload=f"{MNIST.name}, ddim, {steps} steps, batch {batch}",
            setup=functools.partial(Chain, MNIST, "ddim", batch, steps, settings.device),
            contestants=contestants(settings),
            tolerance=TOLERANCE,
            per=steps,
            per_name="step",
            costs=Chain.costs,
            isolated=not settings.quick,
        )
        for batch, steps in sizes
    ]


def contestants(settings: BenchSettings) -> list[Contestant]:
    """The pipeline as it comes, everybody at their fastest in each precision, and ours in each engine."""
    fastest = layouts(settings)[-1]

    def held(name: str, run: Any, *, ours: bool = False, **options: Any) -> Contestant:
        return Contestant(name, functools.partial(coarse, run, **options), ours=ours)

    found = [held("diffusers", pipelines.theirs, layout=layouts(settings)[0])]
    if not settings.quick:
        name, theirs = f"diffusers{fastest.name}", functools.partial(in_precision, pipelines.theirs)
        found += [held(name, theirs, precision=None, layout=fastest)]
        found += [held(f"{name}, bf16", theirs, precision="bf16", layout=fastest)]
    if not missing():
        found.append(held("plain loop, ONNX Runtime", pipelines.plain_onnxruntime))
    for engine, precision in ours(settings):
        words = "" if precision is None else f", {precision}"
        options = {"engine": engine, "precision": precision}
        found.append(held(f"Sampler, {engine}{words}", pipelines.sampler, ours=True, **options))
    return found


def ours(settings: BenchSettings) -> list[tuple[str, Any]]:
    """Engine and precision of each of ours; what compiles takes a minute to begin."""
    found: list[tuple[str, Any]] = [("eager", None), ("eager", "bf16")]
    if not settings.quick:
        found += [("compile", None), ("compile", "bf16")]
    return found if missing() else [*found, ("onnxruntime", None), ("onnxruntime", "int8")]


def coarse(run: Any, chain: Chain, **options: Any) -> Call:
    """A contestant of `pipelines` that returns the means of squares of its images."""
    call = run(chain, **options)

    def pooled() -> Tensor:
        images = torch.as_tensor(call())
        return torch.nn.functional.avg_pool2d(images.movedim(-1, 1), SQUARE)

    return pooled


def in_precision(run: Any, chain: Chain, *, precision: Any, **options: Any) -> Call:
    """A contestant of `pipelines` with the network computing in a precision."""
    call: Call = run(dataclasses.replace(chain, precision=precision), **options)
    return call
