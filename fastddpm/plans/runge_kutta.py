"""Runge-Kutta solvers: several evaluations of the network in a step, and nothing from the steps before it.

In the sigma of Karras et al. 2022, sigma/alpha, with u = x/alpha, the probability-flow ODE is
du/dsigma = eps.
"""

from __future__ import annotations

import math

from fastddpm.plans.multistep import ancestral
from fastddpm.plans.solver import SolverOptions
from fastddpm.plans.tableau import Point, Sum, Tableau, steps

MOST_CHURN = math.sqrt(2) - 1
"""Of gamma: Karras et al. 2022, algorithm 2."""


def heun(points: list[Point], options: SolverOptions) -> Tableau:
    """Karras et al. 2022, algorithm 1: Euler's step, and the mean of the slopes at its two ends.

    With ``eta`` above 0 it is their algorithm 2 with gamma = eta (sqrt(2) - 1) and S_noise = 1: each step
    begins (1 + gamma) higher, with noise up to there. The first is as high as a chain can begin.
    """
    tableau, state, noise = Tableau("eps"), None, 0.0
    for number, s, t in steps(points):
        if number > 0 and options.eta > 0:
            assert state is not None
            ratio = min(s.ratio * (1 + options.eta * MOST_CHURN), points[0].ratio)
            higher = options.at_ratio(ratio)
            state = higher.alpha / s.alpha * state
            noise = higher.alpha * math.sqrt(ratio**2 - s.ratio**2)
            s = higher
        x, eps = tableau.evaluate(s, state, noise=noise)
        u, length = x / s.alpha, t.ratio - s.ratio
        state = t.alpha * (u + length * eps)
        if not t.is_clean:
            _, second = tableau.evaluate(t, state, is_start=False)
            state = t.alpha * (u + length / 2 * (eps + second))
    return tableau.ended(state)


def dpm2(points: list[Point], options: SolverOptions) -> Tableau:
    """The midpoint in log sigma: what k-diffusion calls DPM2 and diffusers KDPM2 (Karras et al. 2022)."""
    return _midpoint(points, options, is_ancestral=False)


def dpm2_ancestral(points: list[Point], options: SolverOptions) -> Tableau:
    """The same to a lower noise level, and noise up to the right one."""
    return _midpoint(points, options, is_ancestral=True)


def _midpoint(points: list[Point], options: SolverOptions, *, is_ancestral: bool) -> Tableau:
    tableau, state, noise = Tableau("eps"), None, 0.0
    for _, s, t in steps(points):
        x, eps = tableau.evaluate(s, state, noise=noise)
        down, up = ancestral(s, t) if is_ancestral else (t.ratio, 0.0)
        u, noise = x / s.alpha, t.alpha * up
        if down == 0:
            state = t.alpha * (u + (down - s.ratio) * eps)
            continue
        middle = options.at_ratio(math.sqrt(s.ratio * down))
        halfway = middle.alpha * (u + (middle.ratio - s.ratio) * eps)
        _, slope = tableau.evaluate(middle, halfway, is_start=False)
        state = t.alpha * (u + (down - s.ratio) * slope)
    return tableau.ended(state, noise=noise)


def dpmpp_2s(points: list[Point], options: SolverOptions) -> Tableau:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1) with r = 1/2: x0 at the middle in lambda."""
    tableau, state = Tableau("x0"), None
    for _, s, t in steps(points):
        x, x0 = tableau.evaluate(s, state)
        if t.is_clean:
            state = t.alpha * x0
            continue
        h = t.log_snr - s.log_snr
        middle = options.at_ratio(math.exp(-(s.log_snr + h / 2)))
        halfway = middle.sigma / s.sigma * x - middle.alpha * math.expm1(-h / 2) * x0
        _, x0 = tableau.evaluate(middle, halfway, is_start=False)
        state = t.sigma / s.sigma * x - t.alpha * math.expm1(-h) * x0
    return tableau.ended(state)


def dpmpp_2s_sde(points: list[Point], options: SolverOptions) -> Tableau:
    """The same of the diffusion SDE (Lu et al. 2022b, section 5): twice as far in lambda, and noise.

    A step to t and its first half both begin at the state in s, each with noise of its own:

    x_t = sigma_t/sigma_s e^-h x_s + alpha_t (1 - e^-2h) x0 + sigma_t sqrt(1 - e^-2h) z
    """
    tableau, state, noise = Tableau("x0"), None, 0.0
    for _, s, t in steps(points):
        x, x0 = tableau.evaluate(s, state, noise=noise)
        if t.is_clean:
            state, noise = t.alpha * x0, 0.0
            continue
        middle = options.at_ratio(math.exp(-(s.log_snr + t.log_snr) / 2))
        halfway, noise = _to(middle, s, x, x0)
        _, x0 = tableau.evaluate(middle, halfway, noise=noise, is_start=False)
        state, noise = _to(t, s, x, x0)
    return tableau.ended(state, noise=noise)


def _to(t: Point, s: Point, x: Sum, x0: Sum) -> tuple[Sum, float]:
    """A step of the SDE's first-order form with the prediction x0, and its noise."""
    h = t.log_snr - s.log_snr
    state = t.sigma / s.sigma * math.exp(-h) * x - t.alpha * math.expm1(-2 * h) * x0
    return state, t.sigma * math.sqrt(-math.expm1(-2 * h))
