"""diffusers' EDM schedulers: networks preconditioned as in Karras et al. 2022, as rows.

Their state is u = x0 + sigma z, and x0 = c_skip u + c_out F(c_in u, log(sigma)/4), table 1 of the paper. With
r = sigma/sigma_data, alpha = 1/sqrt(1 + r^2) and x = c_in u that is, of y = x0/sigma_data,

    y = alpha x + r alpha F(x, log(sigma)/4)

so that such a network predicts v = -F of a variance preserving process, or v = F where diffusers' name for it
is "v_prediction". Its solvers are then those of the other classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastddpm.checks import BadArgument, check_choice
from fastddpm.plans.diffusers import exponential, karras
from fastddpm.plans.diffusers.chain import Chain, at_ratio, with_timesteps
from fastddpm.plans.diffusers.config import SchedulerOrConfig
from fastddpm.plans.plan import Plan
from fastddpm_kernels.table import Column

EDM = {
    "EDMEulerScheduler": ("euler", karras.euler),
    "EDMDPMSolverMultistepScheduler": ("dpm_solver", exponential.multistep),
}
OF_M = [Column.X0_FROM_M, Column.FROM_M, Column.KEPT_FROM_M, Column.LINEAR_M]


def from_edm_scheduler(scheduler: SchedulerOrConfig, num_inference_steps: int) -> Plan:
    """The steps of an EDM scheduler after `set_timesteps(num_inference_steps)`, without churn.

    `fastddpm.Sampler.from_plan` walks it with the network F itself: a chain begins at noise of variance 1,
    which is c_in u, F is told log(sigma)/4 as float32, and the last state is x0. The schedule that it is
    given is not read.

    Args:
        scheduler: EDMEulerScheduler or EDMDPMSolverMultistepScheduler, which is not changed; or its
            configuration, for which diffusers is imported.
        num_inference_steps: S, 1 or more.

    Raises:
        ValueError: another scheduler, thresholding, or what diffusers says of the steps.
    """
    name = scheduler.get("_class_name") if isinstance(scheduler, Mapping) else type(scheduler).__name__
    check_choice("scheduler", name, tuple(EDM))
    ready: Any = with_timesteps(scheduler, num_inference_steps)
    config = ready.config
    if config.get("thresholding"):
        raise BadArgument("thresholding", "True with an EDM scheduler", "False")
    method, rows = EDM[str(name)]
    data = float(config["sigma_data"])
    times = [*ready.timesteps.double().tolist(), math.nan]
    points = [
        at_ratio(sigma / data, time=time)
        for sigma, time in zip(ready.sigmas.double().tolist(), times, strict=True)
    ]
    tableau = rows(Chain(config, ready, points))
    prediction = config["prediction_type"]
    check_choice("prediction_type", prediction, ("epsilon", "v_prediction"))
    # Timesteps count the rows, since these times are no timesteps: log(sigma)/4 is below 0 for sigma < 1.
    steps = len(tableau.rows)
    for number, row in enumerate(tableau.rows):
        row.point = dataclasses.replace(row.point, time=float(steps - 1 - number))
    plan = tableau.plan(method, "v_prediction", math.inf)
    table = plan.table.copy()
    if prediction == "epsilon":
        table[:, OF_M] *= -1
    end = points[-1].alpha  # of x; x0 + sigma z, which EDM's state is, is sigma_data x/alpha
    scaled = dataclasses.replace(plan, table=table).scaled(np.append(np.ones(steps), data / end))
    draws = np.full(steps, str(config.get("algorithm_type")).startswith("sde"))
    return dataclasses.replace(
        scaled,
        model_time=np.array(times[:-1], dtype=np.float32),
        alphas_cumprod=np.array([point.alpha**2 for point in points[:-1]]),
        final_alpha_cumprod=end**2,
        draws=draws,
    )
