"""A plan's table in ONNX: the rows of ddpm, ddim and dpmpp_2m for any timesteps, in float64.

The formulas are those of `fastddpm.plans.ddpm`, `ddim` and `dpmpp` under the same names, with abar = 1 after
the last step; the options of a network (what it predicts, the clip, ddpm's variance) are fixed in the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy.typing as npt

from fastddpm.export.nodes import BOOL, DOUBLE, END, FLOAT, INT32, INT64, Graph
from fastddpm.plans.dpmpp import SMALLEST_ALPHA_CUMPROD
from fastddpm.plans.method import METHODS
from fastddpm.plans.plan import LARGEST_RECIPROCAL
from fastddpm_kernels.table import N_COLUMNS, Column

LARGEST = 3.0e38
"""What float32 holds."""


@dataclass(frozen=True)
class TableOptions:
    """What of a sampler is fixed in the file; as in `fastddpm.Sampler`.

    Attributes:
        alphas_cumprod: float64 [T].
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``.
        variance_type: of ddpm.
        sigma_scale: of ddpm.
        clip: bound of x0, infinity for none.
    """

    alphas_cumprod: npt.ArrayLike
    prediction_type: str
    variance_type: str
    sigma_scale: float
    clip: float


@dataclass(frozen=True)
class _Visited:
    """Names of float64 [S] tensors at each step, and of bool [S] masks of the first and the last step."""

    abar: str
    abar_next: str
    is_first: str
    is_last: str


class Arithmetic:
    """float64 vectors of one graph; numbers become constants."""

    def __init__(self, g: Graph) -> None:
        self.g = g

    def _operand(self, value: str | float) -> str:
        return value if isinstance(value, str) else self.g.float64(value)

    def apply(self, op: str, *operands: str | float) -> str:
        """An operator on vectors and numbers."""
        return self.g(op, *map(self._operand, operands))

    def product(self, *factors: str | float) -> str:
        """factors[0] * factors[1] * ..."""
        result = self._operand(factors[0])
        for factor in factors[1:]:
            result = self.apply("Mul", result, factor)
        return result

    def one_minus(self, x: str) -> str:
        """1 - x."""
        return self.apply("Sub", 1.0, x)

    def sqrt(self, x: str) -> str:
        """The square root."""
        return self.g("Sqrt", x)


def plan_table(g: Graph, options: TableOptions, timesteps: str, method: str, eta: str) -> str:
    """The table, float32 [S, 16], of the plan that `fastddpm.plans.make_plan` makes.

    Args:
        g: where to compute it.
        options: what is fixed.
        timesteps: int64 [S], strictly descending in 0 .. T-1.
        method: int64 [], index into `METHODS`.
        eta: float32 [], of ddim.

    Running it fails (an index out of bounds) where a number of the table is not finite.
    """
    steps = g("Size", timesteps)
    index = g("Range", g.int64(0), steps, g.int64(1))
    abar = g("Gather", g.float64(options.alphas_cumprod), timesteps)
    visited = _Visited(
        abar=abar,
        abar_next=g("Concat", g.slice(abar, 1, END, 0), g.float64([1.0]), axis=0),
        is_first=g("Equal", index, g.int64(0)),
        is_last=g("Equal", index, g("Sub", steps, g.int64(1))),
    )
    by_method = {
        "ddpm": _ddpm(Arithmetic(g), options, visited),
        "ddim": _ddim(Arithmetic(g), options, visited, g("Cast", eta, to=DOUBLE)),
        "dpmpp_2m": _dpmpp_2m(Arithmetic(g), options, visited),
    }
    length = g("Shape", timesteps)
    tables = [_stacked(g, by_method[name], options.clip, length) for name in METHODS]
    table = g("Gather", g("Concat", *tables, axis=0), method)
    largest = [math.inf if column == Column.X0_BOUND else LARGEST for column in range(N_COLUMNS)]
    is_finite = g("LessOrEqual", g("Abs", table), g.float64(largest))
    table = g("Gather", table, only_if(g, [is_finite], index, steps), axis=0)
    return g("Cast", table, to=FLOAT)


def only_if(g: Graph, conditions: Sequence[str], index: str, outside: str) -> str:
    """``index`` if all of the bool tensors hold, else ``outside``, at which reading a tensor is an error."""
    flags = [g("Reshape", g("Cast", one, to=INT32), g.int64([-1])) for one in conditions]
    all_hold = g("ReduceMin", g("Concat", *flags, axis=0), keepdims=0)
    return g("Where", g("Cast", all_hold, to=BOOL), index, outside)


def accepted(g: Graph, timesteps: str, method: str, eta: str) -> list[str]:
    """Bool tensors: whether timesteps descend strictly to no less than 0, method is one, eta is in [0, 1]."""
    following = g("Concat", g.slice(timesteps, 1, END, 0), g.int64([-1]), axis=0)
    return [
        g("Greater", timesteps, following),
        g("GreaterOrEqual", timesteps, g.int64(0)),
        g("GreaterOrEqual", method, g.int64(0)),
        g("GreaterOrEqual", eta, g.float32(0.0)),
        g("LessOrEqual", eta, g.float32(1.0)),
    ]


def noise_levels(g: Graph, options: TableOptions, timesteps: str) -> str:
    """sqrt(abar), float32 [S]: what a network of SR3 is told instead of the timestep."""
    abar = g("Gather", g.float64(options.alphas_cumprod), g("Cast", timesteps, to=INT64))
    return g("Cast", g("Sqrt", abar), to=FLOAT)


def _ddpm(a: Arithmetic, options: TableOptions, visited: _Visited) -> dict[Column, str | float]:
    """Ho et al. 2020, equations 6, 7 and 11."""
    abar, abar_next = visited.abar, visited.abar_next
    p, q = _prediction(a, options, a.sqrt(abar), a.sqrt(a.one_minus(abar)))
    alpha = a.apply("Div", abar, abar_next)
    beta = a.one_minus(alpha)
    rest = a.apply("Div", a.one_minus(abar_next), a.one_minus(abar))
    variance = a.product(beta, rest)
    columns: dict[Column, str | float] = {
        Column.X0_FROM_X: p,
        Column.X0_FROM_M: q,
        Column.FROM_X0: a.apply("Div", a.product(a.sqrt(abar_next), beta), a.one_minus(abar)),
        Column.FROM_X: a.product(a.sqrt(alpha), rest),
    }
    if options.variance_type == "learned_range":
        sigma = a.apply("Add", a.product(beta, 0.0), 1.0)
        columns[Column.LOG_VAR_MIN] = a.g("Log", a.apply("Max", variance, 1e-20))
        columns[Column.LOG_VAR_MAX] = a.g("Log", a.apply("Max", beta, 1e-20))
    else:
        sigma = a.sqrt(variance if options.variance_type == "fixed_small" else beta)
    columns[Column.FROM_NOISE] = a.product(options.sigma_scale, a.apply("Where", visited.is_last, 0.0, sigma))
    return columns


def _ddim(a: Arithmetic, options: TableOptions, visited: _Visited, eta: str) -> dict[Column, str | float]:
    """Song et al. 2021, equations 12 and 16, eps computed anew from the clipped x0."""
    abar, abar_next = visited.abar, visited.abar_next
    alpha, sigma = a.sqrt(abar), a.sqrt(a.one_minus(abar))
    p, q = _prediction(a, options, alpha, sigma)
    rest = a.apply("Div", a.one_minus(abar_next), a.one_minus(abar))
    variance = a.product(eta, eta, rest, a.one_minus(a.apply("Div", abar, abar_next)))
    variance = a.apply("Where", visited.is_last, 0.0, variance)
    direction = a.sqrt(a.apply("Max", a.apply("Sub", a.one_minus(abar_next), variance), 0.0))
    per_sigma = a.apply("Div", direction, sigma)
    return {
        Column.X0_FROM_X: p,
        Column.X0_FROM_M: q,
        Column.FROM_X0: a.apply("Sub", a.sqrt(abar_next), a.product(per_sigma, alpha)),
        Column.FROM_X: per_sigma,
        Column.FROM_NOISE: a.sqrt(variance),
    }


def _dpmpp_2m(a: Arithmetic, options: TableOptions, visited: _Visited) -> dict[Column, str | float]:
    """Lu et al. 2022b, algorithm 2; first order in the first step and in the last, onto the clean image."""
    g = a.g
    abar = a.apply("Where", a.apply("Equal", visited.abar, 0.0), SMALLEST_ALPHA_CUMPROD, visited.abar)
    alpha, sigma = a.sqrt(abar), a.sqrt(a.one_minus(abar))
    alpha_next, sigma_next = a.sqrt(visited.abar_next), a.sqrt(a.one_minus(visited.abar_next))
    p, q = _prediction(a, options, alpha, sigma)
    h = a.apply(
        "Sub", g("Log", a.apply("Div", alpha_next, sigma_next)), g("Log", a.apply("Div", alpha, sigma))
    )
    h_prev = g("Concat", g.float64([1.0]), g.slice(h, 0, -1, 0), axis=0)
    second_order = a.apply("Div", h, a.product(2.0, h_prev))
    weight = a.apply("Where", g("Or", visited.is_first, visited.is_last), 0.0, second_order)
    # alpha_t (1 - e^-h), e^-h written out: ONNX has no expm1, and where sigma_t is 0 this is finite.
    ratio = a.apply("Div", sigma_next, sigma)
    k = a.apply("Sub", alpha_next, a.product(alpha, ratio))
    return {
        Column.X0_FROM_X: p,
        Column.X0_FROM_M: q,
        Column.FROM_X0: a.product(k, a.apply("Add", 1.0, weight)),
        Column.FROM_X: ratio,
        Column.FROM_X0_PREV: a.apply("Sub", 0.0, a.product(k, weight)),
    }


def _prediction(
    a: Arithmetic, options: TableOptions, alpha: str, sigma: str
) -> tuple[str | float, str | float]:
    """p and q with x0 = p*x + q*m; as `fastddpm.plans.plan.prediction_columns`."""
    if options.prediction_type == "sample":
        return 0.0, 1.0
    if options.prediction_type == "v_prediction":
        return alpha, a.product(sigma, -1.0)
    p = a.apply("Div", 1.0, alpha)
    if options.clip != math.inf:
        p = a.apply("Min", p, LARGEST_RECIPROCAL)
    return p, a.product(sigma, p, -1.0)


def _stacked(g: Graph, columns: dict[Column, str | float], clip: float, length: str) -> str:
    """Columns, float64 [S] or one number, as float64 [1, S, 16]; those left out are 0."""
    a = Arithmetic(g)
    p, q, from_x0, from_x = (
        columns[c] for c in (Column.X0_FROM_X, Column.X0_FROM_M, Column.FROM_X0, Column.FROM_X)
    )
    columns = {
        **columns,
        Column.X0_BOUND: clip,
        Column.LINEAR_X: a.apply("Add", a.product(from_x0, p), from_x),
        Column.LINEAR_M: a.product(from_x0, q),
    }
    vectors = []
    for index in range(N_COLUMNS):
        column = columns.get(Column(index), 0.0) if index < len(Column) else 0.0
        vector = column if isinstance(column, str) else g("Expand", g.float64(column), length)
        vectors.append(g("Unsqueeze", vector, g.int64([0, 2])))
    return g("Concat", *vectors, axis=2)
