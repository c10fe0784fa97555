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
from fastddpm.schedule import NoiseSchedule

T = TypeVar("T")
_BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")


def noise_schedule(scheduler: Fields) -> NoiseSchedule:
    """The schedule of a scheduler's configuration.

    Raises:
        CheckpointError: naming a field that is wrong.
    """
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
