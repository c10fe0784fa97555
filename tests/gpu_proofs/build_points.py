"""What is built ahead of time: launches of every kernel, on CPU tensors of real shapes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import step_cases
import torch
from step_cases import CASES, SHAPES

from fastddpm_kernels.q_sample import kernel as q_sample
from fastddpm_kernels.reverse_step import kernel as reverse_step

Point = Callable[[], Any]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": False, "channels_last": True}


def step_point(name: str, dtype: str = "float32", layout: str = "contiguous", n: int = 3072) -> Point:
    """A launch of `reverse_step` in a case of step_cases, with m of this dtype and layout."""
    case = next(case for case in CASES if case.name == name)
    options = {"m_dtype": DTYPES[dtype], "channels_last": LAYOUTS[layout]}
    return lambda: reverse_step.launch(**step_cases.arguments(case, SHAPES[n], **options))


def q_sample_point(noise: str, n: int = 3072) -> Point:
    """A launch of `q_sample`: noise "given", or "drawn" and written."""

    def run() -> None:
        x_0, t, table = torch.zeros(2, *SHAPES[n]), torch.zeros(2, dtype=torch.int64), torch.zeros(1000)
        if noise == "given":
            q_sample.launch(x_0, t, table, table, x_0, None, None, x_0, None)
        else:
            q_sample.launch(x_0, t, table, table, None, t, t, x_0, x_0)

    return run


POINTS: dict[str, Point] = {
    "reverse_step clip float32": step_point("clip"),
    "reverse_step clip bfloat16": step_point("clip", "bfloat16"),
    "reverse_step clip bfloat16 channels_last": step_point("clip", "bfloat16", "channels_last"),
    "reverse_step everything bfloat16 channels_last": step_point("everything", "bfloat16", "channels_last"),
    "q_sample drawn": q_sample_point("drawn"),
}
"""Built for every card in CI."""


def every_point() -> dict[str, Point]:
    """Every case in every dtype and layout: built for every card with --full."""
    points: dict[str, Point] = {
        f"reverse_step {case.name} {dtype} {layout}": step_point(case.name, dtype, layout)
        for case, dtype, layout in itertools.product(CASES, DTYPES, LAYOUTS)
    }
    points |= {f"q_sample {noise}": q_sample_point(noise) for noise in ("given", "drawn")}
    return {**points, **POINTS}
