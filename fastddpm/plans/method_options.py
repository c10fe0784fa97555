"""The options of a `fastddpm.plans.Method` as keyword arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

from fastddpm.plans.formula import VarianceType
from fastddpm.plans.plan import PredictionType
from fastddpm.plans.spacing import Sigmas, Timesteps, TimestepSpacing
from fastddpm.plans.time_input import TimeInput

if TYPE_CHECKING:
    from fastddpm.plans.diffusers.config import SchedulerOrConfig

# Those of this package; `register_method` and `register_solver` of `fastddpm.plans` add others.
MethodName = Literal[
    "ddpm",
    "ddim",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "dpmpp_2s",
    "dpmpp_2s_sde",
    "dpm_solver",
    "deis",
    "unipc",
    "sa_solver",
    "pndm",
    "lms",
    "euler",
    "euler_ancestral",
    "heun",
    "dpm2",
    "dpm2_ancestral",
    "lcm",
    "tcd",
    "diffusers",
]


class StepOptions(TypedDict, total=False):
    """Of a `Method`, those that another library's sampler is given: the rest is as that library has it."""

    method: MethodName
    num_inference_steps: int | None
    timestep_spacing: TimestepSpacing
    eta: float


class MethodOptions(StepOptions, total=False):
    """The fields of `Method` as keyword arguments, of which any may be left out."""

    prediction_type: PredictionType
    variance_type: VarianceType
    sigma_scale: float
    clip_sample_range: float | None
    timesteps: Timesteps | None
    time_input: TimeInput
    solver_order: int | None
    lower_order_final: bool
    sigmas: Sigmas | None
    thresholding: bool
    dynamic_thresholding_ratio: float
    sample_max_value: float
    scheduler: SchedulerOrConfig | None
