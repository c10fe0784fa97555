"""The timesteps of so many steps in ONNX: `fastddpm.plans.spaced_timesteps` of a number that is an input."""

from __future__ import annotations

from fastddpm.checks import BadArgument
from fastddpm.export.nodes import DOUBLE, INT64, Graph
from fastddpm.plans import Method
from fastddpm.plans.registry import METHODS, formulas
from fastddpm.plans.spacing import SPACINGS, TimestepSpacing


def spacing_of(method: Method) -> TimestepSpacing:
    """By which the steps of formulas are spaced in a file that is told their number.

    Raises:
        ValueError: a formula's timesteps were given by hand, which are of one number.
    """
    if method.has_formula and method.timesteps is not None:
        raise BadArgument("timesteps", "a list", "a number of steps and a spacing")
    # In the place of a solver's spacing too, as `Method.adapted` does.
    return method.timestep_spacing if method.timestep_spacing in SPACINGS else "leading"


def spaced(g: Graph, total: int, steps: str, method: str, spacing: TimestepSpacing) -> str:
    """S of the timesteps T-1 .. 0: int64 [S].

    Args:
        g: where to compute it.
        total: T.
        steps: int64 [], S, in 1 .. T.
        method: int64 [], number of the formula.
        spacing: one of `fastddpm.plans.spacing.SPACINGS`.
    """
    index = g("Range", g.int64(0), steps, g.int64(1))
    if spacing == "trailing":
        upward = g("Cast", g("Mul", g("Sub", steps, index), g.int64(total)), to=DOUBLE)
        rounded = g("Round", g("Div", upward, g("Cast", steps, to=DOUBLE)))
        return g("Sub", g("Cast", rounded, to=INT64), g.int64(1))
    skips = g("Gather", g.int64([int(METHODS[name].skips_last) for name in formulas()]), method)
    last = g("Sub", g("Add", steps, skips), g.int64(1))
    place = g("Sub", last, index)
    if spacing == "leading":
        found = g("Mul", place, g("Div", g.int64(total), g("Add", last, g.int64(1))))
    else:
        stride = g("Div", g.float64(total - 1), g("Cast", g("Max", last, g.int64(1)), to=DOUBLE))
        rounded = g("Cast", g("Round", g("Mul", g("Cast", place, to=DOUBLE), stride)), to=INT64)
        found = g("Where", g("Equal", last, g.int64(0)), g.int64(total - 1), rounded)
    every = g("Sub", g.int64(total - 1), index)
    return g("Where", g("Equal", steps, g.int64(total)), every, found)
