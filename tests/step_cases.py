"""The cases of `reverse_step` that its tests share: arguments for a case, and what float64 makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import float64_reference
import numpy as np
import torch
from torch import Tensor

from fastddpm_kernels import N_COLUMNS, Column

SHAPES = {1: (1, 1, 1), 2: (2, 1, 1), 5: (1, 1, 5), 33: (3, 11, 1), 784: (1, 28, 28), 3072: (3, 32, 32)}
# States that are no images: a vector, actions, a volume.
OTHER_SHAPES = ((5,), (4, 9), (2, 3, 2, 4))
"""Shapes of a sample by its number of elements."""

SEEDS = (0, 2**32 + 5, 2**63 - 1)
K, REPEAT, RING_SLOTS = 3, 5, 2

MIXED = ((1, 0, 2), (6, 2, 0), (7, 7, 2**31 + 1))
"""Of samples that walk plans of their own: row of the table, row where the plan begins, repeat."""

TOLERANCE = 4e-6
"""Of float32 results up to about 10 in size, against float64, at any dtype of m: m is read exactly."""

# Which column a letter of the formulas is.
COLUMNS = {
    "p": Column.X0_FROM_X,
    "q": Column.X0_FROM_M,
    "r": Column.X0_BOUND,
    "a": Column.FROM_X0,
    "b": Column.FROM_X,
    "e": Column.FROM_M,
    "h": Column.FROM_KEPT_1,
    "c": Column.FROM_NOISE,
    "log_var_min": Column.LOG_VAR_MIN,
    "log_var_max": Column.LOG_VAR_MAX,
    "linear_x": Column.LINEAR_X,
    "linear_m": Column.LINEAR_M,
    "d": Column.X0_DIVISOR,
    "f": Column.EPS_FROM_X0,
    "g": Column.EPS_FROM_M,
    "w": Column.EPS_DIVISOR,
    "h2": Column.FROM_KEPT_2,
    "h3": Column.FROM_KEPT_3,
    "i": Column.KEPT_FROM_X0,
    "j": Column.KEPT_FROM_X,
    "n": Column.KEPT_FROM_M,
    "slot": Column.KEPT_SLOT,
    "h4": Column.FROM_KEPT_4,
    "h5": Column.FROM_KEPT_5,
}
ROW = {
    "p": 1.3,
    "q": -0.75,
    "r": 1.0,
    "a": 0.35,
    "b": 0.62,
    "e": 0.11,
    "h": -0.23,
    "c": 0.41,
    "log_var_min": -3.2,
    "log_var_max": -0.7,
    "d": 0.9,
    "f": -0.57,
    "g": 0.21,
    "w": 1.1,
    "h2": 0.17,
    "h3": -0.08,
    "h4": 0.31,
    "h5": -0.19,
    "i": -0.4,
    "j": 1.2,
    "n": 0.3,
    "slot": 0,
}


@dataclass(frozen=True)
class Case:
    """Which of the operator's options are on."""

    name: str
    noise: str | None = "seeds"
    clip: bool = False
    x0: bool = False
    kept: int = 0
    slot: int = 0
    combine: bool = False
    guidance: bool = False
    threshold: bool = False
    learned_range: bool = False
    divide: bool = False
    rederive: bool = False


CASES = (
    Case("linear"),
    Case("clip", clip=True),
    Case("deterministic", noise=None, clip=True),
    Case("deterministic_linear", noise=None),
    Case("ring", noise="ring", clip=True),
    Case("x0_out", x0=True),
    Case("multistep", noise=None, kept=1, clip=True),
    Case("multistep_noisy", x0=True, kept=1),
    Case("two_kept", noise=None, kept=2, slot=1),
    Case("five_kept", noise=None, kept=5, slot=4, combine=True),
    Case("three_kept_noisy", kept=3, slot=0, combine=True, clip=True, x0=True),
    Case("threshold", threshold=True, x0=True),
    Case("guidance", guidance=True, clip=True),
    Case("learned_range", learned_range=True, clip=True),
    Case("learned_range_linear_ring", learned_range=True, noise="ring"),
    Case("divide", divide=True),
    Case("divide_clip", divide=True, clip=True),
    Case("rederive", rederive=True, clip=True),
    Case("divide_rederive_multistep", noise="ring", divide=True, rederive=True, kept=1),
    Case("everything", guidance=True, learned_range=True, threshold=True, kept=1),
    Case("divided_everything", guidance=True, learned_range=True, threshold=True, divide=True, rederive=True),
)


def table(row: dict[str, float] = ROW, k: int = K, *, slot: int = 0) -> Tensor:
    """Four rows with `row` as the k-th and NaN in the others, so that reading a wrong one shows."""
    values = dict(
        row, slot=slot, linear_x=row["a"] * row["p"] + row["b"], linear_m=row["a"] * row["q"] + row["e"]
    )
    rows = torch.full((4, N_COLUMNS), math.nan, dtype=torch.float64)
    rows[k] = 0
    for name, value in values.items():
        rows[k, COLUMNS[name]] = value
    return rows.to(torch.float32)


