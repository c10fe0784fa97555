"""diffusers' schedulers that look timesteps up in alphas_cumprod: PNDM, LCM and TCD, as rows."""

from __future__ import annotations

import math

from fastddpm.checks import BadArgument, check_number
from fastddpm.plans.consistency import SIGMA_DATA
from fastddpm.plans.diffusers.chain import Chain, at_abar
from fastddpm.plans.tableau import Point, Sum, Tableau

RUNGE_KUTTA = 12
"""Evaluations of PNDM's start: three steps of four."""


def pndm(chain: Chain) -> Tableau:
    """PNDMScheduler (Liu et al. 2022): PLMS, after three Runge-Kutta steps or, with ``skip_prk_steps``, after
    one of Heun's.

    The mean is of the network's outputs, also where these are v: they become eps with the last state.
    """
    total, length = chain.config["num_train_timesteps"], chain.steps
    back = int(total) // int(chain.scheduler.num_inference_steps)
    weights = ([1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])
    tableau, state = Tableau("m"), None
    known: list[Sum] = []
    begins = chain.start
    if not chain.config["skip_prk_steps"]:
        known, state = _runge_kutta(chain, tableau, back)
        begins = RUNGE_KUTTA
    first: Sum | None = None
    for row in range(begins, length):
        count, s = row - chain.start, chain.points[row]
        x, m = tableau.evaluate(s, state, is_start=count != 1)
        timestep = int(s.time)
        if count == 1:
            assert first is not None
            x, m = first, (m + known[0]) / 2
            t, s = s, chain.at_timestep(timestep + back)
        else:
            known, t = [m, *known][:4], chain.at_timestep(timestep - back)
            if count == 0:
                first = x
            m = _mean(weights[len(known) - 1], known)
        state = _transferred(chain, x, m, s, t)
    return tableau.ended(state)


def _runge_kutta(chain: Chain, tableau: Tableau, back: int) -> tuple[list[Sum], Sum | None]:
    """The classical method of order 4, three steps of it (Liu et al. 2022, equation 13): what the network
    said where each began, the last first, and the state behind them."""
    if chain.start or chain.steps <= RUNGE_KUTTA:
        given = f"{chain.steps} rows from row {chain.start} on, within a Runge-Kutta start of {RUNGE_KUTTA},"
        raise BadArgument("num_inference_steps", given, "more steps, from the first, or skip_prk_steps=True")
    known: list[Sum] = []
    state: Sum | None = None
    for begin in range(0, RUNGE_KUTTA, 4):
        s, outputs = chain.points[begin], []
        start: Sum | None = None
        for number in range(4):
            point = chain.points[begin + number]
            x, m = tableau.evaluate(point, state, is_start=number == 0)
            start = x if start is None else start
            outputs.append(m)
            if number == 3:
                m = _mean([1 / 6, 1 / 3, 1 / 3, 1 / 6], outputs)
            t = chain.at_timestep(int(point.time) - (0 if number % 2 else back // 2))
            state = _transferred(chain, start, m, s, t)
        known = [outputs[0], *known]
    return known, state


def _transferred(chain: Chain, x: Sum, m: Sum, s: Point, t: Point) -> Sum:
    """DDIM's step from s to t with what the network says, or a mean of that."""
    eps = s.alpha * m + s.sigma * x if chain.config["prediction_type"] == "v_prediction" else m
    return t.alpha / s.alpha * x + (t.sigma - t.alpha * s.sigma / s.alpha) * eps


def lcm(chain: Chain) -> Tableau:
    """LCMScheduler (Luo et al. 2023): x0 with the boundary condition, noised anew to the next timestep."""
    tableau, state, noise = Tableau("x0"), None, 0.0
    scaling = float(chain.config["timestep_scaling"])
    for row in chain.rows:
        s = chain.points[row]
        x, x0 = tableau.evaluate(s, state, noise=noise)
        time = s.time * scaling
        skip = SIGMA_DATA**2 / (time**2 + SIGMA_DATA**2)
        out = time / math.sqrt(time**2 + SIGMA_DATA**2)
        t = chain.points[row + 1] if row + 1 < chain.steps else at_abar(1.0, time=0.0)
        state, noise = t.alpha * (out * x0 + skip * x), t.sigma
    return tableau.ended(state, noise=noise)


def tcd(chain: Chain) -> Tableau:
    """TCDScheduler (Zheng et al. 2024): to the timestep (1 - eta) t, and noise up to t."""
    eta = check_number("eta", chain.eta, low=0.0, high=1.0)
    tableau, state, noise = Tableau("x0"), None, 0.0
    for row in chain.rows:
        s = chain.points[row]
        x, x0 = tableau.evaluate(s, state, noise=noise)
        is_last = row + 1 == chain.steps
        next_time = 0 if is_last else int(chain.points[row + 1].time)
        middle = chain.at_timestep(math.floor((1 - eta) * next_time))
        state = middle.alpha * x0 + middle.sigma / s.sigma * (x - s.alpha * x0)
        noise = 0.0
        if not is_last and eta > 0:
            t = chain.at_timestep(next_time)
            kept = t.alpha / middle.alpha
            state, noise = kept * state, math.sqrt(max(1 - kept**2, 0.0))
    return tableau.ended(state, noise=noise)


def _mean(weights: list[float], known: list[Sum]) -> Sum:
    total = Sum({})
    for weight, value in zip(weights, known, strict=True):
        total = total + weight * value
    return total
