"""diffusers' solvers, by the names of their classes: which rows, which draws, which space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastddpm.plans.diffusers import edm, exponential, karras, looked_up
from fastddpm.plans.diffusers.chain import Chain
from fastddpm.plans.diffusers.sasolver import sasolver
from fastddpm.plans.diffusers.unipc import unipc
from fastddpm.plans.plan import PREDICTION_TYPES, Plan
from fastddpm.plans.tableau import Tableau


def _where_noise_is(chain: Chain, plan: Plan) -> npt.NDArray[np.bool_]:
    return np.asarray(plan.draws)


@dataclass(frozen=True)
class Solver:
    """A class of diffusers.

    Attributes:
        method: what its plans are called, a name of `fastddpm.plans.METHODS` where that has the solver.
        rows: its steps.
        reads: the tensor that its noise levels come from.
        draws: rows at which it draws noise, bool [S]; also such as it then multiplies by 0.
        in_sigmas: its state is x/alpha, and the network's input is scaled back.
        eta: that its step takes unless told otherwise; None where it takes none.
        clips: whether ``clip_sample`` bounds x0.
        thresholds: whether ``thresholding`` does.
        predictions: what its network may predict; of another the class raises in its first step.
        splits: whether it cuts learned variances off, which it does of epsilon alone.
        is_preconditioned: whether its networks are those of Karras et al. 2022 (`edm`).
        rises: whether its steps go to higher levels.
    """

    method: str
    rows: Callable[[Chain], Tableau]
    reads: str = "sigmas"
    draws: Callable[[Chain, Plan], npt.NDArray[np.bool_]] = _where_noise_is
    in_sigmas: bool = False
    eta: float | None = None
    clips: bool = False
    thresholds: bool = False
    predictions: tuple[str, ...] = PREDICTION_TYPES
    splits: bool = False
    is_preconditioned: bool = False
    rises: bool = False


def _always(chain: Chain, plan: Plan) -> npt.NDArray[np.bool_]:
    return np.ones(len(plan), dtype=bool)


def _if_random(chain: Chain, plan: Plan) -> npt.NDArray[np.bool_]:
    return np.full(len(plan), str(chain.config["algorithm_type"]).startswith("sde"))


def _all_but_last(chain: Chain, plan: Plan) -> npt.NDArray[np.bool_]:
    """Also where the next timestep is at the level reached: TCD draws there, times 0."""
    is_random = chain.eta is None or chain.eta > 0
    return np.array([is_random and row + 1 < chain.steps for row in chain.rows], dtype=bool)


def _second_rows(chain: Chain, plan: Plan) -> npt.NDArray[np.bool_]:
    return ~np.asarray(plan.starts)


_NO_SAMPLE = ("epsilon", "v_prediction")

SOLVERS: dict[str, Solver] = {
    "PNDMScheduler": Solver("pndm", looked_up.pndm, reads="alphas_cumprod", predictions=_NO_SAMPLE),
    "LCMScheduler": Solver(
        "lcm", looked_up.lcm, reads="alphas_cumprod", draws=_all_but_last, clips=True, thresholds=True
    ),
    "TCDScheduler": Solver("tcd", looked_up.tcd, reads="alphas_cumprod", draws=_all_but_last, eta=0.3),
    "DPMSolverMultistepScheduler": Solver(
        "dpm_solver", exponential.multistep, draws=_if_random, thresholds=True, splits=True
    ),
    "DPMSolverSinglestepScheduler": Solver(
        "dpm_solver", exponential.singlestep, draws=_if_random, thresholds=True, splits=True
    ),
    "DEISMultistepScheduler": Solver("deis", exponential.deis, thresholds=True),
    "UniPCMultistepScheduler": Solver("unipc", unipc, thresholds=True),
    "SASolverScheduler": Solver("sa_solver", sasolver, draws=_always, thresholds=True),
    "EulerDiscreteScheduler": Solver("euler", karras.euler, in_sigmas=True),
    "EulerAncestralDiscreteScheduler": Solver(
        "euler_ancestral",
        karras.euler_ancestral,
        draws=_always,
        in_sigmas=True,
        predictions=_NO_SAMPLE,
    ),
    "HeunDiscreteScheduler": Solver("heun", karras.heun, in_sigmas=True, clips=True),
    "LMSDiscreteScheduler": Solver("lms", karras.lms, in_sigmas=True),
    "KDPM2DiscreteScheduler": Solver("dpm2", karras.kdpm2, in_sigmas=True, predictions=_NO_SAMPLE),
    "KDPM2AncestralDiscreteScheduler": Solver(
        "dpm2_ancestral",
        karras.kdpm2_ancestral,
        draws=_second_rows,
        in_sigmas=True,
        predictions=_NO_SAMPLE,
    ),
    "EDMEulerScheduler": Solver(
        "euler", karras.euler, in_sigmas=True, predictions=edm.PREDICTION_TYPES, is_preconditioned=True
    ),
    "EDMDPMSolverMultistepScheduler": Solver(
        "dpm_solver",
        edm.multistep,
        draws=_if_random,
        in_sigmas=True,
        thresholds=True,
        predictions=edm.PREDICTION_TYPES,
        is_preconditioned=True,
    ),
}

STEPPED = {
    **SOLVERS,
    "DPMSolverMultistepInverseScheduler": Solver(
        "dpm_solver", exponential.multistep_inverse, thresholds=True, splits=True, rises=True
    ),
}
"""Those, and one whose steps go from an image to noise: no sampler, a scheduler for a caller's loop."""
