"""Vectors that stand for float64 tensors of an ONNX graph, in NumPy's own operations.

NumPy hands what is done to a `Vector` over to it (NEP 13, NEP 18), and each operation becomes a node. So the
formulas of `fastddpm.plans`, which are functions of arrays, are the formulas of an exported file too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from fastddpm.export.errors import ExportError
from fastddpm.export.nodes import END, Graph

# NumPy's functions of one or two arrays that are an operator of ONNX.
_OPERATORS = {
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "divide": "Div",
    "negative": "Neg",
    "absolute": "Abs",
    "sqrt": "Sqrt",
    "exp": "Exp",
    "log": "Log",
    "maximum": "Max",
    "minimum": "Min",
    "equal": "Equal",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "bitwise_or": "Or",
    "bitwise_and": "And",
    "invert": "Not",
}


class Vector(NDArrayOperatorsMixin):
    """A float64 or bool tensor ``[S]`` or ``[]`` of a graph.

    Args:
        graph: where operations on it are added.
        name: the tensor's.
    """

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Adds the node of an operation.

        Raises:
            ExportError: NumPy's function has none.
        """
        name = ufunc.__name__
        if method != "__call__" or options:
            raise ExportError(f"formula: np.{name}.{method} with {options} cannot be exported")
        if name == "expm1":  # ONNX has none: a plan's step of 1e-3 loses 1e-13 by it
            return np.exp(inputs[0]) - 1.0
        if name == "power" and inputs[1] == 2:
            return inputs[0] * inputs[0]
        if name not in _OPERATORS:
            raise ExportError(f"formula: np.{name} given, {', '.join(_OPERATORS)}, expm1 accepted")
        return self._node(_OPERATORS[name], *inputs)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, arguments: Sequence[Any], options: Any
    ) -> Any:
        """Adds the nodes of `np.where` or `np.concatenate`.

        Raises:
            ExportError: another function.
        """
        if function is np.where and len(arguments) == 3 and not options:
            return self._node("Where", *arguments)
        if function is np.concatenate and len(arguments) == 1 and not options:
            return Vector(self.graph, self.graph("Concat", *map(self._operand, arguments[0]), axis=0))
        raise ExportError(f"formula: np.{function.__name__} given, np.where and np.concatenate accepted")

    def __getitem__(self, part: slice) -> Vector:
        """Some of its elements, by a slice without a step."""
        if not isinstance(part, slice) or part.step is not None:
            raise ExportError(f"formula: [{part}] given, a slice without a step accepted")
        stop = END if part.stop is None else part.stop
        return Vector(self.graph, self.graph.slice(self.name, part.start or 0, stop, 0))

    def _node(self, op: str, *operands: Any) -> Vector:
        return Vector(self.graph, self.graph(op, *map(self._operand, operands)))

    def _operand(self, value: Any) -> str:
        if isinstance(value, Vector):
            return value.name
        array = np.asarray(value)
        return self.graph.constant(array, np.bool_ if array.dtype == np.bool_ else np.float64)
