"""Linear multistep solvers: each step uses the predictions of the steps before it.

In the sigma of Karras et al. 2022, sigma/alpha, with u = x/alpha, the probability-flow ODE is
du/dsigma = eps. A step from s to t adds the integral of eps, for which each solver puts another polynomial.
"""

from __future__ import annotations

import math

from fastddpm.plans.solver import SolverOptions, basis
from fastddpm.plans.tableau import Point, Sum, Tableau, steps


def euler(points: list[Point], options: SolverOptions) -> Tableau:
    """u_t = u_s + (sigma_t - sigma_s) eps: Karras et al. 2022, algorithm 1 uncorrected; DDIM's step."""
    tableau, state = Tableau("eps"), None
    for _, s, t in steps(points):
        x, eps = tableau.evaluate(s, state)
        state = t.alpha * (x / s.alpha + (t.ratio - s.ratio) * eps)
    return tableau.ended(state)


def euler_ancestral(points: list[Point], options: SolverOptions) -> Tableau:
    """Euler's step to a lower noise level, and noise up to the right one (Karras et al.'s code).

    sigma_up = sigma_t sqrt(1 - sigma_t^2/sigma_s^2), sigma_down^2 = sigma_t^2 - sigma_up^2.
    """
    tableau, state, noise = Tableau("eps"), None, 0.0
    for _, s, t in steps(points):
        x, eps = tableau.evaluate(s, state, noise=noise)
        down, up = ancestral(s, t)
        state, noise = t.alpha * (x / s.alpha + (down - s.ratio) * eps), t.alpha * up
    return tableau.ended(state, noise=noise)


def ancestral(s: Point, t: Point) -> tuple[float, float]:
    """sigma_down and sigma_up of a step."""
    up = t.ratio * math.sqrt(1 - (t.ratio / s.ratio) ** 2)
    return math.sqrt(t.ratio**2 - up**2), up


def lms(points: list[Point], options: SolverOptions) -> Tableau:
    """Adams-Bashforth with the steps as they are: the polynomial through up to 4 predictions, in sigma."""
    tableau, state = Tableau("eps"), None
    known: list[Sum] = []
    for number, s, t in steps(points):
        x, eps = tableau.evaluate(s, state)
        known = [eps, *known][: options.order]
        nodes = [points[number - back].ratio for back in range(len(known))]
        state = t.alpha * (x / s.alpha + _integrated(known, nodes, s.ratio, t.ratio))
    return tableau.ended(state)


def _integrated(known: list[Sum], nodes: list[float], start: float, end: float) -> Sum:
    """The integral from start to end of the polynomial through predictions at nodes."""
    total = Sum({})
    for own, value in zip(nodes, known, strict=True):
        # In units of the first node, so that powers stay near 1.
        integral = basis([node / nodes[0] for node in nodes], own / nodes[0]).integ()
        weight = nodes[0] * (integral(end / nodes[0]) - integral(start / nodes[0]))
        total = total + float(weight) * value
    return total


def pndm(points: list[Point], options: SolverOptions) -> Tableau:
    """PLMS (Liu et al. 2022, section 3.3, without the Runge-Kutta start): Adams-Bashforth with equal steps.

    The first step is one of Heun's, whose second evaluation is at the timestep of the next step's first.
    """
    weights = ([1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
    tableau, state = Tableau("eps"), None
    known: list[Sum] = []
    for number, s, t in steps(points):
        x, eps = tableau.evaluate(s, state)
        known = [eps, *known][: options.order]
        mean = sum((w * value for w, value in zip(weights[len(known) - 1], known, strict=True)), Sum({}))
        if number == 0 and not t.is_clean:
            _, second = tableau.evaluate(
                t, t.alpha * (x / s.alpha + (t.ratio - s.ratio) * eps), is_start=False
            )
            mean = 0.5 * (eps + second)
        state = t.alpha * (x / s.alpha + (t.ratio - s.ratio) * mean)
    return tableau.ended(state)
