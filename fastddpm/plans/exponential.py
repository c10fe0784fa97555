"""Exponential multistep solvers in lambda = log(alpha/sigma): DPM-Solver, DPM-Solver++ and its SDE form.

The linear part of the probability-flow ODE is solved exactly. What the network predicts, x0 or eps, is put in
as the polynomial in lambda through up to three of its values, and its integral is exact too; this is the form
that diffusers calls solver_type "heun". (Of order 3 the authors' code halves the last term.)
"""

from __future__ import annotations

import math

import numpy as np

from fastddpm.plans.solver import SolverOptions, basis
from fastddpm.plans.tableau import Point, Sum, Tableau, steps


def dpm_solver(points: list[Point], options: SolverOptions) -> Tableau:
    """DPM-Solver (Lu et al. 2022a), multistep, of order 1 to 3: eps is extrapolated.

    tAB-DEIS (Zhang and Chen 2023) with its polynomial in log sigma is the same, since lambda is -log sigma.

    x_t = alpha_t/alpha_s x_s - sigma_t * integral over [0, h] of e^(h - l) eps(l) dl
    """
    tableau, state = Tableau("eps"), None
    known: list[Sum] = []
    for number, s, t in steps(points):
        x, eps = tableau.evaluate(s, state)
        order = options.order_left(len(points) - 1 - number, len(points) - 1)
        known = [eps, *known][: options.order]
        if t.is_clean:  # sigma_t e^h is alpha_t sigma_s/alpha_s, where h is infinite
            state = t.alpha / s.alpha * x - t.alpha * s.ratio * eps
        else:
            total = extrapolated(known[:order], points[: number + 2], rate=1.0)
            state = t.alpha / s.alpha * x - t.sigma * total
    return tableau.ended(state)


def dpmpp(points: list[Point], options: SolverOptions) -> Tableau:
    """DPM-Solver++ (Lu et al. 2022b), multistep, of order 1 to 3: x0 is extrapolated.

    x_t = sigma_t/sigma_s x_s + alpha_t * integral over [0, h] of e^-(h - l) x0(l) dl
    """
    tableau, state = Tableau("x0"), None
    known: list[Sum] = []
    for number, s, t in steps(points):
        x, x0 = tableau.evaluate(s, state)
        order = options.order_left(len(points) - 1 - number, len(points) - 1)
        known = [x0, *known][: options.order]
        if t.is_clean:
            state = t.alpha * x0
        else:
            total = extrapolated(known[:order], points[: number + 2], rate=-1.0)
            state = t.sigma / s.sigma * x + t.alpha * total
    return tableau.ended(state)


def dpmpp_sde(points: list[Point], options: SolverOptions) -> Tableau:
    """The same of the diffusion SDE (Lu et al. 2022b, section 5): twice as far in lambda, and noise.

    x_t = sigma_t/sigma_s e^-h x_s + alpha_t * 2 * integral over [0, h] of e^-2(h - l) x0(l) dl
          + sigma_t sqrt(1 - e^-2h) z
    """
    tableau, state, noise = Tableau("x0"), None, 0.0
    known: list[Sum] = []
    for number, s, t in steps(points):
        x, x0 = tableau.evaluate(s, state, noise=noise)
        order = options.order_left(len(points) - 1 - number, len(points) - 1)
        known = [x0, *known][: options.order]
        if t.is_clean:
            state, noise = t.alpha * x0, 0.0
        else:
            h = t.log_snr - s.log_snr
            total = 2.0 * extrapolated(known[:order], points[: number + 2], rate=-2.0)
            state = t.sigma / s.sigma * math.exp(-h) * x + t.alpha * total
            noise = t.sigma * math.sqrt(-math.expm1(-2 * h))
    return tableau.ended(state, noise=noise)


def extrapolated(known: list[Sum], points: list[Point], *, rate: float, end: Sum | None = None) -> Sum:
    """The integral over the last step, of length h, of e^(rate (h - l)) times the polynomial through the
    predictions at the points before it.

    Args:
        known: the predictions, the newest first.
        points: up to the end of the step.
        rate: of the exponential.
        end: the prediction at the end of the step, for a corrector, whose polynomial goes through it too.
    """
    s = points[-2]
    h = points[-1].log_snr - s.log_snr
    nodes = [(point.log_snr - s.log_snr) / h for point in points[-2::-1][: len(known)]]
    if end is not None:
        nodes, known = [1.0, *nodes], [end, *known]
    moments = _moments(rate * h, len(known))
    total = Sum({})
    for own, value in zip(nodes, known, strict=True):
        weight = float(np.dot(basis(nodes, own).coef, moments))
        total = total + h * weight * value
    return total


def _moments(z: float, count: int) -> list[float]:
    """The integrals over [0, 1] of e^(z (1 - l)) l^n dl, n < count: n! phi_(n+1)(z).

    By Taylor's series where z is small: the recursion I_n = (n I_(n-1) - 1)/z loses digits there.
    """
    if abs(z) < 0.5:
        return [
            math.factorial(n) * sum(z**k / math.factorial(k + n + 1) for k in range(20)) for n in range(count)
        ]
    moments = [math.expm1(z) / z]
    for n in range(1, count):
        moments.append((n * moments[-1] - 1) / z)
    return moments