def arguments(
    case: Case,
    shape: tuple[int, ...],
    *,
    seeds: tuple[int, ...] = SEEDS,
    m_dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> dict[str, Any]:
    """The operator's arguments, by name, on the CPU."""
    batch = len(seeds)
    generator = torch.Generator().manual_seed(1)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    m_shape = (batch * (1 + case.guidance), shape[0] * (1 + case.learned_range), *shape[1:])
    m = draw(*m_shape).to(m_dtype)
    if channels_last:
        m = m.to(memory_format=torch.channels_last)
    noise = {None: None, "seeds": torch.tensor(seeds), "ring": draw(RING_SLOTS, batch, *shape)}[case.noise]
    return {
        "x": draw(batch, *shape),
        "m": m,
        "table": table(slot=case.slot),
        "counter": torch.tensor([[K, REPEAT]]).repeat(batch, 1),
        "noise": noise,
        "x0": draw(batch, *shape) if case.x0 else None,
        "guidance": torch.tensor([1.5, 0.0, 4.0])[:batch] if case.guidance else None,
        "threshold": torch.tensor([1.2, 0.7, 2.0])[:batch] if case.threshold else None,
        "kept": draw(case.kept, batch, *shape) if case.kept else None,
        "base": None,
        "clip": case.clip,
        "combine": case.combine,
        "divide": case.divide,
        "rederive": case.rederive,
    }


def expected(given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(x_next, x0, kept) in float64 for these arguments, from float64_reference."""
    x = given["x"].numpy()
    row = {name: float(np.float32(value)) for name, value in ROW.items()}
    kept = None if given["kept"] is None else given["kept"].numpy().astype(np.float64)
    x_next, x0, own = float64_reference.reverse_step(
        x,
        given["m"].to(torch.float32).contiguous().numpy(),
        row,
        z=_noise(given, x.shape),
        kept=kept,
        w=None if given["guidance"] is None else given["guidance"].numpy(),
        s=None if given["threshold"] is None else given["threshold"].numpy(),
        clip=given["clip"],
        divide=given["divide"],
        combine=given["combine"],
        rederive=given["rederive"],
    )
    if kept is not None:
        kept[int(given["table"][K, Column.KEPT_SLOT])] = own
    return x_next, x0, kept


def _noise(given: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray | None:
    noise = given["noise"]
    if noise is None:
        return None
    if noise.dtype != torch.int64:
        return noise[K % RING_SLOTS].numpy().astype(np.float64)
    return np.stack(
        [float64_reference.sample_noise(int(seed), K + 1, shape[1:], repeat=REPEAT) for seed in noise]
    )


def mixed(case: Case, shape: tuple[int, ...]) -> dict[str, Any]:
    """`arguments` of samples that are each at a row of a plan of its own; the other rows are NaN."""
    given = arguments(case, shape)
    arena = torch.full((MIXED[-1][0] + 2, N_COLUMNS), math.nan)
    for place, (k, *_) in enumerate(MIXED):
        arena[k] = table(mixed_row(place), slot=mixed_slot(case, place))[K]
    places = torch.tensor(MIXED)
    return given | {"table": arena, "counter": places[:, [0, 2]].contiguous(), "base": places[:, 1].clone()}


def mixed_row(place: int) -> dict[str, float]:
    """The coefficients of a sample of `mixed`."""
    return {name: value * (1.0 - 0.25 * place) for name, value in ROW.items()}


def mixed_slot(case: Case, place: int) -> int:
    """Where a sample of `mixed` keeps its prediction."""
    return (case.slot + place) % max(1, case.kept)


def expected_of_mixed(case: Case, given: dict[str, Any]) -> list[np.ndarray | None]:
    """(x_next, x0, kept) in float64 for arguments of `mixed`, sample by sample."""
    x, batch = given["x"].numpy(), len(given["x"])
    m = given["m"].to(torch.float32).contiguous().numpy()
    kept = None if given["kept"] is None else given["kept"].numpy().astype(np.float64)
    x_next, x0 = np.empty(x.shape), np.empty(x.shape)
    for i, (k, base, repeat) in enumerate(MIXED):
        own = slice(i, i + 1)
        z = None
        if case.noise == "ring":
            z = given["noise"][(k - base) % RING_SLOTS, own].numpy().astype(np.float64)
        elif case.noise == "seeds":
            z = float64_reference.sample_noise(SEEDS[i], k - base + 1, x.shape[1:], repeat=repeat)[None]
        x_next[own], x0[own], prediction = float64_reference.reverse_step(
            x[own],
            np.concatenate((m[own], m[batch + i : batch + i + 1])) if case.guidance else m[own],
            {name: float(np.float32(value)) for name, value in mixed_row(i).items()},
            z=z,
            kept=None if kept is None else kept[:, own],
            w=given["guidance"].numpy()[own] if case.guidance else None,
            s=given["threshold"].numpy()[own] if case.threshold else None,
            clip=case.clip,
            divide=case.divide,
            combine=case.combine,
            rederive=case.rederive,
        )
        if kept is not None:
            kept[mixed_slot(case, i), own] = prediction
    return [x_next, x0, kept]


def alone(given: dict[str, Any], i: int) -> dict[str, Any]:
    """The arguments of one sample of a case without guidance, kept predictions or a ring."""
    per_sample = ("x", "m", "counter", "base", "noise", "threshold")
    return given | {name: given[name][i : i + 1].clone() for name in per_sample if given[name] is not None}


def clone(given: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """The same arguments in new memory, their layouts kept."""
    return {
        name: value.clone().to(device) if isinstance(value, Tensor) else value
        for name, value in given.items()
    }
