"""Methods by name: the plan for the options of a sampler."""

from __future__ import annotations

from dataclasses import replace
from numbers import Real
from typing import Any

from fastddpm.checks import BadArgument, check_choice
from fastddpm.plans.ddim import ddim_plan
from fastddpm.plans.ddpm import VARIANCE_TYPES, ddpm_plan
from fastddpm.plans.dpmpp import dpmpp_2m_plan
from fastddpm.plans.plan import Plan
from fastddpm.schedule import NoiseSchedule

METHODS = ("ddpm", "ddim", "dpmpp_2m")
TIME_INPUTS = ("timestep", "noise_level")
COMMON = ("prediction_type", "clip_sample_range", "timestep_spacing", "timesteps")


def make_plan(
    schedule: NoiseSchedule,
    *,
    method: str,
    num_inference_steps: int | None = None,
    eta: float = 0.0,
    variance_type: str = "fixed_small",
    sigma_scale: float = 1.0,
    time_input: str = "timestep",
    **options: Any,
) -> Plan:
    """The plan for a method by name, from the sampler's options.

    "ddim" computes eps anew from the clipped x0 (`use_clipped_model_output` of `ddim_plan`), so that x0 and
    eps still make up x_t; without a clip it changes nothing. The pipelines of diffusers take the network's
    eps, and `fastddpm.plans.diffusers` keeps their form.

    Args:
        schedule: the T training timesteps.
        method: "ddpm", "ddim" or "dpmpp_2m".
        num_inference_steps: S in 1 .. T; None is T.
        eta: of ddim, in [0, 1]; 0 with another method.
        variance_type: "fixed_small", "fixed_large" or "learned_range". "fixed_large" belongs to ddpm;
            "learned_range" describes the network too, and other methods leave its second half unused.
        sigma_scale: of ddpm, >= 0; 1 with another method.
        time_input: what the network is told: "timestep" t, or "noise_level" sqrt(alphas_cumprod[t]) (SR3).
        **options: those in `COMMON` go to the method's plan; a sampler's others say nothing about it.

    Raises:
        ValueError: unknown method, a bad value, or an option that belongs to another method.
    """
    check_choice("method", method, METHODS)
    check_choice("variance_type", variance_type, VARIANCE_TYPES)
    check_choice("time_input", time_input, TIME_INPUTS)
    _check_owner("ddim", "eta", eta, 0, method)
    _check_owner("ddpm", "sigma_scale", sigma_scale, 1, method)
    common = {name: options[name] for name in COMMON if name in options}
    if method == "ddpm":
        plan = ddpm_plan(
            schedule, num_inference_steps, variance_type=variance_type, sigma_scale=sigma_scale, **common
        )
        return plan.with_noise_levels(schedule) if time_input == "noise_level" else plan
    if variance_type == "fixed_large":
        raise BadArgument(
            "variance_type",
            f"{variance_type!r}, which belongs to ddpm, with method {method!r}",
            "fixed_small or learned_range",
        )
    if method == "ddim":
        plan = ddim_plan(schedule, num_inference_steps, eta=eta, use_clipped_model_output=True, **common)
    else:
        plan = dpmpp_2m_plan(schedule, num_inference_steps, **common)
    plan = replace(plan, learned_range=variance_type == "learned_range")
    return plan.with_noise_levels(schedule) if time_input == "noise_level" else plan


def _check_owner(owner: str, name: str, value: Any, neutral: int, method: str) -> None:
    """ValueError where an option of one method is given, other than `neutral`, with another."""
    if method != owner and not (isinstance(value, Real) and value == neutral):
        raise BadArgument(name, f"{value!r}, which belongs to {owner}, with method {method!r}", str(neutral))
