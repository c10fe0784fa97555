"""diffusers' DDIMScheduler as a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fastddpm.plans.ddim import epsilon_columns
from fastddpm.plans.diffusers.config import (
    COMMON_DEFAULTS,
    ancestral_timesteps,
    float32_alphas_cumprod,
    read_config,
    thresholding_of,
    x0_columns,
)
from fastddpm.plans.plan import Plan, build_table, check_number
from fastddpm.plans.spacing import check_steps

_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_DEFAULTS = {
    **COMMON_DEFAULTS,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
}


def from_ddim_scheduler(
    scheduler: Mapping[str, Any] | Any,
    num_inference_steps: int,
    *,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
) -> Plan:
    """The steps of a DDIMScheduler after `set_timesteps(num_inference_steps)`.

    Coefficients in float32 and in the order of `DDIMScheduler.step`. The step from t goes to t - T//S, which
    is not always the next timestep visited (linspace, trailing): that is what diffusers does, and it is
    repeated here; `fastddpm.plans.ddim_plan` goes to the next. With eta > 0 every step draws noise, the last
    one included, even where its standard deviation is 0.

    Args:
        scheduler: a DDIMScheduler, or its configuration; missing keys have diffusers' defaults.
        num_inference_steps: S in 1 .. T.
        eta: amount of noise, in [0, 1].
        use_clipped_model_output: compute eps anew from the clipped x0.

    Raises:
        ValueError: a bad argument; epsilon prediction at alphas_cumprod = 0 without clip or thresholding.
    """
    config = read_config(scheduler, _DEFAULTS)
    total = config["num_train_timesteps"]
    check_steps(total, num_inference_steps)
    check_number("eta", eta, low=0.0, high=1.0)
    visited = ancestral_timesteps(config, num_inference_steps)

    alphas_cumprod = float32_alphas_cumprod(config, _BETA_SCHEDULES)
    final = torch.tensor(1.0, dtype=torch.float32) if config["set_alpha_to_one"] else alphas_cumprod[0]
    abar = alphas_cumprod[torch.from_numpy(visited)]
    previous = torch.from_numpy(visited - total // num_inference_steps)
    abar_prev = torch.where(previous >= 0, alphas_cumprod[previous.clamp(min=0)], final)
    variance = ((1 - abar_prev) / (1 - abar)) * (1 - abar / abar_prev)
    sigma = eta * variance**0.5
    # Where rounding takes this below 0 (eta = 1 from zero SNR), diffusers returns NaN.
    direction = (1 - abar_prev - sigma**2).clamp(min=0) ** 0.5

    alpha_t, sigma_t = abar**0.5, (1 - abar) ** 0.5
    prediction_type = config["prediction_type"]
    columns = x0_columns(config, alpha_t, sigma_t, clips=True)
    from_x0, from_x, from_m = epsilon_columns(
        prediction_type,
        alpha_t.double().numpy(),
        sigma_t.double().numpy(),
        rederived=use_clipped_model_output,
    )
    towards_x = direction.double().numpy()
    table = build_table(
        len(visited),
        **columns,
        a=(abar_prev**0.5).double().numpy() + towards_x * from_x0,
        b=towards_x * from_x,
        e=towards_x * from_m,
        c=sigma,
    )
    return Plan(
        method="ddim",
        timesteps=visited,
        model_time=visited,
        table=table,
        prediction_type=prediction_type,
        clip=columns["r"] != np.inf,
        thresholding=thresholding_of(config),
        draws=np.full(len(visited), eta > 0),
    )
