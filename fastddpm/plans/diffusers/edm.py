"""diffusers' EDM schedulers: networks preconditioned as in Karras et al. 2022, as rows.

Their state is u = x0 + sigma z, and x0 = c_skip u + c_out F(c_in u, log(sigma)/4), table 1 of the paper. With
r = sigma/sigma_data, alpha = 1/sqrt(1 + r^2) and x = c_in u that is, of y = x0/sigma_data,

    y = alpha x + r alpha F(x, log(sigma)/4)

so that such a network predicts v = -F of a variance preserving process, or v = F where diffusers' name for it
is "v_prediction". Its solvers are then those of the other classes, and x0 is y times sigma_data.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument
from fastddpm.inputs import Fields
from fastddpm.plans.diffusers import exponential
from fastddpm.plans.diffusers.chain import Chain
from fastddpm.plans.plan import Plan
from fastddpm.plans.tableau import Tableau
from fastddpm_kernels.table import FROM_KEPT, Column

PREDICTION_TYPES = ("epsilon", "v_prediction")
OF_M = [Column.X0_FROM_M, Column.FROM_M, Column.KEPT_FROM_M, Column.LINEAR_M]


def multistep(chain: Chain) -> Tableau:
    """EDMDPMSolverMultistepScheduler, which has DPM-Solver++ of order 1 to 3 and its SDE form of 1 and 2."""
    config = chain.config
    if str(config["algorithm_type"]).startswith("sde") and int(config["solver_order"]) > 2:
        raise BadArgument("solver_order", "3 with an SDE of EDM, which diffusers has not,", "1 or 2")
    return exponential.multistep(chain)


def counted(tableau: Tableau) -> npt.NDArray[np.float32]:
    """What each row's network is told. In its place the rows count: it is no timestep, since log(sigma)/4
    is below 0 for sigma < 1."""
    times = np.array([row.point.time for row in tableau.rows], dtype=np.float32)
    for number, row in enumerate(reversed(tableau.rows)):
        row.point = dataclasses.replace(row.point, time=float(number))
    return times


def of_x0(plan: Plan, config: Fields, times: npt.NDArray[np.float32]) -> Plan:
    """The plan of rows of y that predict v, for a network F that is told these times, and with x0 for y."""
    data = float(config["sigma_data"])
    table = plan.table.astype(np.float64)
    if config["prediction_type"] == "epsilon":
        table[:, OF_M] *= -1
    table[:, [Column.X0_FROM_X, Column.X0_FROM_M]] *= data
    table[:, [Column.FROM_X0, Column.KEPT_FROM_X0]] /= data
    if not plan.combines:  # what is kept is x0
        table[:, FROM_KEPT] /= data
    return dataclasses.replace(plan, table=table.astype(np.float32), model_time=times)
