"""What a solver is: a function from the points of a chain to the rows of a plan, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.polynomial import Polynomial

from fastddpm.plans.tableau import Point, Tableau

FEW_STEPS = 15
"""Below this many steps `lower_order_final` lowers orders, as in the authors' code of DPM-Solver."""


@dataclass(frozen=True)
class SolverOptions:
    """What a solver is told besides its points.

    Attributes:
        order: of the solver.
        at_ratio: the point where sigma/alpha is so much, for solvers that evaluate between two points.
        at_timestep: the point of a training timestep.
        eta: of solvers that can be more or less random, in [0, 1].
        lower_order_final: of solvers of higher order: the last steps of a short chain are of lower order.
    """

    order: int
    at_ratio: Callable[[float], Point]
    at_timestep: Callable[[int], Point]
    eta: float = 0.0
    lower_order_final: bool = False

    def order_left(self, left: int, steps: int) -> int:
        """The order of a multistep solver where ``left`` of its steps are left, this one among them.

        With `lower_order_final`, of fewer than 15 steps the last is of order 1 and the last but one of order
        2 at most, as in the authors' code of DPM-Solver and in diffusers.
        """
        return min(self.order, left) if self.lower_order_final and steps < FEW_STEPS else self.order


def basis(nodes: list[float], own: float) -> Polynomial:
    """Lagrange's polynomial that is 1 at ``own`` and 0 at the other nodes."""
    product = Polynomial([1.0])
    for node in nodes:
        if node != own:
            product = product * Polynomial([-node, 1.0]) / (own - node)
    return product


Solver = Callable[[list[Point], SolverOptions], Tableau]
