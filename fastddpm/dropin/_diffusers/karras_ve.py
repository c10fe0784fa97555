"""diffusers' KarrasVeScheduler with a fused step and correction (Karras et al. 2022, algorithm 2)."""

from __future__ import annotations

import sys
from typing import Any, cast

import torch

# Under its shorter name it is a dummy where transformers is not installed.
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler
from torch import Tensor

from fastddpm.dropin._diffusers.exploding_twin import Exploding, Number, copied, first, is_ours
from fastddpm.transfer import current
from fastddpm_kernels import Column, reverse_step


class FastKarrasVeScheduler(Exploding, KarrasVeScheduler):  # type: ignore[misc]
    """A KarrasVeScheduler with a fused step and correction; ``add_noise_to_input`` is the original's."""

    public_name = "FastKarrasVeScheduler"
    precision = "float32; of other states the original's step"
    not_fused = (
        "the mean of two slopes: passes of its own",
        "the noise before a step: the original's passes",
    )

    def __reduce__(self) -> tuple[object, ...]:
        # By name pickle would look for the original's class, whose name this one bears.
        return _restored, (), self._state()

    def step(
        self,
        model_output: Tensor,
        sigma_hat: Number,
        sigma_prev: Number,
        sample_hat: Tensor,
        return_dict: bool = True,
    ) -> Any:
        """Euler's step from sigma_hat to sigma_prev, as `KarrasVeScheduler.step`: new tensors.

        Args:
            model_output: ``(B, C, ...)``.
            sigma_hat: where the sample is; on a card it is not read.
            sigma_prev: the next level, likewise.
            sample_hat: ``(B, C, ...)``.
            return_dict: a KarrasVeOutput, else a tuple (prev_sample, derivative).
        """
        if not self._takes((model_output, sample_hat), (sigma_hat, sigma_prev)):
            original = cast("Any", super())
            return original.step(model_output, sigma_hat, sigma_prev, sample_hat, return_dict)
        slope, x0 = self._slope(sample_hat, model_output, sigma_hat)
        x = self._moved(sample_hat, slope, sigma_prev - sigma_hat)
        return _result(x, slope, x0) if return_dict else (x, slope)

    def step_correct(
        self,
        model_output: Tensor,
        sigma_hat: Number,
        sigma_prev: Number,
        sample_hat: Tensor,
        sample_prev: Tensor,
        derivative: Tensor,
        return_dict: bool = True,
    ) -> Any:
        """The step again, by the mean of the slopes at its ends, as `KarrasVeScheduler.step_correct`.

        Args:
            model_output: ``(B, C, ...)``, of the sample at the step's end.
            sigma_hat: where the step began.
            sigma_prev: where it ended.
            sample_hat: ``(B, C, ...)``, where it began.
            sample_prev: ``(B, C, ...)``, where Euler's step ended.
            derivative: ``(B, C, ...)``, the slope where it began.
            return_dict: a KarrasVeOutput, else a tuple (prev_sample, derivative), with the derivative given.
        """
        given = (model_output, sigma_hat, sigma_prev, sample_hat, sample_prev, derivative, return_dict)
        states = (model_output, sample_hat, sample_prev, derivative)
        if not self._takes(states, (sigma_hat, sigma_prev)):
            return cast("Any", super()).step_correct(*given)
        slope, x0 = self._slope(sample_prev, model_output, sigma_prev)
        x = self._moved(sample_hat, (0.5 * derivative).add_(slope, alpha=0.5), sigma_prev - sigma_hat)
        return _result(x, derivative, x0) if return_dict else (x, derivative)

    def _takes(self, states: tuple[Tensor, ...], levels: tuple[Number, ...]) -> bool:
        """Whether a step is ours: of others a slope is other rounding errors over a small sigma."""
        are_numbers = all(not isinstance(level, Tensor) or level.numel() == 1 for level in levels)
        is_single = all(state.dtype == torch.float32 for state in states)
        return are_numbers and is_single and is_ours(*states)

    def _slope(self, x: Tensor, m: Tensor, sigma: Number) -> tuple[Tensor, Tensor]:
        """(x - x0)/sigma and x0 = x + sigma*m, rounded as there."""
        d, x0 = copied(x), torch.empty(x.shape, dtype=torch.float32, device=x.device)
        with current(x.device):
            row = self._row("slope", x.device, {Column.X0_FROM_M: sigma, Column.EPS_DIVISOR: sigma})
            reverse_step(d, m, row, first(d), x0=x0, divide=True, rederive=True)
        return d, x0

    def _moved(self, x: Tensor, slope: Tensor, by: Number) -> Tensor:
        """x + by*slope."""
        moved = copied(x)
        with current(x.device):
            row = self._row("along", x.device, {Column.FROM_M: by})
            reverse_step(moved, slope, row, first(moved), divide=True)
        return moved


def _result(x: Tensor, slope: Tensor, x0: Tensor) -> Any:
    made = sys.modules[KarrasVeScheduler.__module__].KarrasVeOutput
    return made(prev_sample=x, derivative=slope, pred_original_sample=x0)


def _restored() -> FastKarrasVeScheduler:
    made: FastKarrasVeScheduler = FastKarrasVeScheduler.__new__(FastKarrasVeScheduler)
    return made


FastKarrasVeScheduler.__name__ = FastKarrasVeScheduler.__qualname__ = KarrasVeScheduler.__name__
FastKarrasVeScheduler.__module__ = KarrasVeScheduler.__module__
