"""DDIM: non-Markovian sampling with adjustable noise (Song et al. 2021)."""

from __future__ import annotations

import functools

import numpy as np

from fastddpm.checks import check_choice, check_number
from fastddpm.plans.formula import (
    Columns,
    FormulaOptions,
    Passed,
    epsilon_columns,
    formula_plan,
    prediction_columns,
)
from fastddpm.plans.plan import PREDICTION_TYPES, Plan, PredictionType, check_clip_range
from fastddpm.plans.spacing import Timesteps, TimestepSpacing, resolve_timesteps
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked


@checked
def ddim_plan(
    schedule: NoiseSchedule,
    num_inference_steps: int | None = None,
    *,
    eta: float = 0.0,
    prediction_type: PredictionType = "epsilon",
    clip_sample_range: float | None = None,
    timestep_spacing: TimestepSpacing = "leading",
    timesteps: Timesteps | None = None,
    use_clipped_model_output: bool = False,
    final_alpha_cumprod: float = 1.0,
) -> Plan:
    """DDIM (Song et al. 2021, equations 12 and 16) between consecutive timesteps t -> s of the plan.

        sigma = eta sqrt((1 - abar_s)/(1 - abar_t)) sqrt(1 - abar_t/abar_s)
        x_s   = sqrt(abar_s) x0 + sqrt(1 - abar_s - sigma^2) eps + sigma z

    eta = 0 is deterministic, eta = 1 has the variance of DDPM's "fixed_small". The last step adds no noise.

    Args:
        schedule: the T training timesteps.
        num_inference_steps: S in 1 .. T; None is T.
        eta: amount of noise, in [0, 1].
        prediction_type: "epsilon", "sample" or "v_prediction".
        clip_sample_range: bound of |x0|, above 0, or None for no clip.
        timestep_spacing: "leading", "linspace" or "trailing"; see `spaced_timesteps`.
        timesteps: the timesteps themselves instead, strictly descending.
        use_clipped_model_output: compute eps anew from x_t and the clipped x0 (guided-diffusion,
            denoising-diffusion-pytorch), instead of taking the network's (diffusers' default). The same
            without a clip.
        final_alpha_cumprod: abar after the last step, between that of the last timestep and 1.

    Raises:
        ValueError: an argument is not as above, or x0 would be infinite (epsilon, no clip, abar = 0).
    """
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    check_number("eta", eta, low=0.0, high=1.0)
    r = check_clip_range(clip_sample_range)
    visited = resolve_timesteps(schedule, num_inference_steps, timestep_spacing, timesteps)
    return formula_plan(
        "ddim",
        functools.partial(ddim_columns, rederived=use_clipped_model_output),
        schedule,
        visited,
        FormulaOptions(prediction_type, bounded=r != np.inf, eta=eta),
        bound=r,
        final_alpha_cumprod=final_alpha_cumprod,
    )


def ddim_columns(passed: Passed, options: FormulaOptions, *, rederived: bool = True) -> Columns:
    """The formula of :func:`ddim_plan`, with its ``use_clipped_model_output`` unless told otherwise.

    So x0 and eps still make up x_t; without a clip it changes nothing. The pipelines of diffusers take the
    network's eps, and `fastddpm.plans.diffusers` keeps their form.
    """
    abar, abar_next = passed.abar, passed.abar_next
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    p, q = prediction_columns(options.prediction_type, alpha, sigma, bounded=options.bounded)
    variance = options.eta**2 * (1 - abar_next) / (1 - abar) * (1 - abar / abar_next)
    # The last step adds no noise, also where abar ends below 1.
    variance = np.where(passed.is_last, 0.0, variance)
    # eta = 1 over a step to zero SNR leaves exactly 0 here, and rounding may leave less.
    direction = np.sqrt(np.maximum(1 - abar_next - variance, 0.0))
    from_x0, from_x, from_m = epsilon_columns(options.prediction_type, alpha, sigma, rederived=rederived)
    return {
        "x0_from_x": p,
        "x0_from_m": q,
        "from_x0": np.sqrt(abar_next) + direction * from_x0,
        "from_x": direction * from_x,
        "from_m": direction * from_m,
        "from_noise": np.sqrt(variance),
    }
