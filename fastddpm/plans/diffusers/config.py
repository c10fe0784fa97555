"""What the three schedulers of diffusers share: configuration, float32 alphas_cumprod, timestep spacing.

Source: diffusers 0.42.1, scheduling_ddpm.py, scheduling_ddim.py, scheduling_dpmsolver_multistep.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, TypeAlias, TypedDict, cast

import numpy as np
import numpy.typing as npt
import torch

from fastddpm.checks import BadArgument, check_choice
from fastddpm.inputs import Fields, Json
from fastddpm.plans.formula import LARGEST_RECIPROCAL, check_recoverable, prediction_columns
from fastddpm.plans.plan import PREDICTION_TYPES, Float64, PredictionType, check_clip_range
from fastddpm.plans.spacing import SPACINGS, Int64


class Scheduler(Protocol):
    """A scheduler of diffusers, or what stands for one."""

    @property
    def config(self) -> Fields: ...


SchedulerOrConfig: TypeAlias = Fields | Scheduler
"""A scheduler object, or its configuration alone."""


class SchedulerConfig(TypedDict, total=False):
    """The fields of the three schedulers' configurations that are read; each has its own among them."""

    _class_name: str
    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: npt.ArrayLike | None
    prediction_type: PredictionType
    thresholding: bool
    dynamic_thresholding_ratio: float
    sample_max_value: float
    steps_offset: int
    rescale_betas_zero_snr: bool
    timestep_spacing: str
    clip_sample: bool
    clip_sample_range: float
    variance_type: str | None
    set_alpha_to_one: bool
    solver_order: int
    algorithm_type: str
    solver_type: str
    lower_order_final: bool
    euler_at_final: bool
    final_sigmas_type: str
    lambda_min_clipped: float


COMMON_DEFAULTS: Json = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}


def read_config(scheduler: SchedulerOrConfig, defaults: Fields | None = None) -> SchedulerConfig:
    """The configuration of a scheduler object, or a copy of the mapping, with `defaults` for missing keys."""
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise BadArgument("scheduler", repr(scheduler), "a diffusers scheduler or its configuration")
    return cast("SchedulerConfig", {**(defaults or {}), **config})


def float32_betas(config: SchedulerConfig, accepted: tuple[str, ...]) -> torch.Tensor:
    """betas as the schedulers' constructors make them: float32 [T]; `accepted` are the class's schedules."""
    start, end, total = config["beta_start"], config["beta_end"], config["num_train_timesteps"]
    schedule = config["beta_schedule"]
    if config["trained_betas"] is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
        if betas.shape != (total,):
            raise BadArgument("trained_betas", f"shape {tuple(betas.shape)}", f"{total} numbers")
        return betas
    check_choice("beta_schedule", schedule, accepted)
    if schedule == "linear":
        return torch.linspace(start, end, total, dtype=torch.float32)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, total, dtype=torch.float32) ** 2
    if schedule == "sigmoid":
        points = torch.linspace(-6, 6, total, dtype=torch.float32)
        squashed: torch.Tensor = torch.sigmoid(points) * (end - start) + start
        return squashed
    alpha_bar = _laplace_alpha_bar if schedule == "laplace" else _cosine_alpha_bar
    steps = [min(1 - alpha_bar((i + 1) / total) / alpha_bar(i / total), 0.999) for i in range(total)]
    return torch.tensor(steps, dtype=torch.float32)


def float32_alphas_cumprod(config: SchedulerConfig, accepted: tuple[str, ...]) -> torch.Tensor:
    """alphas_cumprod, float32 [T], rescaled to zero terminal SNR where the configuration says so."""
    betas = float32_betas(config, accepted)
    if config["rescale_betas_zero_snr"]:
        root = torch.cumprod(1.0 - betas, dim=0).sqrt()
        first, last = root[0].clone(), root[-1].clone()
        root -= last
        root *= first / (first - last)
        abar = root**2
        betas = 1 - torch.cat([abar[0:1], abar[1:] / abar[:-1]])
    return torch.cumprod(1.0 - betas, dim=0)


