"""The plan that sampler.onnx walks: computed by a method's formula, or rows that the file is given.

Rows are `table` and `model_time` of any `fastddpm.plans.Plan`, a solver's as well. An export
of a solver holds its own, for callers that give none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from fastddpm.export.nodes import FLOAT, Graph, value
from fastddpm.export.table import (
    LARGEST,
    ROW_COLUMNS,
    TableOptions,
    accepted,
    descending,
    levels_told,
    only_if,
    plan_table,
)
from fastddpm.onnx.walk import KEPT_IN_FILES
from fastddpm.plans import Plan
from fastddpm.plans.registry import formulas
from fastddpm.plans.time_input import TimeInput
from fastddpm_kernels.table import EPS, KEPT, N_COLUMNS, Column

REMEMBERED = slice(int(Column.FROM_KEPT_2), int(Column.KEPT_SLOT) + 1)
"""Columns that are 0 in plans that keep no more than the last x0."""


@dataclass(frozen=True)
class Times:
    """What the network is told.

    Attributes:
        kind: ONNX's number of the dtype.
        time_input: what that is; with no formulas, logarithms of levels.
        least: the smallest.
        last: the largest.
        formulas: methods whose rows the file computes, by their numbers; rows that it is given have the
            number behind these.
    """

    kind: int
    time_input: TimeInput
    least: float
    last: float
    formulas: tuple[str, ...]


@dataclass(frozen=True)
class Walk:
    """Names of what a file knows of the plan that it walks.

    Attributes:
        table: float32 [S, 32].
        times: [S], what the network is told.
        steps: int64 [], S.
        remembers: bool [], whether rows keep more than the last x0.
        combines: bool [], whether what they keep is a sum.
    """

    table: str
    times: str
    steps: str
    remembers: str
    combines: str


@dataclass(frozen=True)
class Inputs:
    """Names of what a method's rows are computed of: int64 [S], int64 [] and float32 []."""

    timesteps: str
    method: str
    eta: str


INPUTS = Inputs("timesteps", "method", "eta")
"""Of a file."""


def walk(g: Graph, options: TableOptions, times: Times, conditions: Sequence[str]) -> Walk:
    """The plan of the inputs ``timesteps``, ``method`` and ``eta``, or of ``rows`` and ``times``.

    Running it fails (an index out of bounds) where one of these is out of its range.

    Args:
        g: the outermost graph.
        options: what is fixed of the formulas.
        times: what the network is told.
        conditions: names of bools of other inputs, which have to hold too.
    """
    conditions = [*conditions, *accepted(g, "method", "eta")]
    is_given = g("Equal", "method", g.int64(len(times.formulas)))
    if not times.formulas:
        _given(g, times, [*conditions, is_given])
        return _walked(g, "given_table", "given_times")
    branches = [_given(Graph(g), times, conditions), computed(Graph(g), options, times, conditions)]
    finished = [
        branch.finished(
            name,
            [],
            [
                value(f"{name}_table", FLOAT, ["rows", N_COLUMNS]),
                value(f"{name}_times", times.kind, ["rows"]),
            ],
        )
        for name, branch in zip(("given", "computed"), branches, strict=True)
    ]
    table, told = g.subgraphs("If", is_given, outputs=2, then_branch=finished[0], else_branch=finished[1])
    return _walked(g, table, told)


def _walked(g: Graph, table: str, times: str) -> Walk:
    steps, remembers, combines = g("Size", times), _any(g, table, REMEMBERED), _any(g, table, KEPT)
    return Walk(table=table, times=times, steps=steps, remembers=remembers, combines=combines)


def row_inputs(g: Graph, plan: Plan | None, times: Times) -> list[onnx.ValueInfoProto]:
    """``rows`` and ``times``, which may be left out: they are then those of a plan, or none."""
    rows: npt.NDArray[np.float32] = np.zeros((0, N_COLUMNS), np.float32) if plan is None else plan.table
    dtype = np.float32 if times.kind == FLOAT else np.int64
    told = np.zeros(0, dtype) if plan is None else plan.model_time.astype(dtype)
    g.default("rows", rows)
    g.default("times", told)
    return [value("rows", FLOAT, ["rows", N_COLUMNS]), value("times", times.kind, ["rows"])]


def _given(g: Graph, times: Times, conditions: Sequence[str]) -> Graph:
    """A branch that gives the inputs themselves: ``given_table`` and ``given_times``."""
    length = g("Gather", g("Shape", "rows"), g.int64(0))
    # Of no rows, reading the first is an error.
    index = g("Range", g.int64(0), g("Max", length, g.int64(1)), g.int64(1))
    number = g.float32 if times.kind == FLOAT else g.int64
    largest = np.full(N_COLUMNS, LARGEST, np.float32)
    largest[Column.X0_BOUND] = math.inf
    largest[[Column.X0_DIVISOR, *range(EPS.start, EPS.stop)]] = 0.0  # no step in a file divides
    largest[Column.KEPT_SLOT] = KEPT_IN_FILES - 1
    conditions = [
        *conditions,
        g("LessOrEqual", g("Abs", "rows"), g.float32(largest)),
        g("Equal", length, g("Size", "times")),
        g("GreaterOrEqual", "times", number(times.least)),
        g("LessOrEqual", "times", number(times.last)),
    ]
    g("Gather", "rows", only_if(g, conditions, index, length), axis=0, out="given_table")
    g("Identity", "times", out="given_times")
    return g


def computed(
    g: Graph, options: TableOptions, times: Times, conditions: Sequence[str], inputs: Inputs = INPUTS
) -> Graph:
    """A branch that gives the rows of a method's formula: ``computed_table`` and ``computed_times``."""
    steps = g("Size", inputs.timesteps)
    index = g("Range", g.int64(0), steps, g.int64(1))
    conditions = [*conditions, *descending(g, inputs.timesteps)]
    timesteps = g("Gather", inputs.timesteps, only_if(g, conditions, index, steps))
    method = g("Gather", g.int64(range(len(formulas()))), inputs.method)
    table = plan_table(g, options, timesteps, method, inputs.eta)
    g("Pad", table, g.int64([0, 0, 0, N_COLUMNS - ROW_COLUMNS]), out="computed_table")
    if times.time_input != "timestep":
        g("Identity", levels_told(g, options, timesteps, times.time_input), out="computed_times")
    else:
        g("Cast", timesteps, to=times.kind, out="computed_times")
    return g


def _any(g: Graph, table: str, columns: slice) -> str:
    """Bool []: whether a number in these columns is not 0."""
    part = g("Abs", g.slice(table, columns.start, columns.stop, 1))
    return g("Greater", g("ReduceMax", part, keepdims=0), g.float32(0.0))
