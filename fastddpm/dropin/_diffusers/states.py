"""What a scheduler's state is of ours: chains here preserve variance, some of diffusers' schedulers do not.

Our state is ``x = sqrt(abar) x0 + sqrt(1 - abar) eps``. Schedulers after Karras et al. (2022) hold
``u = x0 + sigma eps`` with ``sigma = sqrt((1 - abar) / abar)``, which is ``x / sqrt(abar)``, and scale it
back for the network, which sees x with both.
"""

from __future__ import annotations

import numpy as np

from fastddpm.dropin._diffusers.scheduler_kinds import scheduler_kind
from fastddpm.dropin.peer import Peer
from fastddpm.plans import Plan
from fastddpm.plans.diffusers import solvers
from fastddpm.plans.diffusers.solver_classes import SOLVERS
from fastddpm.plans.plan import Float64

SIGMA_SPACE = frozenset(kind for kind, solver in SOLVERS.items() if solver.in_sigmas)
"""Kinds of schedulers whose state is u."""


def in_sigma_space(scheduler: Peer) -> bool:
    """Whether a scheduler's state is u."""
    return scheduler_kind(scheduler) in SIGMA_SPACE


def unset_noise_sigma(scheduler: Peer) -> float:
    """A scheduler's ``init_noise_sigma`` before its timesteps are set: by the highest level of training.

    An LDMPipeline asks for it then; in its first call, that is.
    """
    if not in_sigma_space(scheduler) or SOLVERS[str(scheduler_kind(scheduler))].is_preconditioned:
        return float(scheduler.init_noise_sigma)
    abar = scheduler.alphas_cumprod[-1]
    highest = ((1 - abar) / abar) ** 0.5  # in float32, as there
    is_leading = scheduler.config["timestep_spacing"] == "leading"
    return float((highest**2 + 1) ** 0.5 if is_leading else highest)


def state_scale(scheduler: Peer, plan: Plan) -> Float64:
    """The scheduler's state over ours where each row of its plan begins, and behind the last.

    Args:
        scheduler: one that has a plan.
        plan: its rows.

    Returns:
        float64 ``[S + 1]``: 1, or for the kinds of `SIGMA_SPACE` 1 / sqrt(alphas_cumprod), of EDM times
        sigma_data; of a plan in sigmas 1 as well.
    """
    kind = scheduler_kind(scheduler)
    if kind not in SIGMA_SPACE:
        return np.ones(len(plan) + 1)
    return solvers.state_scale(plan, SOLVERS[kind], scheduler.config)
