"""diffusers' SASolverScheduler: a stochastic Adams predictor and corrector (Xue et al. 2023, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_choice
from fastddpm.plans.diffusers.chain import Chain, Level
from fastddpm.plans.solver import basis
from fastddpm.plans.tableau import Sum, Tableau

ALGORITHMS = ("data_prediction", "noise_prediction")


def sasolver(chain: Chain) -> Tableau:
    """SA-Solver, of x0 or of eps, with the tau of the scheduler's ``tau_func``: 0 is an ODE's, 1 the SDE's.

    The corrector has the predictor's noise and the same part of the state, so that a corrected state is the
    predicted one with another integral: no earlier state is needed.
    """
    config = chain.config
    check_choice("algorithm_type", config["algorithm_type"], ALGORITHMS)
    for name in ("predictor_order", "corrector_order"):
        if int(config[name]) < 1:  # which fails in the original
            raise BadArgument(name, str(config[name]), "1 or more")
    predicts_x0 = config["algorithm_type"] == "data_prediction"
    if config["thresholding"] and not predicts_x0:
        given = "True with algorithm_type 'noise_prediction', which fails in the original,"
        raise BadArgument("thresholding", given, "False")
    timesteps = chain.scheduler.timesteps.cpu()
    most = max(int(config["predictor_order"]), int(config["corrector_order"]) - 1)
    tableau, state, noise = Tableau("x0" if predicts_x0 else "eps"), None, 0.0
    known: list[Sum] = []
    last: tuple[_Step, Sum, int] | None = None
    for row in chain.rows:
        x, value = tableau.evaluate(chain.points[row], state, noise=noise)
        if last is not None and row > 0:
            step, predicted, order = last
            nodes = chain.levels[row::-1][:order]
            x = x + step.integral([value, *known][:order], nodes, corrects=True) - predicted
        before = min(row - chain.start, most)
        known = [value, *known][:most]
        left = chain.steps - row if config["lower_order_final"] else most + 1
        order = min(int(config["predictor_order"]), left, before + 1)
        tau = float(chain.scheduler.tau_func(timesteps[row]))
        step = _Step(chain.levels[row], chain.levels[row + 1], tau, predicts_x0)
        integral = step.integral(known[:order], chain.levels[row::-1][:order], corrects=False)
        kept, noise = step.linear()
        state = kept * x + integral
        last = step, integral, min(int(config["corrector_order"]), left + 1, before + 2)
    return tableau.ended(state, noise=noise)


class _Step:
    """A step from s to t in lambda, in float32 as there, its integrals in float64."""

    def __init__(self, s: Level, t: Level, tau: float, predicts_x0: bool) -> None:
        self.s, self.t, self.tau, self.predicts_x0 = s, t, tau, predicts_x0
        self.h = t.log_snr - s.log_snr
        self.rate = 1 + tau**2

    def linear(self) -> tuple[float, float]:
        """The state's weight, and the noise's."""
        s, t, tau, h = self.s, self.t, self.tau, self.h
        if self.predicts_x0:
            kept = torch.exp(-(tau**2) * h) * (t.sigma / s.sigma)
            return float(kept), float(t.sigma * torch.sqrt(1 - torch.exp(-2 * tau**2 * h)))
        return float(t.alpha / s.alpha), float(tau * t.sigma * torch.sqrt(torch.exp(2 * h) - 1))

    def integral(self, known: list[Sum], nodes: list[Level], *, corrects: bool) -> Sum:
        """Of the polynomial through predictions at ``nodes``, both with the newest first."""
        weights = self._weights([level.log_snr for level in nodes])
        if len(known) == 2 and self.predicts_x0:
            extra = self._second_order(nodes, corrects=corrects)
            weights = [weights[0] + extra, weights[1] - extra]
        if self.predicts_x0:
            factor = self.rate * self.t.sigma * torch.exp(-(self.tau**2) * self.t.log_snr)
        else:
            factor = -self.rate * self.t.alpha
        total = Sum({})
        for weight, value in zip(weights, known, strict=True):
            total = total + value * (factor * weight)
        return total

    def _weights(self, lambdas: list[Tensor]) -> list[Tensor]:
        moments = [self._moment(power) for power in range(len(lambdas))]
        nodes = [float(value) for value in lambdas]
        weights = []
        for own in nodes:
            coefficients = basis(nodes, own).coef
            weights.append(
                sum((float(c) * m for c, m in zip(coefficients, moments, strict=True)), torch.zeros(()))
            )
        return weights

    def _moment(self, power: int) -> Tensor:
        """The integral of lambda^power e^(rate lambda) over the step, or of lambda^power e^-lambda."""
        start, end = self.s.log_snr.double(), self.t.log_snr.double()
        integral: Tensor
        if self.predicts_x0:
            start, end = self.rate * start, self.rate * end
            integral = (
                torch.exp(end)
                * (_primitive(end, power) - _primitive(start, power) * torch.exp(start - end))
                / self.rate ** (power + 1)
            )
            return integral
        sign = (-1) ** power
        integral = (
            torch.exp(-end)
            * sign
            * (_primitive(-start, power) * torch.exp(end - start) - _primitive(-end, power))
        )
        return integral

    def _second_order(self, nodes: list[Level], *, corrects: bool) -> Tensor:
        """What diffusers adds to the first weight of an order of 2, and takes from the second."""
        h, rate = self.h, self.rate
        grown = (h * rate - 1 + torch.exp(rate * -h)) / rate**2
        scale = torch.exp(rate * self.t.log_snr)
        if corrects:
            return scale * (h / 2 - grown / h)
        return scale * (h**2 / 2 - grown) / (nodes[0].log_snr - nodes[1].log_snr)


def _primitive(z: Tensor, power: int) -> Tensor:
    """P with (P(z) e^z)' = z^power e^z."""
    total, factor = torch.zeros_like(z), 1.0
    for k in range(power, -1, -1):
        total = total + factor * z**k
        factor *= -k
    return total
