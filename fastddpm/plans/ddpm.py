"""Ancestral sampling: each step draws from the Gaussian posterior of Ho et al. 2020, algorithm 2."""

from __future__ import annotations

import numpy as np

from fastddpm.checks import check_choice, check_number
from fastddpm.plans.formula import (
    VARIANCE_TYPES,
    Columns,
    FormulaOptions,
    Passed,
    VarianceType,
    formula_plan,
    prediction_columns,
)
from fastddpm.plans.plan import PREDICTION_TYPES, Plan, PredictionType, check_clip_range
from fastddpm.plans.spacing import Timesteps, TimestepSpacing, resolve_timesteps
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked


@checked
def ddpm_plan(
    schedule: NoiseSchedule,
    num_inference_steps: int | None = None,
    *,
    prediction_type: PredictionType = "epsilon",
    variance_type: VarianceType = "fixed_small",
    sigma_scale: float = 1.0,
    clip_sample_range: float | None = None,
    timestep_spacing: TimestepSpacing = "leading",
    timesteps: Timesteps | None = None,
    final_alpha_cumprod: float = 1.0,
) -> Plan:
    """DDPM (Ho et al. 2020, equations 6, 7 and 11), respaced as in Nichol and Dhariwal 2021, section 4.

    With consecutive timesteps t -> s of the plan, abar_s = final_alpha_cumprod after the last one, and the
    effective alpha = abar_t / abar_s, beta = 1 - alpha:

        x_s = sqrt(abar_s) beta / (1 - abar_t) * x0 + sqrt(alpha) (1 - abar_s) / (1 - abar_t) * x_t + sigma z

    sigma^2 is sigma_scale^2 times beta (1 - abar_s)/(1 - abar_t) ("fixed_small"), beta ("fixed_large"), or an
    interpolation of the two on a log scale by the network ("learned_range"; Nichol and Dhariwal, equation
    15). The last step adds no noise. sigma_scale = 0 is a deterministic chain, and not DDIM.

    Args:
        schedule: the T training timesteps.
        num_inference_steps: S in 1 .. T; None is T.
        prediction_type: "epsilon", "sample" or "v_prediction".
        variance_type: "fixed_small", "fixed_large" or "learned_range".
        sigma_scale: factor of the noise's standard deviation, >= 0.
        clip_sample_range: bound of |x0|, above 0, or None for no clip.
        timestep_spacing: "leading", "linspace" or "trailing"; see `spaced_timesteps`.
        timesteps: the timesteps themselves instead, strictly descending.
        final_alpha_cumprod: abar after the last step, between that of the last timestep and 1.

    Raises:
        ValueError: an argument is not as above, or x0 would be infinite (epsilon, no clip, abar = 0).
    """
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    check_choice("variance_type", variance_type, VARIANCE_TYPES)
    check_number("sigma_scale", sigma_scale, low=0.0)
    r = check_clip_range(clip_sample_range)
    visited = resolve_timesteps(schedule, num_inference_steps, timestep_spacing, timesteps)
    options = FormulaOptions(
        prediction_type, bounded=r != np.inf, variance_type=variance_type, sigma_scale=sigma_scale
    )
    return formula_plan(
        "ddpm",
        ddpm_columns,
        schedule,
        visited,
        options,
        bound=r,
        final_alpha_cumprod=final_alpha_cumprod,
    )


def ddpm_columns(passed: Passed, options: FormulaOptions) -> Columns:
    """The formula of :func:`ddpm_plan`."""
    abar, abar_next = passed.abar, passed.abar_next
    p, q = prediction_columns(
        options.prediction_type, np.sqrt(abar), np.sqrt(1 - abar), bounded=options.bounded
    )
    alpha = abar / abar_next
    beta = 1 - alpha
    variance = beta * (1 - abar_next) / (1 - abar)
    columns: Columns = {
        "x0_from_x": p,
        "x0_from_m": q,
        "from_x0": np.sqrt(abar_next) * beta / (1 - abar),
        "from_x": np.sqrt(alpha) * (1 - abar_next) / (1 - abar),
    }
    if options.variance_type == "learned_range":
        columns["log_var_min"] = np.log(np.maximum(variance, 1e-20))
        columns["log_var_max"] = np.log(np.maximum(beta, 1e-20))
        sigma = np.where(passed.is_last, 0.0, 1.0)
    else:
        sigma = np.sqrt(variance if options.variance_type == "fixed_small" else beta)
    # The mean of the last step is the image.
    columns["from_noise"] = options.sigma_scale * np.where(passed.is_last, 0.0, sigma)
    return columns
