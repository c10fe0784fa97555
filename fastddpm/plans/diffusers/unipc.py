"""diffusers' UniPCMultistepScheduler: a predictor whose state is corrected by the next evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_choice
from fastddpm.plans.diffusers.chain import Chain
from fastddpm.plans.tableau import Sum, Tableau


def unipc(chain: Chain) -> Tableau:
    """UniPC (Zhao et al. 2023) of order 1 to 3, bh1 or bh2, in the prediction of x0 or of eps."""
    config, scheduler = chain.config, chain.scheduler
    if scheduler.solver_p is not None:
        raise BadArgument("solver_p", type(scheduler.solver_p).__name__, "None")
    check_choice("solver_type", config["solver_type"], ("bh1", "bh2"))
    predicts_x0 = bool(scheduler.predict_x0)
    tableau, state = Tableau("x0" if predicts_x0 else "eps"), None
    known: list[Sum] = []
    last: tuple[Sum, int] | None = None
    for row in chain.rows:
        x, value = tableau.evaluate(chain.points[row], state)
        if last is not None and row > 0 and row - 1 not in scheduler.disable_corrector:
            step = _Step(chain, row - 1, last[1], predicts_x0)
            x = step.state(last[0], known, end=value)
        known = [value, *known][: int(config["solver_order"])]
        order = int(config["solver_order"])
        if config["lower_order_final"]:
            order = min(order, chain.steps - row)
        order = min(order, len(known))
        last = x, order
        state = _Step(chain, row, order, predicts_x0).state(x, known)
    return tableau.ended(state)


class _Step:
    """A step of the predictor, or of the corrector with the prediction at its end."""

    def __init__(self, chain: Chain, row: int, order: int, predicts_x0: bool) -> None:
        self.s, self.t = chain.levels[row], chain.levels[row + 1]
        self.before = [chain.levels[row - back] for back in range(1, order)]
        self.order, self.predicts_x0 = order, predicts_x0
        self.is_bh1 = chain.config["solver_type"] == "bh1"

    def state(self, x: Sum, known: list[Sum], end: Sum | None = None) -> Sum:
        """Where the step leads; ``known`` has the newest first."""
        s, t = self.s, self.t
        if t.is_clean and (self.order > 1 or not self.predicts_x0):
            raise BadArgument(
                "final_sigmas_type",
                "'zero', by which the last step is infinite without lower_order_final or in eps,",
                "'sigma_min'",
            )
        h = t.log_snr - s.log_snr
        z = -h if self.predicts_x0 else h
        nodes = [(level.log_snr - s.log_snr) / h for level in self.before]
        differences = [(value - known[0]) / node for value, node in zip(known[1:], nodes, strict=False)]
        if end is not None:
            nodes, differences = [*nodes, torch.ones(())], [*differences, end - known[0]]
        integral = torch.expm1(z)
        scale = z if self.is_bh1 else integral
        if self.predicts_x0:
            state, factor = float(t.sigma / s.sigma) * x, t.alpha
        else:
            state, factor = float(t.alpha / s.alpha) * x, t.sigma
        state = state - float(factor * integral) * known[0]
        for weight, difference in zip(self._weights(nodes, z, scale), differences, strict=True):
            state = state - float(factor * scale) * weight * difference
        return state

    @staticmethod
    def _weights(nodes: list[Tensor], z: Tensor, scale: Tensor) -> list[float]:
        """Equation 7 of the paper; of one difference 1/2, whose order is the same (section 3.4)."""
        if len(nodes) <= 1:
            return [0.5] * len(nodes)
        phi, factorial, wanted = torch.expm1(z) / z - 1, 1, []
        powers = []
        ratios = torch.stack(nodes)
        for n in range(1, len(nodes) + 1):
            powers.append(torch.pow(ratios, n - 1))
            wanted.append(phi * factorial / scale)
            factorial *= n + 1
            phi = phi / z - 1 / factorial
        solved: list[float] = torch.linalg.solve(torch.stack(powers), torch.stack(wanted)).tolist()
        return solved
