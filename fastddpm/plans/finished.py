"""Plans for a model that finishes each step's mean itself, because no row can express it."""

from __future__ import annotations

import numpy as np

from fastddpm.plans.plan import Plan, build_table
from fastddpm_kernels.table import Column


def finished_plan(plan: Plan) -> Plan:
    """The plan's noise alone, for a model that returns the rest.

        x_next = m + c*z

    The model is told its plan row, int64, instead of a timestep; with a learned variance it returns the
    network's second half behind the mean, as 2C channels.
    """
    noise = {
        name: plan.table[:, Column[name.upper()]] for name in ("from_noise", "log_var_min", "log_var_max")
    }
    return Plan(
        method=plan.method,
        timesteps=plan.timesteps,
        model_time=np.arange(len(plan), dtype=np.int64),
        table=build_table(len(plan), x0_from_m=1.0, from_x0=1.0, **noise),
        prediction_type="sample",
        clip=False,
        learned_range=plan.learned_range,
        draws=plan.draws,
    )
