"""The noise schedule of a scheduler's configuration, checked before it is made.

Source: diffusers 0.42.1, schedulers/. diffusers is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np

from fastddpm.betas import MAX_STEPS
from fastddpm.checks import BadArgument, check_choice, check_number, is_number, shortened, whole
from fastddpm.formats.files import CheckpointError
from fastddpm.inputs import Fields, Json
from fastddpm.plans.diffusers.config import COMMON_DEFAULTS, SchedulerConfig, float32_betas, read_config
from fastddpm.plans.scheduler import PRECONDITIONED
from fastddpm.schedule import NoiseSchedule

T = TypeVar("T")
_SIGMAS: Json = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "rho": 7.0,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
}
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")


def noise_schedule(scheduler: Fields) -> NoiseSchedule:
    """The schedule of a scheduler's configuration.

    Raises:
        CheckpointError: naming a field that is wrong.
    """
    if scheduler.get("_class_name") in PRECONDITIONED:
        return told(_schedule_of_sigmas, read_config(scheduler, _SIGMAS))
    config = read_config(scheduler, COMMON_DEFAULTS)
    told(_check_betas, config)
    name, steps = config["beta_schedule"], config["num_train_timesteps"]
    ends = (config["beta_start"], config["beta_end"])
    if config["trained_betas"] is None and name in ("linear", "scaled_linear"):
        schedule: NoiseSchedule = getattr(NoiseSchedule, name)(steps, *ends)
    elif config["trained_betas"] is None and name == "squaredcos_cap_v2":
        schedule = NoiseSchedule.cosine(steps)
    else:
        schedule = told(_schedule_of_betas, config)
    return schedule.rescaled_zero_terminal_snr() if config["rescale_betas_zero_snr"] else schedule


def _schedule_of_betas(config: SchedulerConfig) -> NoiseSchedule:
    return NoiseSchedule.from_betas(float32_betas(config, _BETAS).numpy().astype(np.float64))


def _schedule_of_sigmas(config: SchedulerConfig) -> NoiseSchedule:
    """The levels of Karras et al. 2022 for a preconditioned network, as many as it has timesteps.

    Its plans read none of them; they are where its images have how much noise.
    """
    fields = cast("Json", config)
    count = whole("num_train_timesteps", fields["num_train_timesteps"], least=2, most=MAX_STEPS)
    low, data, rho = (
        check_number(name, fields[name], above=0) for name in ("sigma_min", "sigma_data", "rho")
    )
    high = check_number("sigma_max", fields["sigma_max"], above=low)
    check_choice("sigma_schedule", fields["sigma_schedule"], ("karras", "exponential"))
    if fields["sigma_schedule"] == "exponential":
        sigmas = np.exp(np.linspace(np.log(low), np.log(high), count))
    else:
        sigmas = np.linspace(low ** (1 / rho), high ** (1 / rho), count) ** rho
    abar = 1 / (1 + (sigmas / data) ** 2)
    return NoiseSchedule.from_betas(1 - abar / np.append(1.0, abar[:-1]))


def told(check: Callable[[SchedulerConfig], T], config: SchedulerConfig) -> T:
    """What a check gives, its error told as one of the scheduler's, on one line."""
    try:
        return check(config)
    except BadArgument as error:
        given = f"{error.argument}: {shortened(error.given)} given, {error.accepted} accepted"
        raise CheckpointError(f"scheduler: {given}") from error


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise BadArgument(name, repr(value), "true or false")


def _check_betas(config: SchedulerConfig) -> None:
    """BadArgument for a field of the betas that is wrong, before any is made."""
    count = whole("num_train_timesteps", config["num_train_timesteps"], least=1, most=MAX_STEPS)
    check_bool("rescale_betas_zero_snr", config["rescale_betas_zero_snr"])
    trained: object = config["trained_betas"]
    if trained is not None:
        trained = trained.tolist() if hasattr(trained, "tolist") else trained
        if not isinstance(trained, (list, tuple)) or not all(is_number(beta) for beta in trained):
            raise BadArgument("trained_betas", repr(trained), "None or a list of numbers")
        if len(trained) != count:
            raise BadArgument("trained_betas", f"{len(trained)} numbers", f"{count} of them")
        return
    check_choice("beta_schedule", config["beta_schedule"], _BETAS)
    for name in ("beta_start", "beta_end"):
        check_number(name, cast("Json", config)[name], above=0, high=1)
