"""Sampling methods as tables: pure functions from a noise schedule to a `Plan`.

One module per family; `fastddpm.plans.diffusers` repeats the arithmetic of diffusers' schedulers instead.
"""

from fastddpm.plans.ddim import ddim_plan
from fastddpm.plans.ddpm import ddpm_plan
from fastddpm.plans.dpmpp import dpmpp_2m_plan
from fastddpm.plans.method import Method, make_plan
from fastddpm.plans.plan import Plan
from fastddpm.plans.registry import METHODS, register_method, register_solver
from fastddpm.plans.spacing import spaced_timesteps

__all__ = [
    "METHODS",
    "Method",
    "Plan",
    "ddim_plan",
    "ddpm_plan",
    "dpmpp_2m_plan",
    "make_plan",
    "register_method",
    "register_solver",
    "spaced_timesteps",
]
