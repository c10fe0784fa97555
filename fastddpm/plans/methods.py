"""Methods by name: the plan for the options of a sampler."""

from __future__ import annotations

from typing import Any

from fastddpm.plans.ddim import ddim_plan
from fastddpm.plans.ddpm import ddpm_plan
from fastddpm.plans.dpmpp import dpmpp_2m_plan
from fastddpm.plans.plan import Plan
from fastddpm.schedule import NoiseSchedule

METHODS = ("ddpm", "ddim", "dpmpp_2m")


def make_plan(schedule: NoiseSchedule, *, method: str, **options: Any) -> Plan:
    """The plan for a method by name, from the sampler's options.

    Raises:
        ValueError: unknown method, or an option that belongs to another method.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r} given, one of {', '.join(METHODS)} accepted")
    common = {
        name: options[name]
        for name in ("prediction_type", "clip_sample_range", "timestep_spacing", "timesteps")
        if name in options
    }
    steps, eta = options.get("num_inference_steps"), options.get("eta", 0.0)
    if method == "ddim":
        return ddim_plan(schedule, steps, eta=eta, **common)
    if not (isinstance(eta, (int, float)) and eta == 0):
        raise ValueError(f"eta: {eta!r} given with method {method!r}; eta belongs to ddim, 0 accepted here")
    if method == "ddpm":
        variance_type, sigma_scale = (
            options.get("variance_type", "fixed_small"),
            options.get("sigma_scale", 1.0),
        )
        return ddpm_plan(schedule, steps, variance_type=variance_type, sigma_scale=sigma_scale, **common)
    return dpmpp_2m_plan(schedule, steps, **common)
