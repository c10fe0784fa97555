"""Consistency models as solvers: for networks distilled to predict where a chain ends."""

from __future__ import annotations

import math

from fastddpm.plans.solver import SolverOptions
from fastddpm.plans.tableau import Point, Tableau, steps

TIMESTEP_SCALING = 10.0
SIGMA_DATA = 0.5
"""As in the code of Luo et al. 2023, and diffusers."""


def lcm(points: list[Point], options: SolverOptions) -> Tableau:
    """Latent consistency models (Luo et al. 2023, algorithm 3): the end of the chain, noised anew to t.

    f = c_out x0 + c_skip x with c_skip = 1/4 / (tau^2 + 1/4), c_out = tau / sqrt(tau^2 + 1/4), tau = 10 times
    the timestep.
    """
    tableau, state, noise = Tableau("x0"), None, 0.0
    for _, s, t in steps(points):
        x, x0 = tableau.evaluate(s, state, noise=noise)
        tau = s.time * TIMESTEP_SCALING
        skip = SIGMA_DATA**2 / (tau**2 + SIGMA_DATA**2)
        out = tau / math.sqrt(tau**2 + SIGMA_DATA**2)
        state, noise = t.alpha * (out * x0 + skip * x), t.sigma
    return tableau.ended(state, noise=noise)


def tcd(points: list[Point], options: SolverOptions) -> Tableau:
    """Trajectory consistency distillation (Zheng et al. 2024, algorithm 4), gamma being ``eta``.

    DDIM's step to the timestep (1 - gamma) t, and noise up to t; the last one goes to timestep 0.
    """
    tableau, state, noise = Tableau("x0"), None, 0.0
    for _, s, t in steps(points):
        x, x0 = tableau.evaluate(s, state, noise=noise)
        middle = options.at_timestep(0 if t.is_clean else math.floor((1 - options.eta) * t.time))
        state = middle.alpha * x0 + middle.sigma / s.sigma * (x - s.alpha * x0)
        noise = 0.0
        if not t.is_clean and options.eta > 0:
            kept = t.alpha / middle.alpha
            state, noise = kept * state, math.sqrt(max(1 - kept**2, 0.0))
    return tableau.ended(state, noise=noise)
