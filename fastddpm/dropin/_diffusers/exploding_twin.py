"""What the twins of diffusers' ScoreSdeVe and KarrasVe schedulers share: rows of one step, made of a call.

Whoever calls these schedulers asks for a predictor's step and a corrector's. Each operation is rounded once,
in the original's order: on a CPU results are the original's to the last bit.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fastddpm.dropin.settings import Report
from fastddpm.transfer import to_device
from fastddpm_kernels import N_COLUMNS, Column

OWN = ("_rows", "_levels", "original")
Number = float | Tensor
"""A level: on a card it is not read."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Divisors of 1, by which a product is rounded before it is added.
_ALWAYS: dict[str, dict[Column, float]] = {
    "along": {Column.FROM_X: 1.0, Column.X0_DIVISOR: 1.0},
    "slope": {
        Column.X0_FROM_X: 1.0,
        Column.X0_DIVISOR: 1.0,
        Column.FROM_X: 1.0,
        Column.EPS_FROM_X0: -1.0,
        Column.FROM_M: 1.0,
    },
}


class Exploding:
    """What the two share."""

    public_name: ClassVar[str]
    precision: ClassVar[str]
    not_fused: ClassVar[tuple[str, ...]]

    def report(self) -> Report:
        """What a step is made of."""
        return Report(
            peer=f"diffusers {type(self).__name__}, alone",
            network="the caller's",
            engine="eager: reverse_step on a copy of the sample",
            noise="torch generators, drawn as the original draws",
            precision=self.precision,
            fused=("update", "prediction", "noise"),
            not_fused=(*self.not_fused, "steps that need gradients: they go through the original's step"),
        )

    def _state(self) -> dict[str, Any]:
        """What is pickled."""
        return {name: value for name, value in vars(self).items() if name not in OWN[:2]}

    def __repr__(self) -> str:
        return f"{self.public_name} in the place of {super().__repr__()}"

    def _row(self, kind: str, device: torch.device, columns: dict[Column, Number]) -> Tensor:
        """A table of one row, ``(1, 32)``: what a kind of row always has, and these."""
        rows: dict[tuple[str, torch.device], Tensor] = self.__dict__.setdefault("_rows", {})
        if (kind, device) not in rows:
            row = torch.zeros((1, N_COLUMNS))
            for column, value in _ALWAYS[kind].items():
                row[0, column] = value
            rows[kind, device] = to_device(row, device)
        table = rows[kind, device].clone()
        for column, number in columns.items():
            table[0, column] = number
        return table


def is_ours(model_output: Tensor, sample: Tensor, *others: Tensor) -> bool:
    """Whether a kernel takes a step: of batches, alike, without gradients, and none in float64."""
    states = (model_output, sample, *others)
    if torch.is_grad_enabled() and any(state.requires_grad for state in states):
        return False
    is_alike = all(s.shape == sample.shape and s.device == sample.device for s in states)
    return is_alike and sample.dim() > 1 and all(state.dtype in DTYPES for state in states)


def copied(sample: Tensor) -> Tensor:
    """In float32 and contiguous, to be stepped in place."""
    return torch.empty(sample.shape, dtype=torch.float32, device=sample.device).copy_(sample)


def first(x: Tensor) -> Tensor:
    """Of each sample, the first row."""
    return torch.zeros((1, 2), dtype=torch.int64, device=x.device).expand(len(x), 2)
