"""Checks of chains with the model in the box: engine against engine, seeds across batch sizes, precisions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastddpm.checkpoint import load
from fastddpm.doctor.comparison import Comparison
from fastddpm.engine import Engine
from fastddpm.plans.method_options import MethodOptions
from fastddpm.precision import Precision
from fastddpm.sampler import Sampler
from fastddpm_kernels import compat

SEEDS, LABELS = [3, 2**32 + 5, 7, 11], [0, 1, 2, 3]
SAME_KERNELS = 1e-5
"""A graph replays the eager step's kernels; what is left is a library's choice of another one."""

OTHER_SUMS = 1e-3
"""Sums in another order, by another batch size or compiled: one uint8 level over a chain in [-1, 1]."""

PRECISIONS: dict[Precision, float] = {"tf32": 2e-2, "bf16": 7e-2, "fp16": 7e-3}
"""One evaluation against float32 with TF32 off: twice the largest difference of the network's output that
`benchmarks/precision_mnist.py` found, with TF32 emulated, inputs rounded or truncated. Over whole chains such
differences grow a hundredfold, to another digit in a few images, so chains in TF32 are held to nothing."""

METHODS: dict[str, MethodOptions] = {
    "ddpm": {"method": "ddpm", "num_inference_steps": 50},
    "ddim": {"method": "ddim", "num_inference_steps": 50},
    "dpmpp_2m": {"method": "dpmpp_2m", "num_inference_steps": 20},
}
SHORT = 5
"""Steps of a chain on a CPU."""


def comparisons(device: torch.device) -> list[Comparison]:
    """On a CUDA device full chains by graphs against eager ones; on a CPU short chains."""
    sampler = functools.cache(functools.partial(load, "mnist", device=device))
    if device.type != "cuda":
        short = [
            Comparison(f"{name}, a seed alone and in a batch", OTHER_SUMS, _alone(sampler, method, SHORT))
            for name, method in METHODS.items()
        ]
        # TF32 is CUDA's.
        return short + [_precision(sampler, name) for name in PRECISIONS if name != "tf32"]
    engines: dict[Engine, float] = {"cudagraph": SAME_KERNELS}
    if compat.HAS_TRITON:  # without it nothing is compiled for a card
        engines["compile"] = OTHER_SUMS
    found = [_precision(sampler, name) for name in PRECISIONS]
    for name, method in METHODS.items():
        for scale in (1.0, 2.0):
            for engine, limit in engines.items():
                words = f"{name}, {engine} against eager, guidance {scale:g}"
                found.append(Comparison(words, limit, _engines(sampler, method, engine, scale)))
        steps = method["num_inference_steps"]
        found.append(
            Comparison(f"{name}, a seed alone and in a batch", OTHER_SUMS, _alone(sampler, method, steps))
        )
    return found


def _precision(sampler: Callable[[], Sampler], name: Precision) -> Comparison:
    def run() -> float:
        one: MethodOptions = {"method": "ddim", "num_inference_steps": None, "timesteps": [500]}
        full, other = (
            sampler().replace(precision="highest", **one),
            sampler().replace(precision=name, **one),
        )
        return _difference(_draw(other, SEEDS, LABELS, 1.0), _draw(full, SEEDS, LABELS, 1.0))

    return Comparison(f"{name} against float32, one evaluation", PRECISIONS[name], run)


def _engines(
    sampler: Callable[[], Sampler], method: MethodOptions, engine: Engine, scale: float
) -> Callable[[], float]:
    def run() -> float:
        eager = _draw(sampler().replace(engine="eager", **method), SEEDS, LABELS, scale)
        other = sampler().replace(engine=engine, **method)
        first = _difference(_draw(other, SEEDS, LABELS, scale), eager)
        # Other seeds through the captured graph: nothing of the first chain may be left in it.
        again = _draw(other, SEEDS[::-1], LABELS[::-1], scale)
        return max(first, _difference(again.flip(0), eager))

    return run


def _alone(sampler: Callable[[], Sampler], method: MethodOptions, steps: int | None) -> Callable[[], float]:
    def run() -> float:
        options: MethodOptions = {**method, "num_inference_steps": steps}
        eager = sampler().replace(engine="auto", **options)
        together = _draw(eager, SEEDS, LABELS, 1.0)
        alone = [_draw(eager, [s], [y], 1.0) for s, y in zip(SEEDS, LABELS, strict=True)]
        return _difference(torch.cat(alone), together)

    return run


def _draw(sampler: Sampler, seeds: list[int], labels: list[int], scale: float) -> Tensor:
    return sampler.sample(seeds=seeds, class_labels=labels, guidance_scale=scale, progress=False)


def _difference(ours: Tensor, expected: Tensor) -> float:
    """Largest absolute difference; infinite if there is no picture in what was expected."""
    if float(expected.std()) < 0.05:
        return math.inf
    return float((ours - expected).abs().max())
