"""SA-Solver: a stochastic Adams predictor, corrected by the next evaluation (Xue et al. 2023)."""

from __future__ import annotations

import math

from fastddpm.plans.exponential import extrapolated
from fastddpm.plans.solver import SolverOptions
from fastddpm.plans.tableau import Point, Sum, Tableau, steps


def sa_solver(points: list[Point], options: SolverOptions) -> Tableau:
    """SA-Solver of order 1 to 3, in the prediction of x0; algorithm 1 with tau = `eta` at every step.

    x_t = sigma_t/sigma_s e^(-tau^2 h) x_s + alpha_t (1 + tau^2) * integral over [0, h] of
          e^(-(1 + tau^2)(h - l)) x0(l) dl + sigma_t sqrt(1 - e^(-2 tau^2 h)) z

    tau 0 solves the probability-flow ODE, 1 the diffusion SDE. The predictor's polynomial goes through as
    many values as its order, the corrector's through the one at the end of the step too. Both have the same
    noise, so that the corrected state is the predicted one with another integral. With ``lower_order_final``
    the last k steps are of order k at most, however many there are, as in diffusers.
    """
    rate = 1 + options.eta**2
    tableau, state, noise = Tableau("x0"), None, 0.0
    known: list[Sum] = []
    predicted, order = Sum({}), 1
    for number, s, t in steps(points):
        x, x0 = tableau.evaluate(s, state, noise=noise)
        if known:
            x = x + _integral(known[:order], points[: number + 1], rate, end=x0) - predicted
        known = [x0, *known][: options.order]
        if t.is_clean:
            state, noise = t.alpha * x0, 0.0
            continue
        order = len(known)
        if options.lower_order_final:
            order = min(order, len(points) - 1 - number)
        predicted = _integral(known[:order], points[: number + 2], rate)
        h = t.log_snr - s.log_snr
        state = t.sigma / s.sigma * math.exp(-(rate - 1) * h) * x + predicted
        noise = t.sigma * math.sqrt(-math.expm1(-2 * (rate - 1) * h))
    return tableau.ended(state, noise=noise)


def _integral(known: list[Sum], points: list[Point], rate: float, end: Sum | None = None) -> Sum:
    """What the predictions add to a step: alpha_t rate * integral of e^(-rate (h - l)) x0(l) dl.

    Of two predictions the slope's part, the integral of e^(-rate (h - l)) l dl, is taken as h^2/2, its first
    term: the authors' choice for few steps, which leaves the order as it is.

    Args:
        known: predictions of the points before the end of the step, the newest first.
        points: up to the end of the step.
        rate: 1 + tau^2.
        end: the prediction at the end of the step, in the corrector.
    """
    s, t = points[-2:]
    h = t.log_snr - s.log_snr
    if len(known) + (end is not None) != 2:
        return t.alpha * rate * extrapolated(known, points, rate=-rate, end=end)
    if end is None:
        slope = (known[0] - known[1]) / (s.log_snr - points[-3].log_snr)
    else:
        slope = (end - known[0]) / h
    return t.alpha * (-math.expm1(-rate * h) * known[0] + rate * h**2 / 2 * slope)
