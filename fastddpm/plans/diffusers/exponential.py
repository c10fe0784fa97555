"""diffusers' exponential solvers in lambda = log(alpha/sigma): DPM-Solver, in two forms, and DEIS."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_choice
from fastddpm.plans.diffusers.chain import Chain, Level
from fastddpm.plans.plan import Plan
from fastddpm.plans.solver import FEW_STEPS
from fastddpm.plans.tableau import Prediction, Sum, Tableau
from fastddpm_kernels.table import Column

ALGORITHMS = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")


def multistep(chain: Chain) -> Tableau:
    """DPMSolverMultistepScheduler of order 1 to 3, in its four algorithms and two solver types."""
    config = chain.config
    step = _Step(str(config["algorithm_type"]), str(config["solver_type"]))
    few = bool(config["lower_order_final"]) and chain.steps < FEW_STEPS
    first_at_end = config["euler_at_final"] or few or config["final_sigmas_type"] == "zero"
    tableau, state, noise = Tableau(step.prediction), None, 0.0
    known: list[Sum] = []
    for row in chain.rows:
        x, value = tableau.evaluate(chain.points[row], state, noise=noise)
        known = [value, *known][: int(config["solver_order"])]
        order = len(known)
        if row == chain.steps - 1 and first_at_end:
            order = 1
        elif row == chain.steps - 2 and few:
            order = min(order, 2)
        levels = [chain.levels[row + 1], *chain.levels[row::-1][:order]]
        state, noise = step.multi(x, known[:order], levels)
    return tableau.ended(state, noise=noise)


def multistep_inverse(chain: Chain) -> Tableau:
    """DPMSolverMultistepInverseScheduler: the same steps from one noise level to the next higher one."""
    return multistep(dataclasses.replace(chain, config={**chain.config, "final_sigmas_type": "sigma_min"}))


def of_output(plan: Plan) -> Plan:
    """Rows of x and the network's output, with x0 multiplied out; where it is bent, as they are.

    A first step from a clean image to a level far above is the difference of large multiples of x0 and x.
    """
    if plan.clip or plan.thresholding is not None:
        return plan
    table = plan.table.copy()
    table[:, [Column.FROM_X, Column.FROM_M]] = table[:, [Column.LINEAR_X, Column.LINEAR_M]]
    table[:, Column.FROM_X0] = 0.0
    return dataclasses.replace(plan, table=table)


def singlestep(chain: Chain) -> Tableau:
    """DPMSolverSinglestepScheduler of order 1 to 3: a step of order k begins k - 1 rows before.

    Of a random one 1 or 2, which needs the state from before the noise of its first row: that row keeps it.
    """
    config = chain.config
    step = _Step(str(config["algorithm_type"]), str(config["solver_type"]))
    if step.is_random and max(chain.scheduler.order_list) > 2:
        given = "3 with an algorithm with noise, whose rows need two sums of what the first one keeps,"
        raise BadArgument("solver_order", given, "1 or 2")
    tableau, state, noise = Tableau(step.prediction), None, 0.0
    known: list[Sum] = []
    began: Sum | None = None
    for row in chain.rows:
        order = min(int(chain.scheduler.order_list[row]), len(known) + 1)
        x, value = tableau.evaluate(chain.points[row], state, noise=noise, is_start=order == 1)
        known = [value, *known][: int(config["solver_order"])]
        if order == 1 or began is None:
            began, order = x, 1
        levels = [chain.levels[row + 1], *chain.levels[row::-1][:order]]
        state, noise = step.single(began, known[:order], levels)
    return tableau.ended(state, noise=noise)


def deis(chain: Chain) -> Tableau:
    """DEISMultistepScheduler: tAB-DEIS (Zhang and Chen 2023) in log sigma, of order 1 to 3."""
    config = chain.config
    few = bool(config["lower_order_final"]) and chain.steps < FEW_STEPS
    tableau, state = Tableau("eps"), None
    known: list[Sum] = []
    for row in chain.rows:
        x, eps = tableau.evaluate(chain.points[row], state)
        known = [eps, *known][: int(config["solver_order"])]
        order = len(known)
        if few and row >= chain.steps - 2:
            order = min(order, chain.steps - row)
        kept, weights = _deis_weights(chain.levels[row + 1], chain.levels[row::-1][:order])
        state = kept * x
        for weight, value in zip(weights, known, strict=False):
            state = state + weight * value
    return tableau.ended(state)


def _deis_weights(t: Level, nodes: list[Level]) -> tuple[float, list[float]]:
    """Of the state, and of the predictions at ``nodes``, the newest first: by polynomials in log sigma.

    In float32 and in diffusers' order: it takes differences of close logarithms, and where levels are close
    (beta sigmas) its images come from what is lost there.
    """
    s = nodes[0]
    if len(nodes) == 1:
        h = t.log_snr - s.log_snr
        return float(t.alpha / s.alpha), [float(-t.sigma * (torch.exp(h) - 1.0))]
    end, *rho = (level.sigma / level.alpha for level in (t, *nodes))
    weights = []
    for k in range(len(rho)):
        own, *others = [*rho[k:], *rho[:k]]
        primitive = _second_primitive if len(others) == 1 else _third_primitive
        weights.append(float(t.alpha * (primitive(end, own, *others) - primitive(rho[0], own, *others))))
    return float(t.alpha / s.alpha), weights


def _second_primitive(t: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return t * (-_log(c) + _log(t) - 1) / (_log(b) - _log(c))


def _third_primitive(t: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    above = t * (
        _log(c) * (_log(d) - _log(t) + 1) - _log(d) * _log(t) + _log(d) + _log(t) ** 2 - 2 * _log(t) + 2
    )
    return above / ((_log(b) - _log(c)) * (_log(b) - _log(d)))


def _log(value: Tensor) -> Tensor:
    """NumPy's, as there: torch's is now and then another in the last place."""
    return torch.from_numpy(np.asarray(np.log(value.numpy())))


class _Step:
    """The updates of an algorithm, in float32 and in diffusers' order.

    ``levels`` are the end of the step and then the predictions', newest first.
    """

    def __init__(self, algorithm: str, solver_type: str) -> None:
        check_choice("algorithm_type", algorithm, ALGORITHMS)
        check_choice("solver_type", solver_type, ("midpoint", "heun"))
        self.is_midpoint = solver_type == "midpoint"
        self.is_random = algorithm.startswith("sde")
        self.prediction: Prediction = "x0" if algorithm.endswith("++") else "eps"

    def multi(self, x: Sum, known: list[Sum], levels: list[Level]) -> tuple[Sum, float]:
        """From the newest level on, and the noise added."""
        t, s = levels[0], levels[1]
        h = t.log_snr - s.log_snr
        state, noise = self._first(x, known[0], s, t)
        r = [(a.log_snr - b.log_snr) / h for a, b in itertools.pairwise(levels[1:])]
        if len(known) == 2:
            slope = (known[0] - known[1]) * (1.0 / r[0])
            state = state + self._second(s, t) * slope
        elif len(known) == 3:
            if self.is_random and self.prediction == "eps":
                raise BadArgument(
                    "solver_order", "3 with algorithm_type 'sde-dpmsolver', which has none,", "1 or 2"
                )
            newer, older = (known[0] - known[1]) * (1.0 / r[0]), (known[1] - known[2]) * (1.0 / r[1])
            slope = newer + (newer - older) * (r[0] / (r[0] + r[1]))
            curve = (newer - older) * (1.0 / (r[0] + r[1]))
            state = state + self._slope(s, t) * slope + self._curve(s, t) * curve
        return state, noise

    def single(self, x: Sum, known: list[Sum], levels: list[Level]) -> tuple[Sum, float]:
        """From the oldest level on, where the state is ``x``."""
        t, s = levels[0], levels[-1]
        state, noise = self._first(x, known[-1], s, t)
        r = [(level.log_snr - s.log_snr) / (t.log_snr - s.log_snr) for level in levels[1:-1]]
        if len(known) == 2:
            slope = (known[0] - known[1]) * (1.0 / r[0])
            state = state + self._second(s, t) * slope
        elif len(known) == 3:
            nearer, farther = (known[1] - known[2]) * (1.0 / r[1]), (known[0] - known[2]) * (1.0 / r[0])
            if self.is_midpoint:
                state = state + self._slope(s, t) * farther
            else:
                slope = (nearer * r[0] - farther * r[1]) / (r[0] - r[1])
                curve = (farther - nearer) * (2.0 / (r[0] - r[1]))
                state = state + self._slope(s, t) * slope + self._curve(s, t) * curve
        return state, noise

    def _first(self, x: Sum, value: Sum, s: Level, t: Level) -> tuple[Sum, float]:
        """The first-order part: from the state and the prediction; and the noise."""
        if t.is_clean and self.prediction == "eps":
            raise BadArgument(
                "final_sigmas_type",
                "'zero' with an algorithm in eps, infinite in the last step,",
                "'sigma_min'",
            )
        h = t.log_snr - s.log_snr
        noise = 0.0
        if self.prediction == "x0":
            kept = t.sigma / s.sigma
            if self.is_random:
                noise = float(t.sigma * torch.sqrt(1.0 - torch.exp(-2 * h)))
                kept = kept * torch.exp(-h)
        else:
            kept = t.alpha / s.alpha
            if self.is_random:
                noise = float(t.sigma * torch.sqrt(torch.exp(2 * h) - 1.0))
        return float(kept) * x + self._weight(s, t) * value, noise

    def _weight(self, s: Level, t: Level) -> float:
        """Of a prediction: the exponential's integral over the step."""
        h = t.log_snr - s.log_snr
        if self.prediction == "eps":
            return float((-2.0 if self.is_random else -1.0) * (t.sigma * (torch.exp(h) - 1.0)))
        if self.is_random:
            return float(t.alpha * (1 - torch.exp(-2.0 * h)))
        return float(-(t.alpha * (torch.exp(-h) - 1.0)))

    def _second(self, s: Level, t: Level) -> float:
        """Of the slope, in a step of second order."""
        return self._weight(s, t) / 2 if self.is_midpoint else self._slope(s, t)

    def _slope(self, s: Level, t: Level) -> float:
        h = t.log_snr - s.log_snr
        if self.prediction == "eps":
            return float((-2.0 if self.is_random else -1.0) * (t.sigma * ((torch.exp(h) - 1.0) / h - 1.0)))
        z = -2.0 * h if self.is_random else -h
        return float(t.alpha * ((torch.exp(z) - 1.0) / -z + 1.0))

    def _curve(self, s: Level, t: Level) -> float:
        h = t.log_snr - s.log_snr
        if self.prediction == "eps":
            return float(-t.sigma * ((torch.exp(h) - 1.0 - h) / h**2 - 0.5))
        if self.is_random:
            return float(t.alpha * ((1.0 - torch.exp(-2.0 * h) - 2.0 * h) / (2.0 * h) ** 2 - 0.5))
        return float(-t.alpha * ((torch.exp(-h) - 1.0 + h) / h**2 - 0.5))
