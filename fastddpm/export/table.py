"""A plan's table in ONNX: the rows of every method for any timesteps, in float64.

The formulas are those of `fastddpm.plans`, on vectors of the graph; the options of a network (what it
predicts, the clip, ddpm's variance) are fixed in the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from fastddpm.export.errors import ExportError
from fastddpm.export.nodes import BOOL, DOUBLE, END, FLOAT, INT32, INT64, Graph
from fastddpm.export.vector import Vector
from fastddpm.plans.formula import Columns, FormulaOptions, Passed
from fastddpm.plans.plan import Float64, collapsed
from fastddpm.plans.registry import formulas
from fastddpm.plans.time_input import LevelInput
from fastddpm_kernels.table import Column

LARGEST = 3.0e38
"""What float32 holds."""

ROW_COLUMNS = 16
"""Of a plan's row, those that a formula fills, and step.onnx reads: of earlier predictions one x0."""

COLUMNS = (
    Column.X0_FROM_X,
    Column.X0_FROM_M,
    Column.FROM_X0,
    Column.FROM_X,
    Column.FROM_M,
    Column.FROM_KEPT_1,
    Column.FROM_NOISE,
    Column.LOG_VAR_MIN,
    Column.LOG_VAR_MAX,
)
"""What a step in a file reads of a row, besides the bound; see `fastddpm.export.update`."""


@dataclass(frozen=True)
class TableOptions:
    """What of a sampler is fixed in the file.

    Attributes:
        alphas_cumprod: float64 [T].
        formula: what the formulas are told, but for eta.
        clip: bound of x0, infinity for none.
    """

    alphas_cumprod: npt.ArrayLike
    formula: FormulaOptions
    clip: float


def plan_table(g: Graph, options: TableOptions, timesteps: str, method: str, eta: str) -> str:
    """The table, float32 [S, 16], of the plan that `fastddpm.plans.make_plan` makes.

    Args:
        g: where to compute it.
        options: what is fixed.
        timesteps: int64 [S], strictly descending in 0 .. T-1.
        method: int64 [], index into the methods that have a formula.
        eta: float32 [], of ddim.

    Running it fails (an index out of bounds) where a number of the table is not finite.

    Raises:
        ExportError: the formula of a method uses what cannot be exported.
    """
    steps = g("Size", timesteps)
    index = g("Range", g.int64(0), steps, g.int64(1))
    abar = g("Gather", g.float64(options.alphas_cumprod), timesteps)
    passed = Passed(
        abar=_in_place_of_array(g, abar),
        abar_next=_in_place_of_array(g, g("Concat", g.slice(abar, 1, END, 0), g.float64([1.0]), axis=0)),
        is_first=_in_place_of_array(g, g("Equal", index, g.int64(0))),
        is_last=_in_place_of_array(g, g("Equal", index, g("Sub", steps, g.int64(1)))),
    )
    told = replace(options.formula, eta=_in_place_of_array(g, g("Cast", eta, to=DOUBLE)))
    length = g("Shape", timesteps)
    tables = [_stacked(g, formula(passed, told), options.clip, length) for formula in formulas().values()]
    table = g("Gather", g("Concat", *tables, axis=0), method)
    largest = [math.inf if column == Column.X0_BOUND else LARGEST for column in range(ROW_COLUMNS)]
    is_finite = g("LessOrEqual", g("Abs", table), g.float64(largest))
    table = g("Gather", table, only_if(g, [is_finite], index, steps), axis=0)
    return g("Cast", table, to=FLOAT)


def only_if(g: Graph, conditions: Sequence[str], index: str, outside: str) -> str:
    """``index`` if all of the bool tensors hold, else ``outside``, at which reading a tensor is an error."""
    flags = [g("Reshape", g("Cast", one, to=INT32), g.int64([-1])) for one in conditions]
    all_hold = g("ReduceMin", g("Concat", *flags, axis=0), keepdims=0)
    return g("Where", g("Cast", all_hold, to=BOOL), index, outside)


def descending(g: Graph, timesteps: str) -> list[str]:
    """Bool tensors: whether timesteps descend strictly to no less than 0."""
    following = g("Concat", g.slice(timesteps, 1, END, 0), g.int64([-1]), axis=0)
    return [g("Greater", timesteps, following), g("GreaterOrEqual", timesteps, g.int64(0))]


def accepted(g: Graph, method: str, eta: str) -> list[str]:
    """Bool tensors: whether method is no less than 0, and eta in [0, 1]."""
    return [
        g("GreaterOrEqual", method, g.int64(0)),
        g("GreaterOrEqual", eta, g.float32(0.0)),
        g("LessOrEqual", eta, g.float32(1.0)),
    ]


def levels_told(g: Graph, options: TableOptions, timesteps: str, time_input: LevelInput) -> str:
    """sqrt(abar), which a network of SR3 is told instead of the timestep, or Palette's abar: float32 [S]."""
    abar = g("Gather", g.float64(options.alphas_cumprod), g("Cast", timesteps, to=INT64))
    return g("Cast", g("Sqrt", abar) if time_input == "noise_level" else abar, to=FLOAT)


def _stacked(g: Graph, columns: Columns, clip: float, length: str) -> str:
    """Columns, vectors or numbers, as float64 [1, S, 16]; those left out are 0."""
    values = {Column[name.upper()]: value for name, value in columns.items()}
    beyond = [column.name.lower() for column in values if column not in COLUMNS]
    if beyond:
        raise ExportError(f"formula: the column {beyond[0]} given, which no file has a step for")
    p, q, a, b, e = (
        _in_place_of_array(g, _name(g, values.get(column, 0.0), length))
        for column in (
            Column.X0_FROM_X,
            Column.X0_FROM_M,
            Column.FROM_X0,
            Column.FROM_X,
            Column.FROM_M,
        )
    )
    values[Column.LINEAR_X], values[Column.LINEAR_M] = collapsed(p, q, a, b, e)
    values[Column.X0_BOUND] = clip
    stacked = []
    for index in range(ROW_COLUMNS):
        value = values.get(Column(index), 0.0) if index < len(Column) else 0.0
        stacked.append(g("Unsqueeze", _name(g, value, length), g.int64([0, 2])))
    return g("Concat", *stacked, axis=2)


def _in_place_of_array(g: Graph, name: str) -> Any:
    """A vector, which a formula may do with what it may do with an array, or with the number eta."""
    return Vector(g, name)


def _name(g: Graph, value: Float64 | float, length: str) -> str:
    """The name of a float64 [S]."""
    if isinstance(value, Vector):
        # One that eta alone went into has no length yet.
        return g("Expand", value.name, length)
    return g("Expand", g.float64(value), length)
