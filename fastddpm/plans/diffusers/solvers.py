"""The plans of diffusers' solvers, from what a scheduler has set.

Coefficients are computed in float64 from the noise levels that the scheduler has set, so that a chain is the
original's within 1e-4; `ddpm` and `ddim` of this package repeat float32 instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from fastddpm.checks import BadArgument, check_choice
from fastddpm.inputs import Fields
from fastddpm.plans.diffusers import churn as churned
from fastddpm.plans.diffusers import edm, exponential
from fastddpm.plans.diffusers.chain import Chain, with_timesteps
from fastddpm.plans.diffusers.config import SchedulerConfig, SchedulerOrConfig, thresholding_of
from fastddpm.plans.diffusers.solver_classes import SOLVERS, STEPPED, Solver
from fastddpm.plans.diffusers.written import written
from fastddpm.plans.plan import Float64, Plan, PredictionType, check_clip_range
from fastddpm.plans.tableau import Tableau


def from_solver_scheduler(
    scheduler: SchedulerOrConfig,
    num_inference_steps: int,
    *,
    kind: str | None = None,
    eta: float | None = None,
    start: int = 0,
) -> Plan:
    """The steps of one of `SOLVERS` after `set_timesteps(num_inference_steps)`, in our state x.

    Args:
        scheduler: the scheduler, which is not changed; or its configuration, for which diffusers is imported.
        num_inference_steps: S; solvers that evaluate twice in a step have more rows.
        kind: which of `STEPPED` it is; None for what its class is called.
        eta: of TCD, in [0, 1]; None for its own 0.3.
        start: the row at which the chain begins, as in image-to-image.

    Raises:
        ValueError: a scheduler that is none of these, or a configuration that no rows express.
    """
    name = _kind_of(scheduler, kind)
    return set_plan(with_timesteps(scheduler, num_inference_steps), kind=name, eta=eta, start=start)


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
        ValueError: another scheduler, or what diffusers says of the steps.
    """
    name = scheduler.get("_class_name") if isinstance(scheduler, Mapping) else type(scheduler).__name__
    check_choice("scheduler", name, [kind for kind, solver in SOLVERS.items() if solver.is_preconditioned])
    rows = set_rows(with_timesteps(scheduler, num_inference_steps), kind=str(name))
    return rows.plan.scaled(np.append(np.ones(len(rows.plan)), rows.scale[-1]))


def _kind_of(scheduler: SchedulerOrConfig, kind: str | None) -> str:
    """Which of `SOLVERS`; BadArgument for another."""
    if kind is None and isinstance(scheduler, Mapping):
        kind = str(scheduler.get("_class_name"))
    name = type(scheduler).__name__ if kind is None else kind
    check_choice("scheduler", name, tuple(SOLVERS if kind is None else STEPPED))
    return name


def set_plan(scheduler: Any, *, kind: str | None = None, eta: float | None = None, start: int = 0) -> Plan:
    """The same of a scheduler whose timesteps are set."""
    return set_rows(scheduler, kind=kind, eta=eta, start=start).plan


@dataclass(frozen=True)
class Rows:
    """A scheduler's plan, and what a caller of its steps needs besides.

    Attributes:
        plan: in our state x, or in sigmas.
        scale: the scheduler's state over the plan's where each row begins, and behind the last, float64
            [S + 1].
        borrowed: of each row what weight of its state stands for an earlier one, float64 [S]. Where that is
            not 0 the original has kept a state, and goes on from it whatever sample it is given.
        noise_in_x0: of each row the weight of its noise in the x0 that its step returns, float64 [S].
    """

    plan: Plan
    scale: Float64
    borrowed: Float64
    noise_in_x0: Float64


