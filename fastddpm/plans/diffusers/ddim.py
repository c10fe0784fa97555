"""diffusers' DDIMScheduler as a plan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from fastddpm.checks import BadArgument, check_choice, check_number
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
from fastddpm.plans.plan import Plan, PredictionType, build_table
from fastddpm.plans.spacing import check_steps

_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREVIOUS_TIMESTEPS = ("original", "consistent")
# Of a few float32 operations on numbers up to 1.
_ROUNDING = 1e-6
DEFAULTS = {
    **COMMON_DEFAULTS,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "timestep_spacing": "leading",
}


def from_ddim_scheduler(
    scheduler: SchedulerOrConfig,
    num_inference_steps: int,
    *,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    previous_timestep: str = "original",
    timesteps: npt.ArrayLike | None = None,
) -> Plan:
    """The steps of a DDIMScheduler after `set_timesteps(num_inference_steps)`.

    Coefficients in float32 and in the order of `DDIMScheduler.step`. With eta > 0 every step draws noise, the
    last one included, even where its standard deviation is 0. Where "trailing" ends at -1 (61 of 1000 steps)
    so does the plan, with diffusers' step from alphas_cumprod[-1].

    Args:
        scheduler: a DDIMScheduler, or its configuration; missing keys have diffusers' defaults.
        num_inference_steps: S in 1 .. T.
        eta: amount of noise; 0 .. 1 is DDIM .. DDPM. Below 0 nothing is drawn, as in diffusers.
        use_clipped_model_output: compute eps anew from the clipped x0.
        previous_timestep: "original": the step from t goes to t - T//S, which is what diffusers does and not
            always the next timestep visited (linspace, trailing). "consistent": to the next.
        timesteps: the timesteps to have rows for, descending, instead of those that the scheduler visits.

    Raises:
        ValueError: a bad argument; an eta for which 1 - abar_prev - sigma**2 is below 0 (NaN in diffusers);
            epsilon prediction at alphas_cumprod = 0 without clip or thresholding.
    """
    config = read_config(scheduler, DEFAULTS)
    total = config["num_train_timesteps"]
    check_steps(total, num_inference_steps)
    check_number("eta", abs(eta), low=0.0)
    check_choice("previous_timestep", previous_timestep, PREVIOUS_TIMESTEPS)
    if timesteps is None:
        visited = ancestral_timesteps(config, num_inference_steps)
    else:
        visited = given_timesteps(timesteps)

    alphas_cumprod = stored_alphas_cumprod(scheduler, config, _BETA_SCHEDULES)
    abar = looked_up(alphas_cumprod, visited, config)
    if previous_timestep == "original":
        previous = torch.from_numpy(visited - total // num_inference_steps)
    else:
        previous = torch.from_numpy(np.append(visited[1:], -1))
    abar_prev = torch.where(
        previous >= 0, alphas_cumprod[previous.clamp(min=0)], _final(scheduler, config, alphas_cumprod)
    )
    variance = ((1 - abar_prev) / (1 - abar)) * (1 - abar / abar_prev)
    sigma = eta * variance**0.5
    direction = _direction(1 - abar_prev - sigma**2, eta)

    alpha_t, sigma_t = abar**0.5, (1 - abar) ** 0.5
    prediction_type = config["prediction_type"]
    columns = x0_columns(config, alpha_t, sigma_t, clips=True)
    draws = np.full(len(visited), eta > 0)
    table = build_table(
        len(visited),
        **columns,
        **eps_columns(prediction_type, alpha_t, sigma_t, rederived=use_clipped_model_output),
        from_x0=(abar_prev**0.5).double(),
        from_m=direction.double(),
        from_noise=np.where(draws, sigma.double().numpy(), 0.0),
    )
    return Plan(
        method="ddim",
        timesteps=visited,
        model_time=visited,
        table=table,
        prediction_type=prediction_type,
        clip=columns["x0_bound"] != np.inf,
        thresholding=thresholding_of(config),
        wraps=True,
        draws=draws,
    )


def eps_columns(
    prediction_type: PredictionType, alpha: torch.Tensor, sigma: torch.Tensor, *, rederived: bool
) -> dict[str, torch.Tensor | float]:
    """b, f, g and w of eps = (b*x + f*x0 + g*m)/w, [S], as the step computes it; none where eps is m.

    `rederived`: (x - alpha x0)/sigma from the bounded x0. A network that predicts x0 has it from the output
    m itself, one that predicts v has alpha m + sigma x.
    """
    if rederived:
        return {"from_x": 1.0, "eps_from_x0": -alpha.double(), "eps_divisor": sigma.double()}
    if prediction_type == "sample":
        return {"from_x": 1.0, "eps_from_m": -alpha.double(), "eps_divisor": sigma.double()}
    if prediction_type == "v_prediction":
        return {"from_x": sigma.double(), "eps_from_m": alpha.double(), "eps_divisor": 1.0}
    return {}


def _final(
    scheduler: SchedulerOrConfig, config: SchedulerConfig, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """alphas_cumprod after the last step: what the scheduler holds, else what its constructor would."""
    held = None if isinstance(scheduler, Mapping) else getattr(scheduler, "final_alpha_cumprod", None)
    if held is not None:
        kept: torch.Tensor = held.detach().cpu()
        return kept
    return torch.tensor(1.0, dtype=torch.float32) if config["set_alpha_to_one"] else alphas_cumprod[0]


def _direction(squared: torch.Tensor, eta: float) -> torch.Tensor:
    """sqrt(1 - abar_prev - sigma**2), [S]; 0 where rounding takes that below 0 (eta = 1 from zero SNR) and
    diffusers returns NaN."""
    if abs(eta) > 1 and bool((squared < -_ROUNDING).any()):
        raise BadArgument(
            "eta",
            f"{eta!r}, by which 1 - alphas_cumprod - sigma**2 falls to {float(squared.min()):.2g} and "
            "diffusers returns NaN,",
            "a number in [0, 1] for this schedule",
        )
    return squared.clamp(min=0) ** 0.5
