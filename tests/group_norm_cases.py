"""The cases of `group_norm_silu` that its tests share: arguments, and what float64 makes of them.

Each case is also a build: the operator called with its arguments under `kernel_build.recorded` records the
launches of that case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """A map, and which of the operator's options are on; rows: of the vectors per sample, 1 or all."""

    shape: tuple[int, ...]
    num_groups: int
    channels_last: bool = False
    affine: bool = True
    pre_bias: bool = False
    scale_shift: bool = False
    silu: bool = True
    one_row: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        size = "x".join(str(n) for n in self.shape)
        options = ("affine", "pre_bias", "scale_shift", "silu", "one_row", "channels_last")
        marks = [option for option in options if getattr(self, option)]
        return "-".join([size, str(self.num_groups), *marks, str(self.dtype).removeprefix("torch.")])


def both_layouts(*cases: Case) -> list[Case]:
    return [replace(case, channels_last=layout) for case in cases for layout in (False, True)]


# Whole groups in a tile, one or several of them; groups that are cut into chunks of pixels, of channels, of
# both; sizes that are no powers of two.
ONE_PASS = both_layouts(
    Case((1, 4, 1, 1), 1),
    Case((2, 6, 3, 5), 3, pre_bias=True),
    Case((2, 12, 7, 5), 1, pre_bias=True, scale_shift=True),
    Case((1, 40, 4, 4), 4, scale_shift=True, silu=False),
    Case((3, 8, 4, 4), 8, pre_bias=True, scale_shift=True, one_row=True),
    Case((2, 6, 4, 4), 2, affine=False, silu=False),
    Case((1, 32, 2, 2), 32, silu=False),
    Case((2, 8, 16), 4),
    Case((5, 6), 2),
)
SPLIT = both_layouts(
    Case((1, 6, 64, 64), 2, pre_bias=True),
    Case((1, 3, 95, 101), 3, pre_bias=True, scale_shift=True),
    Case((1, 160, 9, 7), 1, scale_shift=True, silu=False),
    Case((2, 24, 30, 30), 2, pre_bias=True, scale_shift=True, one_row=True),
)


def arguments(case: Case, *, mean: float = 1.5, std: float = 2.0, seed: int = 0) -> dict[str, Any]:
    """The operator's arguments, by name, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels = case.shape[:2]
    rows = 1 if case.one_row else batch

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(case.dtype)

    def per_sample(wanted: bool) -> Tensor | None:
        # A slice of a wider table, as the time embedding's are.
        return draw(rows, channels + 3)[:, 1 : channels + 1] if wanted else None

    x = (torch.randn(case.shape, generator=generator) * std + mean).to(case.dtype)
    if case.channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return {
        "x": x,
        "num_groups": case.num_groups,
        "weight": 1 + 0.3 * draw(channels) if case.affine else None,
        "bias": draw(channels) if case.affine else None,
        "eps": EPS,
        "pre_bias": per_sample(case.pre_bias),
        "scale": per_sample(case.scale_shift),
        "shift": per_sample(case.scale_shift),
        "silu": case.silu,
    }


def expected(given: dict[str, Any]) -> np.ndarray:
    """y in float64 NumPy, from the formulas of GroupNorm and SiLU, group by group."""
    vectors = {
        name: None if given[name] is None else given[name].double().numpy()
        for name in ("weight", "bias", "pre_bias", "scale", "shift")
    }
    x = given["x"].double().numpy()
    batch, channels = x.shape[:2]
    size = channels // given["num_groups"]
    y = np.empty(x.shape)

    def of(name: str, n: int, c: int) -> float:
        values = vectors[name]
        return float(values[min(n, len(values) - 1), c]) if values is not None else 0.0

    with np.errstate(all="ignore"):
        for n in range(batch):
            for first in range(0, channels, size):
                own = range(first, first + size)
                h = np.stack([x[n, c] + of("pre_bias", n, c) for c in own])
                variance = ((h - h.mean()) ** 2).mean()
                h = (h - h.mean()) / math.sqrt(variance + given["eps"])
                for c, v in zip(own, h, strict=True):
                    if vectors["weight"] is not None:
                        v = v * vectors["weight"][c] + vectors["bias"][c]
                    v = v * (1 + of("scale", n, c)) + of("shift", n, c)
                    y[n, c] = v / (1 + np.exp(-v)) if given["silu"] else v
    return y


def plain(given: dict[str, Any]) -> Tensor:
    """The same-dtype PyTorch code, as networks write it."""
    tail = (1,) * (given["x"].dim() - 2)
    p, s, t = (
        None if given[name] is None else given[name].reshape(*given[name].shape, *tail)
        for name in ("pre_bias", "scale", "shift")
    )
    h = given["x"] if p is None else given["x"] + p
    h = torch.nn.functional.group_norm(h, given["num_groups"], given["weight"], given["bias"], given["eps"])
    if s is not None:
        h = h * (1 + s) + t
    return torch.nn.functional.silu(h) if given["silu"] else h


def exact_plain(given: dict[str, Any]) -> Tensor:
    """`plain` in float64."""
    return plain({k: v.double() if isinstance(v, Tensor) else v for k, v in given.items()})


def errors(y: Tensor, given: dict[str, Any]) -> tuple[float, float]:
    """The largest errors against float64: of y, and of the same-dtype PyTorch code.

    The latter is at least half an ulp of the largest value: below that it is luck.
    """
    true = expected(given)
    rounding = torch.finfo(given["x"].dtype).eps * np.abs(true).max() / 2
    ours, theirs = (float(np.abs(result.double().numpy() - true).max()) for result in (y, plain(given)))
    return ours, max(theirs, float(rounding))
