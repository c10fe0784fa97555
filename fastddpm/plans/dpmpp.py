"""DPM-Solver++(2M): a second-order multistep solver of the probability-flow ODE (Lu et al. 2022b)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument, check_choice
from fastddpm.plans.ddpm import consecutive_alphas_cumprod
from fastddpm.plans.plan import (
    PREDICTION_TYPES,
    Float64,
    Plan,
    PredictionType,
    build_table,
    check_clip_range,
    prediction_columns,
)
from fastddpm.plans.spacing import Timesteps, TimestepSpacing, resolve_timesteps
from fastddpm.schedule import NoiseSchedule

SMALLEST_ALPHA_CUMPROD = 2.0**-24
"""Stands for alphas_cumprod = 0, whose log SNR is -infinity; diffusers uses the same number."""

FEW_STEPS = 15
"""Below this many steps `lower_order_final` makes the last step first order, as in the authors' code."""


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
    abar, abar_next = consecutive_alphas_cumprod(schedule, visited, final_alpha_cumprod)
    if final_alpha_cumprod == abar[-1]:
        raise BadArgument(
            "final_alpha_cumprod", repr(final_alpha_cumprod), f"above {abar[-1]}, that of the last timestep"
        )
    abar = np.where(abar == 0, SMALLEST_ALPHA_CUMPROD, abar)

    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    alpha_next, sigma_next = np.sqrt(abar_next), np.sqrt(1 - abar_next)
    # An infinite h is right for the step onto the clean image; where it is not, the Plan refuses the row.
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.log(alpha_next / sigma_next) - np.log(alpha / sigma)
        k = -alpha_next * np.expm1(-h)
    first_order = np.zeros(len(visited), dtype=bool)
    first_order[0] = True
    first_order[-1] |= final_alpha_cumprod == 1 or (lower_order_final and len(visited) < FEW_STEPS)
    weight = second_order_weight(h, first_order)

    p, q = prediction_columns(prediction_type, alpha, sigma, bounded=r != np.inf)
    table = build_table(
        len(visited),
        x0_from_x=p,
        x0_from_m=q,
        x0_bound=r,
        from_x0=k * (1 + weight),
        from_x=sigma_next / sigma,
        from_x0_prev=0.0 - k * weight,
    )
    return Plan(
        method="dpmpp_2m",
        timesteps=visited,
        model_time=visited,
        table=table,
        prediction_type=prediction_type,
        clip=r != np.inf,
        multistep=bool(np.any(weight != 0)),
    )


def second_order_weight(h: Float64, first_order: npt.NDArray[np.bool_]) -> Float64:
    """1/(2r) = h / (2 h_prev) for each step, 0 where the step is first order; [S]."""
    weight = np.zeros_like(h)
    steps = np.flatnonzero(~first_order)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight[steps] = h[steps] / (2 * h[steps - 1])
    return weight
