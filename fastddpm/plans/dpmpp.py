"""DPM-Solver++(2M): a second-order multistep solver of the probability-flow ODE (Lu et al. 2022b)."""

from __future__ import annotations

import functools

import numpy as np

from fastddpm.checks import BadArgument, check_choice
from fastddpm.plans.formula import (
    Bool,
    Columns,
    FormulaOptions,
    Passed,
    formula_plan,
    prediction_columns,
)
from fastddpm.plans.plan import PREDICTION_TYPES, Float64, Plan, PredictionType, check_clip_range
from fastddpm.plans.solver import FEW_STEPS
from fastddpm.plans.spacing import Timesteps, TimestepSpacing, resolve_timesteps
from fastddpm.schedule import NoiseSchedule
from fastddpm.signatures import checked

SMALLEST_ALPHA_CUMPROD = 2.0**-24
"""Stands for alphas_cumprod = 0, whose log SNR is -infinity; diffusers uses the same number."""


@checked
def dpmpp_2m_plan(
    schedule: NoiseSchedule,
    num_inference_steps: int | None = None,
    *,
    prediction_type: PredictionType = "epsilon",
    clip_sample_range: float | None = None,
    timestep_spacing: TimestepSpacing = "leading",
    timesteps: Timesteps | None = None,
    lower_order_final: bool = True,
    final_alpha_cumprod: float = 1.0,
) -> Plan:
    """DPM-Solver++(2M), midpoint form (Lu et al. 2022b, algorithm 2), in time lambda = log(alpha/sigma).

    With alpha = sqrt(abar), sigma = sqrt(1 - abar), a step s -> t of length h = lambda_t - lambda_s, and the
    step before it of length h_prev, r = h_prev / h:

        D   = (1 + 1/(2r)) x0 - 1/(2r) x0_prev        (first order: D = x0)
        x_t = sigma_t/sigma_s x_s + alpha_t (1 - e^-h) D

    The first step is first order, and so is the last one onto the clean image (its h is infinite) or, with
    `lower_order_final`, of fewer than 15. leading and linspace leave out timestep 0, from where nothing is
    gained before the clean image; see `spaced_timesteps`. alphas_cumprod = 0 is taken as 2**-24.

    Args:
        schedule: the T training timesteps.
        num_inference_steps: S in 1 .. T; None is T.
        prediction_type: "epsilon", "sample" or "v_prediction".
        clip_sample_range: bound of |x0|, above 0, or None for no clip.
        timestep_spacing: "leading", "linspace" or "trailing".
        timesteps: the timesteps themselves instead, strictly descending.
        lower_order_final: make the last of fewer than 15 steps first order even if it ends above zero noise.
        final_alpha_cumprod: abar after the last step, above that of the last timestep and at most 1.

    Raises:
        ValueError: an argument is not as above.
    """
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    r = check_clip_range(clip_sample_range)
    visited = resolve_timesteps(schedule, num_inference_steps, timestep_spacing, timesteps, skip_last=True)
    last = float(schedule.alphas_cumprod[visited[-1]])
    if final_alpha_cumprod == last:
        raise BadArgument(
            "final_alpha_cumprod", repr(final_alpha_cumprod), f"above {last}, that of the last timestep"
        )
    ends_in_first_order = final_alpha_cumprod == 1 or (lower_order_final and len(visited) < FEW_STEPS)
    return formula_plan(
        "dpmpp_2m",
        functools.partial(dpmpp_2m_columns, ends_in_first_order=ends_in_first_order),
        schedule,
        visited,
        FormulaOptions(prediction_type, bounded=r != np.inf),
        bound=r,
        final_alpha_cumprod=final_alpha_cumprod,
    )


def dpmpp_2m_columns(passed: Passed, options: FormulaOptions, *, ends_in_first_order: bool = True) -> Columns:
    """The formula of :func:`dpmpp_2m_plan`; a chain that ends on the clean image ends in first order."""
    abar = np.where(passed.abar == 0, SMALLEST_ALPHA_CUMPROD, passed.abar)
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    alpha_next, sigma_next = np.sqrt(passed.abar_next), np.sqrt(1 - passed.abar_next)
    # An infinite h is right for the step onto the clean image; where it is not, the Plan refuses the row.
    h = np.log(alpha_next / sigma_next) - np.log(alpha / sigma)
    k = -alpha_next * np.expm1(-h)
    first_order = passed.is_first | passed.is_last if ends_in_first_order else passed.is_first
    weight = second_order_weight(h, first_order)
    p, q = prediction_columns(options.prediction_type, alpha, sigma, bounded=options.bounded)
    return {
        "x0_from_x": p,
        "x0_from_m": q,
        "from_x0": k * (1 + weight),
        "from_x": sigma_next / sigma,
        "from_kept_1": 0.0 - k * weight,
    }


def second_order_weight(h: Float64, first_order: Bool) -> Float64:
    """1/(2r) = h / (2 h_prev) for each step, 0 where the step is first order; [S]."""
    h_prev = np.concatenate((np.ones(1), h[:-1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(first_order, 0.0, h / (2 * h_prev))
