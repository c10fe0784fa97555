"""A chain of a solver on its way: its plan on a device, and what steps to come need of those taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastddpm.dropin._diffusers.rows import check_channels, take_row
from fastddpm.engine import in_sigmas
from fastddpm.plans import Plan
from fastddpm.plans.diffusers.churn import Churn
from fastddpm.plans.diffusers.solvers import set_rows
from fastddpm.plans.in_sigmas import Level
from fastddpm.plans.plan import Float64
from fastddpm.transfer import to_device


class Walk:
    """A plan from the row where a chain began, on a device, with predictions and a state kept between rows.

    Args:
        plan: of the scheduler, in the space of its samples.
        start: the row of the scheduler that is the plan's first.
        borrowed: of each row, what weight of its sample stands for a state that the original has kept.
        noise_in_x0: of each row, the weight of its noise in x0.
        churn: arguments of the steps that the plan is made for.
        levels: the scheduler's alphas_cumprod, float64, for steps with an eta: a host that reads its tensor
            waits for it.
    """

    def __init__(
        self,
        plan: Plan,
        start: int,
        borrowed: Float64,
        noise_in_x0: Float64,
        churn: Churn | None = None,
        levels: Float64 | None = None,
    ) -> None:
        self.plan, self.start, self.borrowed = plan, start, borrowed
        self.noise_in_x0, self.churn, self.levels = noise_in_x0, churn, levels
        self._tensors: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._kept: Tensor | None = None
        # What the last step returned, and its values: the caller may change the first.
        self._returned: Tensor | None = None
        self._reached: Tensor | None = None
        self._version = 0

    @classmethod
    def of(
        cls, scheduler: Any, kind: str, *, eta: float | None, churn: Churn | None = None, start: int
    ) -> Walk:
        """Of a scheduler whose timesteps are set.

        Raises:
            ValueError: no rows express its configuration, or two of its timesteps are at one noise level.
        """
        rows = set_rows(scheduler, kind=kind, eta=eta, churn=churn, start=start, as_written=True)
        plan, scale = rows.plan, rows.scale
        if not plan.in_sigmas:
            plan = plan.scaled(scale)
        levels = None if eta is None else scheduler.alphas_cumprod.numpy(force=True).astype(np.float64)
        borrowed = rows.borrowed * scale[1:] / scale[:-1]
        return cls(plan, start, borrowed, rows.noise_in_x0, churn, levels)

    def __getstate__(self) -> dict[str, Any]:
        # Tables are made again where they are needed; what was kept goes with a copy.
        return {**vars(self), "_tensors": {}}

    @property
    def remembers(self) -> bool:
        """Whether a row needs more of earlier ones than the sample."""
        return bool(self.plan.kept or self.borrowed.any())

    def take(
        self, row: int, model_output: Tensor, sample: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(x_next, x0) of a row, new tensors."""
        if self.plan.in_sigmas:
            return self._take_written(row, model_output, sample, noise)
        table, counters = self._on(sample.device)
        kept = self._room(sample)
        x_next, x0 = take_row(self.plan, table, counters[row], model_output, sample, noise, kept=kept)
        weight = float(self.borrowed[row])
        if weight and not self._is_what_was_returned(sample):
            assert self._reached is not None
            x_next = (x_next.float() + weight * (self._reached - sample.float())).to(x_next.dtype)
        if noise is not None and self.noise_in_x0[row]:
            x0 = (x0.float() + float(self.noise_in_x0[row]) * noise.to(x0.device)).to(x0.dtype)
        self._returned = self._reached = None
        if row + 1 < len(self.plan) and self.borrowed[row + 1]:
            self._returned, self._reached = x_next, x_next.to(torch.float32, copy=True)
            self._version = 0 if x_next.is_inference() else x_next._version
        return x_next, x0

    def go_on_from(self, other: Walk) -> None:
        """Takes over what another walk has kept, whose first row is the same and the only one taken."""
        if other._kept is not None and self.plan.kept:
            self._kept = other._kept.new_zeros((self.plan.kept, *other._kept.shape[1:]))
            places = min(len(self._kept), len(other._kept))
            self._kept[:places] = other._kept[:places]
        self._returned, self._reached = other._returned, other._reached
        self._version = other._version

    def _take_written(
        self, row: int, model_output: Tensor, sample: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same in the scheduler's own operations, and of float64 in that."""
        check_channels(self.plan, model_output, sample)
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        u = sample.to(torch.promote_types(dtype, torch.float32))
        table, counters = self._on(sample.device)
        numbers = in_sigmas.coefficients(table, counters[row : row + 1, 0], u)
        if noise is not None:
            noise = noise.to(u.device)
            if self.churn is not None:
                u, noise = u + noise * self.churn.s_noise * numbers[Level.CHURN], None
        u_next, x0 = in_sigmas.following(
            u, model_output.to(u.dtype), numbers, noise, self._room(u), clip=self.plan.clip
        )
        return u_next.to(dtype), x0.to(dtype)

    def _is_what_was_returned(self, sample: Tensor) -> bool:
        # Tensors of inference mode do not say whether they were changed.
        return sample is self._returned and not sample.is_inference() and sample._version == self._version

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The table and a counter of each row."""
        if device not in self._tensors:
            counters = np.zeros((len(self.plan), 2), np.int64)
            counters[:, 0] = np.arange(len(self.plan))
            table = torch.from_numpy(np.array(self.plan.table))
            self._tensors[device] = (
                to_device(table, device),
                to_device(torch.from_numpy(counters), device),
            )
        return self._tensors[device]

    def _room(self, sample: Tensor) -> Tensor | None:
        """Room for the predictions that later rows read."""
        if not self.plan.kept:
            return None
        shape = (self.plan.kept, *sample.shape)
        # Of float64 where rows are in sigmas.
        dtype = sample.dtype if self.plan.in_sigmas else torch.float32
        kept = self._kept
        if kept is None or (kept.shape, kept.device, kept.dtype) != (shape, sample.device, dtype):
            self._kept = torch.zeros(shape, dtype=dtype, device=sample.device)
        return self._kept
