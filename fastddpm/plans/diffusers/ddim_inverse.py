"""diffusers' DDIMInverseScheduler as a plan: DDIM's steps the other way, as of `fastddpm.plans.inversion`.

Here in float32 and in its order, with the clip that it has unless told otherwise.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from fastddpm.checks import BadArgument
from fastddpm.inputs import Fields
from fastddpm.plans.diffusers.config import given_timesteps, looked_up, read_config, x0_columns
from fastddpm.plans.diffusers.ddim import DEFAULTS, eps_columns
from fastddpm.plans.plan import Plan, build_table
from fastddpm.plans.spacing import check_steps


class Inverse(Protocol):
    """What a DDIMInverseScheduler is to a plan."""

    config: Fields
    alphas_cumprod: torch.Tensor
    initial_alpha_cumprod: torch.Tensor | None


def from_ddim_inverse_scheduler(
    scheduler: Inverse, num_inference_steps: int, timesteps: npt.ArrayLike
) -> Plan:
    """The steps of a DDIMInverseScheduler to each of ``timesteps``, from T//S before it.

    Args:
        scheduler: what has its configuration and its two tables, on the CPU.
        num_inference_steps: S in 1 .. T.
        timesteps: those that have rows, descending: the scheduler's own the other way round.

    Raises:
        ValueError: a bad argument; a network that predicts x0, which says nothing of the noise in a clean
            image, and a step from there (the original divides by 0).
    """
    # The class has no thresholding; a configuration of another one that it was made from may.
    config = read_config({**scheduler.config, "thresholding": False}, DEFAULTS)
    total = config["num_train_timesteps"]
    check_steps(total, num_inference_steps)
    visited = given_timesteps(timesteps)
    alphas_cumprod, initial = scheduler.alphas_cumprod, scheduler.initial_alpha_cumprod
    assert initial is not None
    reached = looked_up(alphas_cumprod, visited, config)
    begins = torch.from_numpy(visited - total // num_inference_steps)
    abar = torch.where(begins >= 0, alphas_cumprod[begins.clamp(min=0)], initial)
    if config["prediction_type"] == "sample" and bool((abar == 1).any()):
        given = "'sample', and a step from the clean image, which divides by 0,"
        raise BadArgument("prediction_type", given, "epsilon or v_prediction")
    alpha, sigma = abar**0.5, (1 - abar) ** 0.5
    columns = x0_columns(config, alpha, sigma, clips=True)
    table = build_table(
        len(visited),
        **columns,
        **eps_columns(config["prediction_type"], alpha, sigma, rederived=False),
        from_x0=(reached**0.5).double(),
        from_m=((1 - reached) ** 0.5).double(),
    )
    return Plan(
        method="ddim",
        timesteps=visited,
        model_time=visited,
        table=table,
        prediction_type=config["prediction_type"],
        clip=columns["x0_bound"] != np.inf,
        wraps=True,
    )
