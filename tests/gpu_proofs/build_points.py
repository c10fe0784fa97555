"""What is built ahead of time: launches of every kernel, on CPU tensors of real shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import step_cases
import torch
from step_cases import CASES, SHAPES

from fastddpm_kernels.group_norm_silu.launches import (
    add_group_norm_silu_op,
    cat_group_norm_silu_op,
    group_norm_mish_op,
    group_norm_silu_backward_op,
    group_norm_silu_op,
)
from fastddpm_kernels.noise_mse.kernel import noise_mse_backward_op, noise_mse_op
from fastddpm_kernels.pad_sum.kernel import pad_sum_op
from fastddpm_kernels.q_sample.kernel import q_sample_op
from fastddpm_kernels.reverse_step.kernel import reverse_step_op

Point = Callable[[], Any]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": False, "channels_last": True}


def step_point(name: str, dtype: str = "float32", layout: str = "contiguous", n: int = 3072) -> Point:
    """A launch of `reverse_step` in a case of step_cases, with m of this dtype and layout."""
    case = next(case for case in CASES if case.name == name)
    options = {"m_dtype": DTYPES[dtype], "channels_last": LAYOUTS[layout]}
    return lambda: reverse_step_op(**step_cases.arguments(case, SHAPES[n], **options))


def q_sample_point(noise: str, n: int = 3072) -> Point:
    """A launch of `q_sample`: noise "given", or "drawn" and written."""

    def run() -> None:
        x_0, t, table = torch.zeros(2, *SHAPES[n]), torch.zeros(2, dtype=torch.int64), torch.zeros(1000)
        if noise == "given":
            q_sample_op(x_0, t, table, table, x_0, None, None, False)
        else:
            q_sample_op(x_0, t, table, table, None, t, t, True)

    return run


def norm_point(
    shape: tuple[int, ...],
    dtype: str = "bfloat16",
    layout: str = "channels_last",
    *,
    backward: bool = False,
    modulated: bool = False,
    residual: bool = False,
    pair: bool = False,
) -> Point:
    """A launch of `group_norm_silu` with 8 groups and a bias before it, or a scale and shift after it.

    With a residual, or of a pair of maps, whose concatenation has `shape`.
    """

    def run() -> None:
        memory_format = torch.channels_last if LAYOUTS[layout] else torch.contiguous_format
        x = torch.zeros(shape, dtype=DTYPES[dtype]).to(memory_format=memory_format)
        weight, vectors = torch.zeros(shape[1]), torch.zeros(shape[:2])
        pre_bias, scale = (None, vectors) if modulated else (vectors, None)
        if backward:
            statistics = torch.zeros(3, shape[0], 8)
            group_norm_silu_backward_op(x, x, statistics, weight, weight, pre_bias, scale, scale, True)
        elif pair:
            one, other = (half.clone(memory_format=memory_format) for half in x.chunk(2, dim=1))
            cat_group_norm_silu_op(one, None, other, 8, weight, weight, 1e-5, pre_bias, True)
        elif residual:
            add_group_norm_silu_op(x, x, 8, weight, weight, 1e-5, pre_bias, True)
        else:
            group_norm_silu_op(x, 8, weight, weight, 1e-5, pre_bias, scale, scale, True)

    return run


def mish_point() -> Point:
    """A launch of the norm with Mish, of trajectories of 16 places, as LeRobot's widest blocks have them."""

    def run() -> None:
        x, weight = torch.zeros(64, 2048, 16), torch.zeros(2048)
        group_norm_mish_op(x, 8, weight, weight, 1e-5, None, None, None)

    return run


def pad_point(dtype: str = "bfloat16", residual: bool = True) -> Point:
    """A launch of `pad_sum`, of a map that is halved."""

    def run() -> None:
        x = torch.zeros(4, 128, 32, 32, dtype=DTYPES[dtype]).to(memory_format=torch.channels_last)
        pad_sum_op(x, x if residual else None, torch.zeros(128), 1)

    return run


