"""The Gaussian diffusion in plain PyTorch: what is known in closed form about x_0, x_t and x_{t-1}.

The forward process adds noise, q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, beta_t I); this module has its
composition, its inversion given x_0, and the three ways to say what a network predicted. Training uses
`q_sample`; samplers do not come through here (they walk a `fastddpm.plans.Plan`), tests hold them against it.

Throughout: x_t, x_0, eps and v are floating-point tensors (B, ...) of one shape; t is an integer tensor (B,)
with values in 0 .. T-1, one timestep per sample, and x_{t-1} at t = 0 is the image x_0 itself. Results have
the shape and dtype of the first tensor; coefficients are float64 until they are rounded to that dtype once.
A t of another shape or dtype, or (on the CPU, where looking costs nothing) out of range raises ValueError.
docs/math.md lists the formulas.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastddpm.betas import Array
from fastddpm.checks import BadArgument
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked


@checked
def forward_mean_variance(schedule: NoiseSchedule, x_prev: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """q(x_t | x_{t-1}): mean sqrt(1 - beta_t) x_{t-1} and variance beta_t (Ho et al. 2020, equation 2)."""
    mean = extract(np.sqrt(schedule.alphas), t, x_prev) * x_prev
    return mean, extract(schedule.betas, t, x_prev)


@checked
def q_mean_variance(schedule: NoiseSchedule, x_0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """q(x_t | x_0): mean sqrt(abar_t) x_0 and variance 1 - abar_t (Ho et al. 2020, equation 4)."""
    mean = extract(schedule.sqrt_alphas_cumprod, t, x_0) * x_0
    return mean, extract(1.0 - schedule.alphas_cumprod, t, x_0)


@checked
def q_sample(schedule: NoiseSchedule, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise, with noise ~ N(0, I) like x_0."""
    signal = extract(schedule.sqrt_alphas_cumprod, t, x_0) * x_0
    return signal + extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_0) * noise


@checked
def x0_from_eps(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_0 = sqrt(1/abar_t) x_t - sqrt(1/abar_t - 1) eps; not finite where abar_t is 0."""
    scaled = extract(schedule.sqrt_recip_alphas_cumprod, t, x_t) * x_t
    return scaled - extract(schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * eps


@checked
def x0_from_v(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """x_0 = sqrt(abar_t) x_t - sqrt(1 - abar_t) v (Salimans and Ho 2022, appendix D)."""
    return _alpha(schedule, t, x_t) * x_t - _sigma(schedule, t, x_t) * v


@checked
def eps_from_x0(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
    """eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)."""
    return (x_t - _alpha(schedule, t, x_t) * x_0) / _sigma(schedule, t, x_t)


@checked
def eps_from_v(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """eps = sqrt(abar_t) v + sqrt(1 - abar_t) x_t."""
    return _alpha(schedule, t, x_t) * v + _sigma(schedule, t, x_t) * x_t


@checked
def v_from_x0(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
    """v = (sqrt(abar_t) x_t - x_0) / sqrt(1 - abar_t)."""
    return (_alpha(schedule, t, x_t) * x_t - x_0) / _sigma(schedule, t, x_t)


@checked
def v_from_eps(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """v = (eps - sqrt(1 - abar_t) x_t) / sqrt(abar_t); not finite where abar_t is 0."""
    return (eps - _sigma(schedule, t, x_t) * x_t) / _alpha(schedule, t, x_t)


@checked
def velocity(schedule: NoiseSchedule, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0, the training target of a v_prediction network."""
    return _alpha(schedule, t, x_0) * eps - _sigma(schedule, t, x_0) * x_0


@checked
def posterior_mean(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x_0), a weighted sum of x_0 and x_t (Ho et al. 2020, equation 7).

    sqrt(abar_{t-1}) beta_t / (1 - abar_t) * x_0 + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) * x_t
    """
    from_x0 = extract(schedule.posterior_mean_coef1, t, x_t) * x_0
    return from_x0 + extract(schedule.posterior_mean_coef2, t, x_t) * x_t


@checked
def posterior_mean_from_eps(schedule: NoiseSchedule, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """The same mean from the noise: (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t).

    Ho et al. 2020, equation 11; not finite where beta_t is 1.
    """
    noise = extract(schedule.betas / schedule.sqrt_one_minus_alphas_cumprod, t, x_t) * eps
    return (x_t - noise) / extract(np.sqrt(schedule.alphas), t, x_t)


@checked
def posterior_variance(schedule: NoiseSchedule, x_t: Tensor, t: Tensor) -> Tensor:
    """Variance of q(x_{t-1} | x_t, x_0): beta_t (1 - abar_{t-1}) / (1 - abar_t), shaped to multiply x_t.

    It is below beta_t, the other usual choice for the variance of a sampling step, and 0 at t = 0.
    """
    return extract(schedule.posterior_variance, t, x_t)


def extract(values: Array, t: Tensor, x: Tensor) -> Tensor:
    """values[t] as (B, 1, ...), to multiply x (B, ...), in x's dtype and on its device."""
    if t.dtype.is_floating_point or t.dtype == torch.bool or t.shape != x.shape[:1]:
        raise BadArgument(
            "t", f"{t.dtype} {tuple(t.shape)}", f"an integer tensor of shape {tuple(x.shape[:1])}"
        )
    if t.device.type == "cpu" and len(t) and not 0 <= int(t.min()) <= int(t.max()) < len(values):
        raise BadArgument("t", f"{int(t.min())} .. {int(t.max())}", f"in 0 .. {len(values) - 1}")
    table = torch.tensor(values, device=x.device, dtype=x.dtype)
    return table[t.to(x.device)].reshape(-1, *([1] * (x.dim() - 1)))


def _alpha(schedule: NoiseSchedule, t: Tensor, x: Tensor) -> Tensor:
    return extract(schedule.sqrt_alphas_cumprod, t, x)


def _sigma(schedule: NoiseSchedule, t: Tensor, x: Tensor) -> Tensor:
    return extract(schedule.sqrt_one_minus_alphas_cumprod, t, x)