def stored_alphas_cumprod(
    scheduler: SchedulerOrConfig, config: SchedulerConfig, accepted: tuple[str, ...]
) -> torch.Tensor:
    """The alphas_cumprod that a scheduler object holds, on the CPU; made from the configuration of a mapping.

    Training scripts put other values there, and trained_betas may be longer than num_train_timesteps.
    """
    held = None if isinstance(scheduler, Mapping) else getattr(scheduler, "alphas_cumprod", None)
    return float32_alphas_cumprod(config, accepted) if held is None else held.detach().cpu()


def ancestral_timesteps(config: SchedulerConfig, num_inference_steps: int) -> Int64:
    """The timesteps that DDPMScheduler and DDIMScheduler visit, before `looked_up` has checked them."""
    total, steps, spacing = config["num_train_timesteps"], num_inference_steps, config["timestep_spacing"]
    check_choice("timestep_spacing", spacing, SPACINGS)
    if spacing == "linspace":
        values = np.linspace(0, total - 1, steps).round()[::-1]
    elif spacing == "leading":
        values = (np.arange(0, steps) * (total // steps)).round()[::-1] + config["steps_offset"]
    else:
        values = np.round(np.arange(total, 0, -total / steps)) - 1
    visited: Int64 = values.astype(np.int64)
    return visited


def given_timesteps(timesteps: npt.ArrayLike) -> Int64:
    """Timesteps that a caller gave, as int64; whether they descend is for `looked_up` to say."""
    values = np.asarray(timesteps)
    if values.ndim != 1 or len(values) == 0 or values.dtype.kind not in "iu":
        raise BadArgument("timesteps", repr(timesteps), "strictly descending integers")
    return values.astype(np.int64)


def looked_up(alphas_cumprod: torch.Tensor, visited: Int64, config: SchedulerConfig) -> torch.Tensor:
    """alphas_cumprod at the timesteps visited, [S].

    The last may be -1: the "trailing" spacing ends there for some S (61 of 1000), with an (S+1)-th step from
    alphas_cumprod[-1] to 1.

    Raises:
        ValueError: timesteps that are not strictly descending, or that the schedule does not have; diffusers
            raises an IndexError in the middle of the chain there.
    """
    last = len(alphas_cumprod) - 1
    if np.any(np.diff(visited) >= 0) or visited[-1] < -1 or visited[0] > last:
        raise BadArgument(
            "timesteps",
            f"{visited.tolist()} (timestep_spacing={config['timestep_spacing']!r}, "
            f"steps_offset={config['steps_offset']})",
            f"strictly descending integers in [-1, {last}]",
        )
    return alphas_cumprod[torch.from_numpy(visited)]


def x0_columns(
    config: SchedulerConfig, alpha: torch.Tensor, sigma: torch.Tensor, *, clips: bool
) -> dict[str, Float64 | float]:
    """p, q, r and d for x = alpha*x0 + sigma*eps with float32 alpha and sigma, [S].

    As in diffusers, x0 = (x - sigma*eps)/alpha divides. An x0 that is not divided and not bounded has the
    divisor 1: it would be multiplied out of the row otherwise, which rounds in another way.

    `clips`: the class has clip_sample. Thresholding comes first, and then nothing is clipped.
    """
    prediction_type = config["prediction_type"]
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    thresholds = bool(config["thresholding"])
    r = math.inf
    if clips and config["clip_sample"] and not thresholds:
        r = check_clip_range(config["clip_sample_range"])
    bounded = thresholds or r != math.inf
    alphas, sigmas = alpha.double().numpy(), sigma.double().numpy()
    p, q = prediction_columns(prediction_type, alphas, sigmas, bounded=bounded)
    check_recoverable(p)
    if prediction_type == "epsilon":
        # alpha = 0 comes here only where x0 is bounded.
        return {
            "x0_from_x": 1.0,
            "x0_from_m": -sigmas,
            "x0_bound": r,
            "x0_divisor": np.maximum(alphas, 1 / LARGEST_RECIPROCAL),
        }
    return {"x0_from_x": p, "x0_from_m": q, "x0_bound": r, "x0_divisor": 0.0 if bounded else 1.0}


def thresholding_of(config: SchedulerConfig) -> tuple[float, float] | None:
    """(ratio, largest bound) of the configuration's dynamic thresholding, or None."""
    if not config["thresholding"]:
        return None
    return float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"])


def _cosine_alpha_bar(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace_alpha_bar(t: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))