def loss_point(
    loss: str = "l2",
    dtype: str = "bfloat16",
    layout: str = "channels_last",
    *,
    backward: bool = False,
    v: bool = False,
) -> Point:
    """A launch of `noise_mse` or its gradient, for a prediction of epsilon or v."""

    def run() -> None:
        memory_format = torch.channels_last if LAYOUTS[layout] else torch.contiguous_format
        prediction = torch.zeros(2, *SHAPES[3072], dtype=DTYPES[dtype]).to(memory_format=memory_format)
        seeds, numbers = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
        image = (torch.zeros(2, *SHAPES[3072]), numbers, numbers) if v else (None, None, None)
        if backward:
            noise_mse_backward_op(numbers, prediction, seeds, seeds, loss, *image)
        else:
            noise_mse_op(prediction, seeds, seeds, loss, *image)

    return run


MAPS: dict[str, tuple[int, ...]] = {
    "one pass": (64, 128, 16, 16),
    "split": (4, 128, 64, 64),
    "small batch": (1, 128, 16, 16),
}
"""Feature maps whose groups fit on chip, are split over programs, and are too few to fill a card."""

POINTS: dict[str, Point] = {
    "reverse_step clip float32": step_point("clip"),
    "reverse_step clip bfloat16": step_point("clip", "bfloat16"),
    "reverse_step clip bfloat16 channels_last": step_point("clip", "bfloat16", "channels_last"),
    "reverse_step everything bfloat16 channels_last": step_point("everything", "bfloat16", "channels_last"),
    "q_sample drawn": q_sample_point("drawn"),
    "group_norm_silu one pass": norm_point(MAPS["one pass"]),
    "group_norm_silu split": norm_point(MAPS["split"]),
    "group_norm_silu small batch": norm_point(MAPS["small batch"]),
    "add_group_norm_silu one pass": norm_point(MAPS["one pass"], residual=True),
    "cat_group_norm_silu one pass": norm_point(MAPS["one pass"], pair=True),
    "cat_group_norm_silu small batch": norm_point(MAPS["small batch"], pair=True),
    "group_norm_silu backward": norm_point(MAPS["one pass"], backward=True),
    "group_norm_silu backward split": norm_point(MAPS["split"], backward=True),
    "group_norm_mish trajectories": mish_point(),
    "pad_sum": pad_point(),
    "noise_mse float32": loss_point("l2", "float32", "contiguous"),
    "noise_mse backward float32": loss_point("l2", "float32", "contiguous", backward=True),
}
"""Built for every card in CI."""


def every_point() -> dict[str, Point]:
    """Every case in every dtype and layout: built for every card with --full."""
    points: dict[str, Point] = {
        f"reverse_step {case.name} {dtype} {layout}": step_point(case.name, dtype, layout)
        for case, dtype, layout in itertools.product(CASES, DTYPES, LAYOUTS)
    }
    points |= {f"q_sample {noise}": q_sample_point(noise) for noise in ("given", "drawn")}
    points |= {
        f"group_norm_silu {name} {dtype} {layout} {direction} {vectors}": norm_point(
            shape,
            dtype,
            layout,
            backward=direction == "backward",
            modulated=vectors == "scale and shift",
        )
        for (name, shape), dtype, layout, direction, vectors in itertools.product(
            MAPS.items(), DTYPES, LAYOUTS, ("forward", "backward"), ("bias", "scale and shift")
        )
    }
    points |= {
        f"pad_sum {dtype} {'of two' if residual else 'of one'}": pad_point(dtype, residual)
        for dtype, residual in itertools.product(DTYPES, (True, False))
    }
    points |= {
        f"noise_mse {loss} {dtype} {layout} {direction} {target}": loss_point(
            loss, dtype, layout, backward=direction == "backward", v=target == "v"
        )
        for loss, dtype, layout, direction, target in itertools.product(
            ("l2", "l1", "huber"), DTYPES, LAYOUTS, ("forward", "backward"), ("epsilon", "v")
        )
    }
    return {**points, **POINTS}
