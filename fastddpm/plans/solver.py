"""What a solver is: a function from the points of a chain to the rows of a plan, and what it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.polynomial import Polynomial

from fastddpm.plans.tableau import Point, Tableau


@dataclass(frozen=True)
class SolverOptions:
    """What a solver is told besides its points.

    Attributes:
        order: of the solver.
        at_ratio: the point where sigma/alpha is so much, for solvers that evaluate between two points.
        at_timestep: the point of a training timestep.
        eta: of solvers that can be more or less random, in [0, 1].
    """

    order: int
    at_ratio: Callable[[float], Point]
    at_timestep: Callable[[int], Point]
    eta: float = 0.0


def basis(nodes: list[float], own: float) -> Polynomial:
    """Lagrange's polynomial that is 1 at ``own`` and 0 at the other nodes."""
    product = Polynomial([1.0])
    for node in nodes:
        if node != own:
            product = product * Polynomial([-node, 1.0]) / (own - node)
    return product


Solver = Callable[[list[Point], SolverOptions], Tableau]
