"""diffusers' DPMSolverMultistepScheduler as a plan: DPM-Solver++ of order 1 and 2."""

from __future__ import annotations

import numpy as np
import torch

from fastddpm.checks import BadArgument, check_choice
from fastddpm.plans.diffusers.config import (
    COMMON_DEFAULTS,
    SchedulerConfig,
    SchedulerOrConfig,
    float32_alphas_cumprod,
    read_config,
    thresholding_of,
    usable_timesteps,
    x0_columns,
)
from fastddpm.plans.dpmpp import FEW_STEPS, SMALLEST_ALPHA_CUMPROD
from fastddpm.plans.plan import Plan, build_table
from fastddpm.plans.spacing import SPACINGS, Int64, check_steps

_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_OTHER_SIGMAS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)
_DEFAULTS = {
    **COMMON_DEFAULTS,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -float("inf"),
    "variance_type": None,
    "timestep_spacing": "linspace",
    **dict.fromkeys(_OTHER_SIGMAS, False),
}


def from_dpmsolver_scheduler(scheduler: SchedulerOrConfig, num_inference_steps: int) -> Plan:
    """The steps of a DPMSolverMultistepScheduler after `set_timesteps(num_inference_steps)`.

    algorithm_type "dpmsolver++", solver_order 1 or 2, solver_type "midpoint" or "heun". Coefficients in
    float32 and in the order of its first and second order updates.

    Args:
        scheduler: the scheduler, or its configuration; missing keys have diffusers' defaults.
        num_inference_steps: S in 1 .. T.

    Raises:
        ValueError: a bad argument; another algorithm, solver_order 3, flow prediction, Karras or other
            sigmas; a spacing that visits a timestep twice (diffusers then divides by zero).
    """
    config = _checked(read_config(scheduler, _DEFAULTS))
    check_steps(config["num_train_timesteps"], num_inference_steps)
    alphas_cumprod = float32_alphas_cumprod(config, _BETA_SCHEDULES)
    if config["rescale_betas_zero_snr"]:
        alphas_cumprod[-1] = SMALLEST_ALPHA_CUMPROD
    visited = _timesteps(config, alphas_cumprod, num_inference_steps)

    sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
    last = sigmas[:1] if config["final_sigmas_type"] == "sigma_min" else torch.zeros(1, dtype=torch.float32)
    sigmas = torch.cat([sigmas[torch.from_numpy(visited)], last])
    alpha = 1 / ((sigmas**2 + 1) ** 0.5)
    sigma = sigmas * alpha
    log_snr = torch.log(alpha) - torch.log(sigma)
    h = log_snr[1:] - log_snr[:-1]
    k = alpha[1:] * (torch.exp(-h) - 1.0)

    # x_t = sigma_t/sigma_s x - k x0 + second (x0 - x0_prev)
    second = torch.zeros_like(h)
    for i in _second_order_steps(config, len(visited)):
        reciprocal_r = 1.0 / ((log_snr[i] - log_snr[i - 1]) / h[i])
        if config["solver_type"] == "midpoint":
            second[i] = -0.5 * k[i] * reciprocal_r
        else:
            second[i] = alpha[i + 1] * ((torch.exp(-h[i]) - 1.0) / h[i] + 1.0) * reciprocal_r
    columns = x0_columns(config, alpha[:-1], sigma[:-1], clips=False)
    table = build_table(
        len(visited),
        **columns,
        from_x0=second.double() - k.double(),
        from_x=(sigma[1:] / sigma[:-1]).double(),
        from_kept_1=0.0 - second.double(),
    )
    return Plan(
        method="dpmpp_2m",
        timesteps=visited,
        model_time=visited,
        table=table,
        prediction_type=config["prediction_type"],
        clip=False,
        learned_range=config["variance_type"] in ("learned", "learned_range"),
        thresholding=thresholding_of(config),
    )


def _checked(config: SchedulerConfig) -> SchedulerConfig:
    """The configuration with diffusers' own replacements, or ValueError for what no row can express."""
    if config["algorithm_type"] == "deis":
        config["algorithm_type"] = "dpmsolver++"
    if config["solver_type"] in ("logrho", "bh1", "bh2"):
        config["solver_type"] = "midpoint"
    check_choice("algorithm_type", config["algorithm_type"], ("dpmsolver++",))
    check_choice("solver_type", config["solver_type"], ("midpoint", "heun"))
    check_choice("final_sigmas_type", config["final_sigmas_type"], ("zero", "sigma_min"))
    check_choice("timestep_spacing", config["timestep_spacing"], SPACINGS)
    if config["solver_order"] not in (1, 2):
        raise BadArgument("solver_order", repr(config["solver_order"]), "1 or 2")
    for name in _OTHER_SIGMAS:
        if config.get(name):
            raise BadArgument(name, repr(config.get(name)), "False: only timesteps of the training schedule")
    return config


def _timesteps(config: SchedulerConfig, alphas_cumprod: torch.Tensor, steps: int) -> Int64:
    """The timesteps visited, below the one where the log SNR falls under `lambda_min_clipped`."""
    total, spacing = config["num_train_timesteps"], config["timestep_spacing"]
    log_snr = torch.log(torch.sqrt(alphas_cumprod)) - torch.log(torch.sqrt(1 - alphas_cumprod))
    clipped = torch.searchsorted(torch.flip(log_snr, [0]), float(config["lambda_min_clipped"]))
    last = total - int(clipped)
    if spacing == "linspace":
        values = np.linspace(0, last - 1, steps + 1).round()[::-1][:-1]
    elif spacing == "leading":
        values = (np.arange(0, steps + 1) * (last // (steps + 1))).round()[::-1][:-1] + config["steps_offset"]
    else:
        values = np.arange(last, 0, -total / steps).round() - 1
    return usable_timesteps(config, steps, values)


def _second_order_steps(config: SchedulerConfig, n_steps: int) -> range:
    """The steps that use the x0 before: not the first, and not always the last."""
    if config["solver_order"] == 1:
        return range(0)
    few = config["lower_order_final"] and n_steps < FEW_STEPS
    lower_at_end = config["euler_at_final"] or few or config["final_sigmas_type"] == "zero"
    return range(1, n_steps - 1 if lower_at_end else n_steps)
