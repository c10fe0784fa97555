"""diffusers' DDPMScheduler as a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastddpm.plans.diffusers.config import (
    COMMON_DEFAULTS,
    ancestral_timesteps,
    float32_alphas_cumprod,
    read_config,
    thresholding_of,
    x0_columns,
)
from fastddpm.plans.plan import Plan, build_table, check_choice
from fastddpm.plans.spacing import check_steps, check_timesteps

_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")
_VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")
_REFUSED_VARIANCES = {
    "fixed_large_log": "diffusers takes the square root of a logarithm there, which is NaN; use fixed_large",
    "learned": "the network's output is the variance itself there, which a table cannot express",
}
_DEFAULTS = {
    **COMMON_DEFAULTS,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "timestep_spacing": "leading",
}


def from_ddpm_scheduler(
    scheduler: Mapping[str, Any] | Any,
    num_inference_steps: int | None = None,
    *,
    timesteps: Sequence[int] | npt.ArrayLike | None = None,
) -> Plan:
    """The steps of a DDPMScheduler after `set_timesteps` with num_inference_steps or timesteps.

    Coefficients in float32 and in the order of `DDPMScheduler.step`. Noise is added wherever t > 0, also in a
    last step that does not visit 0 ("trailing"), as there.

    Args:
        scheduler: a DDPMScheduler, or its configuration; missing keys have diffusers' defaults.
        num_inference_steps: S in 1 .. T; None visits every timestep.
        timesteps: the timesteps themselves instead, strictly descending.

    Raises:
        ValueError: a bad argument; variance_type "fixed_large_log" (NaN in diffusers) or "learned"; epsilon
            prediction at alphas_cumprod = 0 without clip_sample or thresholding.
    """
    config = read_config(scheduler, _DEFAULTS)
    variance_type = config["variance_type"]
    if variance_type in _REFUSED_VARIANCES:
        raise ValueError(
            f"variance_type {variance_type!r} is not supported: {_REFUSED_VARIANCES[variance_type]}; "
            f"accepted are {', '.join(_VARIANCE_TYPES)}"
        )
    check_choice("variance_type", variance_type, _VARIANCE_TYPES)
    visited = _timesteps(config, num_inference_steps, timesteps)

    alphas_cumprod = float32_alphas_cumprod(config, _BETA_SCHEDULES)
    abar = alphas_cumprod[torch.from_numpy(visited)]
    abar_prev = torch.cat([abar[1:], torch.ones(1, dtype=torch.float32)])
    alpha = abar / abar_prev
    beta = 1 - alpha
    variance = torch.clamp((1 - abar_prev) / (1 - abar) * beta, min=1e-20)
    log_var_min = log_var_max = torch.zeros_like(beta)
    if variance_type == "learned_range":
        sigma = torch.ones_like(beta)
        log_var_min, log_var_max = torch.log(variance), torch.log(beta)
    elif variance_type == "fixed_small_log":
        sigma = torch.exp(0.5 * torch.log(variance))
    else:
        sigma = (variance if variance_type == "fixed_small" else beta) ** 0.5
    adds_noise = torch.from_numpy(visited > 0)

    columns = x0_columns(config, abar**0.5, (1 - abar) ** 0.5, clips=True)
    table = build_table(
        len(visited),
        **columns,
        a=(abar_prev**0.5 * beta / (1 - abar)).double(),
        b=(alpha**0.5 * (1 - abar_prev) / (1 - abar)).double(),
        c=torch.where(adds_noise, sigma, 0.0),
        log_var_min=log_var_min,
        log_var_max=log_var_max,
    )
    return Plan(
        method="ddpm",
        timesteps=visited,
        model_time=visited,
        table=table,
        prediction_type=config["prediction_type"],
        clip=columns["r"] != np.inf,
        learned_range=variance_type == "learned_range",
        thresholding=thresholding_of(config),
    )


def _timesteps(
    config: Mapping[str, Any], num_inference_steps: int | None, timesteps: Any
) -> npt.NDArray[np.int64]:
    total = config["num_train_timesteps"]
    if timesteps is not None:
        if num_inference_steps is not None:
            raise ValueError("give num_inference_steps or timesteps, got both")
        return check_timesteps(total, timesteps)
    if num_inference_steps is None:
        return np.arange(total - 1, -1, -1, dtype=np.int64)
    check_steps(total, num_inference_steps)
    return ancestral_timesteps(config, num_inference_steps)
