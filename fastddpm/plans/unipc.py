"""UniPC: a multistep predictor whose state is corrected by the next evaluation (Zhao et al. 2023)."""

from __future__ import annotations

import math

import numpy as np

from fastddpm.plans.plan import Float64
from fastddpm.plans.solver import SolverOptions
from fastddpm.plans.tableau import Point, Sum, Tableau, steps


def unipc(points: list[Point], options: SolverOptions) -> Tableau:
    """UniPC of order 1 to 3 with B(h) = e^h - 1 (bh2), in the prediction of x0; algorithms 1 and 2.

    At each point the state that the predictor led to is corrected with the prediction made there, which costs
    no evaluation of its own, and the next step starts from the corrected one. With ``lower_order_final`` the
    last k steps are of order k at most, however many there are, as in the authors' code.
    """
    tableau, state = Tableau("x0"), None
    known: list[Sum] = []
    increment, order = Sum({}), 1
    for number, s, t in steps(points):
        x, x0 = tableau.evaluate(s, state)
        if known:  # x = linear + predicted; corrected = linear + with the prediction here
            corrected = _increment(known, points[: number + 1], order, end=x0)
            x = x + corrected - increment
        known = [x0, *known][: options.order]
        if t.is_clean:
            state = t.alpha * x0
            continue
        order = len(known)
        if options.lower_order_final:
            order = min(order, len(points) - 1 - number)
        increment = _increment(known, points[: number + 2], order)
        h = t.log_snr - s.log_snr
        state = t.sigma / s.sigma * x - t.alpha * math.expm1(-h) * x0 + increment
    return tableau.ended(state)


def _increment(known: list[Sum], points: list[Point], order: int, end: Sum | None = None) -> Sum:
    """What a step adds to its first-order part: -alpha_t B(h) sum of a_k D_k/r_k.

    Args:
        known: predictions of the points before the end of the step, the newest first.
        points: up to the end of the step.
        order: of the predictor.
        end: the prediction at the end of the step, in the corrector.
    """
    s, t = points[-2], points[-1]
    h = t.log_snr - s.log_snr
    nodes = [(point.log_snr - s.log_snr) / h for point in points[-3::-1][: order - 1]]
    differences = [(value - known[0]) / node for value, node in zip(known[1:], nodes, strict=False)]
    if end is not None:
        nodes, differences = [*nodes, 1.0], [*differences, end - known[0]]
    weights = _weights(nodes, -h)
    total = Sum({})
    for weight, difference in zip(weights, differences, strict=True):
        total = total + float(weight) * difference
    return -t.alpha * math.expm1(-h) * total


def _weights(nodes: list[float], h: float) -> Float64:
    """a with sum over k of r_k^(n-1) a_k = n! phi_(n+1)(h) h/B(h), n = 1, 2, ...: equation 7.

    One difference has the weight 1/2, which is right to the same order (section 3.4).
    """
    if len(nodes) <= 1:
        return np.full(len(nodes), 0.5)
    phi, factorial, wanted = math.expm1(h) / h - 1, 1, []
    for n in range(1, len(nodes) + 1):
        wanted.append(phi * factorial / math.expm1(h))
        factorial *= n + 1
        phi = phi / h - 1 / factorial
    return np.linalg.solve(np.vander(nodes, increasing=True).T, np.array(wanted))
