"""``denoised_fn`` and ``cond_fn`` of guided-diffusion: a network that finishes each step's mean itself.

    x0   = clip(denoised_fn(p*x + q*m))
    mean = a*x0 + b*x + e*m + variance*gradient                      p_sample (Sohl-Dickstein et al. 2015)
    mean = a*x0' + e*(b*x + f*x0')/w                                 ddim_sample (Song et al. 2020)
    x0'  = x0 + recipm1*sqrt(1 - abar)*gradient

The last is eps - sqrt(1 - abar)*gradient, solved for x0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastddpm.network import Model, unwrapped
from fastddpm.plans import Plan
from fastddpm.plans.plan import Float64
from fastddpm_kernels.reverse_step.reference import split_output
from fastddpm_kernels.table import EPS, X0, X_NEXT, Column


class Guidance:
    """Finishes means; one is made for each chain.

    Args:
        plan: what the chain would be without the functions.
        weights: float64 ``[S]``, what the gradient is scaled by at t = 0 .. S-1; None where the variance is
            learned, and scales it, in ancestral sampling.
        denoised_fn: as of the original, or None.
        cond_fn: as of the original, or None.

    Attributes:
        pred_xstart: x0 of the last step ``(B, C, H, W)``: before the gradient in ancestral sampling, after it
            in DDIM, as in the original.
    """

    pred_xstart: Tensor | None = None

    def __init__(
        self,
        plan: Plan,
        weights: Float64 | None,
        denoised_fn: Callable[[Tensor], Tensor] | None,
        cond_fn: Callable[..., Tensor] | None,
    ) -> None:
        self.plan, self.weights = plan, weights
        self.denoised_fn, self.cond_fn = denoised_fn, cond_fn

    def tables(self, device: torch.device) -> dict[str, Tensor]:
        """What a step looks up, by its row: model times, coefficients and the gradient's weights."""
        weights = torch.zeros(len(self.plan))
        if self.weights is not None:
            weights = torch.from_numpy(self.weights[::-1].copy()).float()
        return {
            "plan_times": torch.tensor(self.plan.model_time, device=device),
            "plan_rows": torch.tensor(self.plan.table, device=device),
            "plan_weights": weights.to(device),
        }

    def __call__(
        self,
        model: Model,
        x: Tensor,
        k: Tensor,
        *,
        plan_times: Tensor,
        plan_rows: Tensor,
        plan_weights: Tensor,
        **cond: object,
    ) -> Tensor:
        """The mean, ``(B, C, H, W)``, or with the learned variance behind it ``(B, 2C, H, W)``.

        Args:
            model: the network.
            x: float32 ``(B, C, H, W)``, the loop's own buffer.
            k: the plan's row, int64 ``(B,)``, the same for all.
            plan_times, plan_rows, plan_weights: as of `tables`.
            **cond: the caller's model_kwargs.
        """
        t = plan_times.index_select(0, k)
        row = plan_rows.index_select(0, k[:1])[0]
        m, variance = split_output(unwrapped(model(x, t, **cond)), x.shape[1], None)
        p, q, r = row[X0].unbind()
        x0 = p * x + q * m
        if self.denoised_fn is not None:
            x0 = self.denoised_fn(x0)
        if self.plan.clip:
            x0 = torch.clamp(x0, -r, r)
        mean = self._mean(row, x, x0, m)
        if self.cond_fn is not None:
            # A copy, since the loop goes on to write into x.
            gradient = self.cond_fn(x.clone(), t, **cond).float()
            if self.plan.method == "ddim":
                x0 = x0 + plan_weights.index_select(0, k[:1]) * gradient
                mean = self._mean(row, x, x0, m)
            elif self.weights is None and variance is not None:
                mean = mean + learned_variance(variance, row) * gradient
            else:
                mean = mean + plan_weights.index_select(0, k[:1]) * gradient
        self.pred_xstart = x0
        return mean if variance is None else torch.cat([mean, variance], dim=1)

    def _mean(self, row: Tensor, x: Tensor, x0: Tensor, m: Tensor) -> Tensor:
        """x_next without its noise, in the order of `fastddpm_kernels.reverse_step`."""
        a, b, e = row[X_NEXT].unbind()
        if not self.plan.rederives:
            return a * x0 + b * x + e * m
        f, g, w = row[EPS].unbind()
        return a * x0 + e * ((b * x + f * x0 + g * m) / w)


def learned_variance(values: Tensor, row: Tensor) -> Tensor:
    """The variance that a network's second half stands for in a plan's row, ``(B, C, H, W)``."""
    f = (values + 1.0) * 0.5
    log_variance = f * row[Column.LOG_VAR_MAX] + (1.0 - f) * row[Column.LOG_VAR_MIN]
    return torch.exp(log_variance)
