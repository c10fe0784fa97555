"""Churn, which diffusers' Euler schedulers add to their sample first (Karras et al. 2022, algorithm 2).

    u' = u + s_noise sqrt(s'^2 - s^2) z       s' = (1 + gamma) s,  gamma = min(s_churn/S, sqrt(2) - 1)

The network has seen u at s by then, where the paper shows it u' at s'; that is repeated.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from fastddpm.plans.diffusers.chain import Chain
from fastddpm.plans.diffusers.exploding import MOST_CHURN
from fastddpm.plans.plan import Float64, Plan
from fastddpm.plans.tableau import Sum, Tableau
from fastddpm_kernels.table import Column


@dataclass(frozen=True)
class Churn:
    """Arguments of a step, by the scheduler's names."""

    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float

    def gamma(self, sigma: float, steps: int) -> float:
        """How much higher than sigma a step begins, over sigma."""
        low, level, high = map(np.float32, (self.s_tmin, sigma, self.s_tmax))
        within = low <= level <= high
        return min(self.s_churn / steps, MOST_CHURN) if within else 0.0


@dataclass(frozen=True)
class Raised:
    """A step of Euler's with churn, in the variables of the chain: u, and its ratios for sigmas.

    Attributes:
        gamma: of the step.
        skip: weight of u' in x0.
        out: weight of the network's output in it.
        noise: of the noise in u'.
    """

    gamma: float
    skip: float
    out: float
    noise: float


def raised(chain: Chain, churn: Churn) -> list[Raised]:
    """Of each row that a chain visits."""
    found = []
    sigmas = chain.scheduler.sigmas.double().tolist()
    prediction, is_preconditioned = chain.config["prediction_type"], chain.sigma_data is not None
    for row in chain.rows:
        ratio, gamma = chain.points[row].ratio, churn.gamma(sigmas[row], len(sigmas) - 1)
        up = ratio * (1 + gamma)
        noise = churn.s_noise * math.sqrt(up**2 - ratio**2) if gamma > 0 else 0.0
        if is_preconditioned or prediction == "v_prediction":
            told = up if is_preconditioned else ratio  # diffusers: of v by the lower one
            skip, out = 1 / (1 + told**2), -told / math.sqrt(1 + told**2)
        elif prediction == "epsilon":
            skip, out = 1.0, -up
        else:
            skip, out = 0.0, 1.0
        found.append(Raised(gamma, skip, out, noise))
    return found


def euler(chain: Chain, churn: Churn) -> Tableau:
    """EulerDiscreteScheduler and EDMEulerScheduler, with churn; of what the network returns."""
    tableau, noise = Tableau("m"), 0.0
    state: Sum | None = None
    for row, step in zip(chain.rows, raised(chain, churn), strict=True):
        s, t = chain.points[row], chain.points[row + 1]
        x, m = tableau.evaluate(s, state, noise=noise)
        kept = t.ratio / (s.ratio * (1 + step.gamma))
        from_u = kept + (1 - kept) * step.skip
        state = t.alpha * (from_u / s.alpha * x + (1 - kept) * step.out * m)
        noise = t.alpha * from_u * step.noise
    return tableau.ended(state, noise=noise)


def with_x0(plan: Plan, chain: Chain, churn: Churn) -> Plan:
    """The plan with the x0 of its steps, without the noise in it, and with the rows at which it draws."""
    steps = raised(chain, churn)
    alphas = np.array([chain.points[row].alpha for row in chain.rows])
    table = plan.table.copy()
    table[:, Column.X0_FROM_X] = [step.skip for step in steps] / alphas
    table[:, Column.X0_FROM_M] = [step.out for step in steps]
    return dataclasses.replace(plan, table=table, draws=np.array([step.gamma > 0 for step in steps]))


def noise_in_x0(chain: Chain, churn: Churn) -> Float64:
    """The weight of each row's noise in its x0, float64 [S], in the variables of the chain."""
    return np.array([step.skip * step.noise for step in raised(chain, churn)])
