"""diffusers' DDPMScheduler as a plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fastddpm.checks import BadArgument, check_choice
from fastddpm.plans.diffusers.config import (
    COMMON_DEFAULTS,
    SchedulerConfig,
    SchedulerOrConfig,
    ancestral_timesteps,
    given_timesteps,
    looked_up,
    read_config,
    stored_alphas_cumprod,
    thresholding_of,
    x0_columns,
)
from fastddpm.plans.plan import Plan, build_table
from fastddpm.plans.spacing import check_steps

_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
_VARIANCE_TYPES = (
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
)
_DEFAULTS = {
    **COMMON_DEFAULTS,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "timestep_spacing": "leading",
}


def from_ddpm_scheduler(
    scheduler: SchedulerOrConfig,
    num_inference_steps: int | None = None,
    *,
    timesteps: Sequence[int] | npt.ArrayLike | None = None,
    variance_type: str | None = None,
    log_variance: bool = False,
) -> Plan:
    """The steps of a DDPMScheduler after `set_timesteps` with num_inference_steps or timesteps.

    Coefficients in float32 and in the order of `DDPMScheduler.step`. Noise is added wherever t > 0, also in a
    last step that does not visit 0 ("trailing"), as there. Where "trailing" ends at -1 (61 of 1000 steps) so
    does the plan, with diffusers' step from alphas_cumprod[-1] to 1.

    Args:
        scheduler: a DDPMScheduler, or its configuration; missing keys have diffusers' defaults.
        num_inference_steps: S in 1 .. T; None visits every timestep.
        timesteps: the timesteps themselves instead, strictly descending.
        variance_type: in place of the configuration's.
        log_variance: for variance_type "learned": the caller puts the logarithm of the network's second half
            in its place.

    Raises:
        ValueError: a bad argument; variance_type "fixed_large_log" where noise is added (NaN in diffusers),
            or "learned" without log_variance; epsilon prediction at alphas_cumprod = 0 without clip_sample or
            thresholding.
    """
    config = read_config(scheduler, _DEFAULTS)
    if variance_type is not None:
        config["variance_type"] = variance_type
    visited = _timesteps(config, num_inference_steps, timesteps)
    adds_noise = visited > 0
    _check_variance_type(config["variance_type"], bool(adds_noise.any()), log_variance)

    abar = looked_up(stored_alphas_cumprod(scheduler, config, _BETA_SCHEDULES), visited, config)
    one = torch.ones(1, dtype=torch.float32)
    abar_prev = torch.cat([torch.where(torch.from_numpy(visited[1:] >= 0), abar[1:], one), one])
    alpha = abar / abar_prev
    beta = 1 - alpha
    variance = torch.clamp((1 - abar_prev) / (1 - abar) * beta, min=1e-20)
    columns = x0_columns(config, abar**0.5, (1 - abar) ** 0.5, clips=True)
    sigma, log_var_min, log_var_max = _noise_columns(config["variance_type"], variance, beta)
    table = build_table(
        len(visited),
        **columns,
        from_x0=(abar_prev**0.5 * beta / (1 - abar)).double(),
        from_x=(alpha**0.5 * (1 - abar_prev) / (1 - abar)).double(),
        from_noise=torch.where(torch.from_numpy(adds_noise), sigma, 0.0),
        log_var_min=log_var_min,
        log_var_max=log_var_max,
    )
    return Plan(
        method="ddpm",
        timesteps=visited,
        model_time=visited,
        table=table,
        prediction_type=config["prediction_type"],
        clip=columns["x0_bound"] != np.inf,
        learned_range=config["variance_type"] in ("learned", "learned_range"),
        thresholding=thresholding_of(config),
        wraps=True,
        draws=adds_noise,
    )


def _check_variance_type(variance_type: str | None, adds_noise: bool, log_variance: bool) -> None:
    """ValueError unless a row can express it."""
    check_choice("variance_type", variance_type, _VARIANCE_TYPES)
    if variance_type == "fixed_large_log" and adds_noise:
        raise BadArgument(
            "variance_type",
            "'fixed_large_log', in diffusers NaN (the square root of a logarithm below 0),",
            "'fixed_large', which is what it means,",
        )
    if variance_type == "learned" and not log_variance:
        raise BadArgument(
            "variance_type",
            "'learned', whose network returns the variance itself where a row takes its logarithm,",
            "log_variance=True and a model that returns the logarithm",
        )


def _noise_columns(
    variance_type: str | None, variance: torch.Tensor, beta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """c and the bounds of the log variance, [S]: sigma = c * exp(0.5*(f*max + (1-f)*min)), f = (v+1)/2."""
    zero, one = torch.zeros_like(beta), torch.ones_like(beta)
    if variance_type == "learned_range":
        return one, torch.log(variance), torch.log(beta)
    if variance_type == "learned":
        return one, -one, one  # f*1 + (1-f)*(-1) = v, and v is the log variance
    if variance_type == "fixed_small_log":
        return torch.exp(0.5 * torch.log(variance)), zero, zero
    # No row of fixed_large_log adds noise when it comes here.
    return (variance if variance_type == "fixed_small" else beta) ** 0.5, zero, zero


def _timesteps(
    config: SchedulerConfig, num_inference_steps: int | None, timesteps: npt.ArrayLike | None
) -> npt.NDArray[np.int64]:
    total = config["num_train_timesteps"]
    if timesteps is not None:
        if num_inference_steps is not None:
            raise BadArgument("num_inference_steps, timesteps", "both", "one of the two")
        return given_timesteps(timesteps)
    if num_inference_steps is None:
        return np.arange(total - 1, -1, -1, dtype=np.int64)
    check_steps(total, num_inference_steps)
    return ancestral_timesteps(config, num_inference_steps)
