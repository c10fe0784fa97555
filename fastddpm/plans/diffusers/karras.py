"""diffusers' schedulers in the sigma of Karras et al. 2022: Euler, Heun, LMS and the two KDPM2, as rows.

Their state is u = x/alpha, with sigma = sigma/alpha of ours; du/dsigma = (u - x0)/sigma = eps. Rows are of x.
"""

from __future__ import annotations

import math

from fastddpm.plans.diffusers.chain import Chain, at_ratio
from fastddpm.plans.multistep import ancestral
from fastddpm.plans.solver import basis
from fastddpm.plans.tableau import Point, Sum, Tableau


def euler(chain: Chain) -> Tableau:
    """EulerDiscreteScheduler, without churn."""
    tableau, state = Tableau("eps"), None
    for s, t in _steps(chain):
        x, eps = tableau.evaluate(s, state)
        state = t.alpha * (x / s.alpha + (t.ratio - s.ratio) * eps)
    return tableau.ended(state)


def euler_ancestral(chain: Chain) -> Tableau:
    """EulerAncestralDiscreteScheduler, which draws in the last step too, times 0."""
    tableau, state, noise = Tableau("eps"), None, 0.0
    for s, t in _steps(chain):
        x, eps = tableau.evaluate(s, state, noise=noise)
        down, up = ancestral(s, t)
        state, noise = t.alpha * (x / s.alpha + (down - s.ratio) * eps), t.alpha * up
    return tableau.ended(state, noise=noise)


def lms(chain: Chain, *, order: int = 4) -> Tableau:
    """LMSDiscreteScheduler: the polynomial through the last predictions, integrated over the step.

    A chain that starts later has the coefficients of a full history from its first step on, and fewer
    predictions to go with them, as there.
    """
    tableau, state = Tableau("eps"), None
    known: list[Sum] = []
    for row, (s, t) in zip(chain.rows, _steps(chain), strict=True):
        x, eps = tableau.evaluate(s, state)
        known = [eps, *known][:order]
        nodes = [chain.points[row - back].ratio for back in range(min(row + 1, order))]
        total = Sum({})
        for own, value in zip(nodes, known, strict=False):
            integral = basis([node / s.ratio for node in nodes], own / s.ratio).integ()
            total = total + s.ratio * float(integral(t.ratio / s.ratio) - integral(1.0)) * value
        state = t.alpha * (x / s.alpha + total)
    return tableau.ended(state)


def heun(chain: Chain) -> Tableau:
    """HeunDiscreteScheduler: two rows a step, the second at the step's end; one in the last."""
    tableau, state = Tableau("eps"), None
    begun: tuple[Sum, Sum, Point] | None = None
    for s, t in _steps(chain):
        x, eps = tableau.evaluate(s, state, is_start=begun is None)
        if begun is None:
            state, begun = t.alpha * (x / s.alpha + (t.ratio - s.ratio) * eps), (x / s.alpha, eps, s)
        else:
            u, first, start = begun
            state, begun = s.alpha * (u + (s.ratio - start.ratio) / 2 * (first + eps)), None
    return tableau.ended(state)


def kdpm2(chain: Chain) -> Tableau:
    """KDPM2DiscreteScheduler: the slope in the middle, in log sigma, of a step."""
    between = chain.scheduler.sigmas_interpol.double().tolist()
    tableau, state = Tableau("eps"), None
    begun: tuple[Sum, Point] | None = None
    for row in chain.rows:
        s = chain.points[row]
        if begun is None:
            x, eps = tableau.evaluate(s, state)
            middle = at_ratio(between[row + 1], time=math.nan)
            begun = x / s.alpha, s
            state = middle.alpha * (x / s.alpha + (middle.ratio - s.ratio) * eps)
        else:
            _, slope = tableau.evaluate(at_ratio(between[row], time=s.time), state, is_start=False)
            u, start = begun
            state, begun = s.alpha * (u + (s.ratio - start.ratio) * slope), None
    return tableau.ended(state)


def kdpm2_ancestral(chain: Chain) -> Tableau:
    """KDPM2AncestralDiscreteScheduler: the same to a lower level, and noise up to the right one."""
    between = chain.scheduler.sigmas_interpol.double().tolist()
    tableau, state, noise = Tableau("eps"), None, 0.0
    begun: tuple[Sum, Point] | None = None
    for row in chain.rows:
        s = chain.points[row]
        if begun is None:
            x, eps = tableau.evaluate(s, state, noise=noise)
            middle = at_ratio(between[row], time=math.nan)
            begun, noise = (x / s.alpha, s), 0.0
            state = middle.alpha * (x / s.alpha + (middle.ratio - s.ratio) * eps)
        else:
            _, slope = tableau.evaluate(at_ratio(between[row - 1], time=s.time), state, is_start=False)
            u, start = begun
            down, up = ancestral(start, s)
            state, noise, begun = s.alpha * (u + (down - start.ratio) * slope), s.alpha * up, None
    return tableau.ended(state, noise=noise)


def _steps(chain: Chain) -> list[tuple[Point, Point]]:
    """Of each row, where it is and where the next one is."""
    return [(chain.points[row], chain.points[row + 1]) for row in chain.rows]