def set_rows(
    scheduler: Any,
    *,
    kind: str | None = None,
    eta: float | None = None,
    churn: churned.Churn | None = None,
    start: int = 0,
    as_written: bool = False,
) -> Rows:
    """The same, with what steps need that are taken one by one.

    Args:
        scheduler: as of `set_plan`, as are kind, eta and start.
        kind: which of `SOLVERS`.
        eta: of TCD.
        churn: of the two Euler schedulers.
        start: the first row.
        as_written: where levels are so high that the rounding of the scheduler's own state is seen, the plan
            is in that (`Plan.in_sigmas`).
    """
    name = _kind_of(scheduler, kind)
    solver, config = STEPPED[name], scheduler.config
    prediction_type = _prediction_of(name, solver, config)
    try:
        chain = _chain_of(scheduler, solver, eta=eta, start=start)
        tableau = solver.rows(chain) if churn is None else churned.euler(chain, churn)
        plan = _plan_of(tableau, chain, solver, prediction_type, churn)
        exact = written(plan, chain, name, churn) if as_written else None
    except BadArgument:
        raise
    except (ValueError, ZeroDivisionError, IndexError) as error:
        given = f"{name} at {len(scheduler.timesteps)} timesteps, which cannot be repeated ({error}),"
        raise BadArgument("scheduler", given, "another number of steps or configuration") from error
    if exact is not None:
        zeros = np.zeros(len(plan))
        return Rows(plan=exact, scale=np.ones(len(plan) + 1), borrowed=zeros, noise_in_x0=zeros)
    noise = np.zeros(len(plan)) if churn is None else churned.noise_in_x0(chain, churn)
    return Rows(
        plan=plan,
        scale=state_scale(plan, solver, config),
        borrowed=np.array([row.borrowed for row in tableau.rows]),
        noise_in_x0=(chain.sigma_data or 1.0) * noise,
    )


def state_scale(plan: Plan, solver: Solver, config: Fields) -> Float64:
    """The state of a scheduler over x, where each row of its plan begins and behind the last."""
    if not solver.in_sigmas or plan.in_sigmas:
        return np.ones(len(plan) + 1)
    assert plan.alphas_cumprod is not None
    data = float(config["sigma_data"]) if solver.is_preconditioned else 1.0
    scale: Float64 = data / np.sqrt(np.append(plan.alphas_cumprod, plan.final_alpha_cumprod))
    return scale


def _prediction_of(name: str, solver: Solver, config: Fields) -> PredictionType:
    """What the network predicts, in our words."""
    if config.get("use_flow_sigmas"):
        raise BadArgument("use_flow_sigmas", "True: flow matching, another process than a DDPM's", "False")
    given = config["prediction_type"]
    if given == "original_sample" and name == "EulerDiscreteScheduler":
        given = "sample"
    check_choice("prediction_type", given, solver.predictions)
    return cast("PredictionType", given)


def _chain_of(scheduler: Any, solver: Solver, *, eta: float | None, start: int) -> Chain:
    if solver.eta is None:
        eta = None
    else:
        eta = solver.eta if eta is None else float(eta)
    if solver.reads != "sigmas":
        return Chain.of_alphas(scheduler, start=start, eta=eta)
    data = float(scheduler.config["sigma_data"]) if solver.is_preconditioned else None
    return Chain.of_sigmas(scheduler, start=start, sigma_data=data)


def _plan_of(
    tableau: Tableau,
    chain: Chain,
    solver: Solver,
    prediction_type: PredictionType,
    churn: churned.Churn | None,
) -> Plan:
    config = chain.config
    thresholding = None
    if solver.thresholds and config.get("predict_x0", True):
        thresholding = thresholding_of(cast("SchedulerConfig", config))
    clips = solver.clips and thresholding is None and bool(config["clip_sample"])
    times = edm.counted(tableau) if solver.is_preconditioned else None
    learns = config.get("variance_type") in ("learned", "learned_range")
    plan = tableau.plan(
        solver.method,
        prediction_type if times is None else "v_prediction",
        check_clip_range(config["clip_sample_range"]) if clips else math.inf,
        learned_range=learns and solver.splits and prediction_type == "epsilon",
        thresholding=thresholding,
    )
    plan = dataclasses.replace(
        plan,
        draws=solver.draws(chain, plan),
        alphas_cumprod=np.array([row.point.alpha**2 for row in tableau.rows]),
        final_alpha_cumprod=chain.points[-1].alpha ** 2 if solver.reads == "sigmas" else 1.0,
    )
    if solver.rises:
        plan = exponential.of_output(plan)
    if churn is not None:
        plan = churned.with_x0(plan, chain, churn)
    return plan if times is None else edm.of_x0(plan, config, times)
