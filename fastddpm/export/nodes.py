"""ONNX graphs node by node: a builder, and pieces of exported networks that are put into it.

A `Graph` collects nodes, constants and weights; a `Fragment` is a network that torch exported, which
`Graph.inline` copies in under new names, as often and as deep inside a loop as it is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from fastddpm.export.errors import ExportError

FLOAT, DOUBLE, HALF = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
INT32, INT64, UINT64 = TensorProto.INT32, TensorProto.INT64, TensorProto.UINT64
UINT8, BOOL = TensorProto.UINT8, TensorProto.BOOL

END = np.iinfo(np.int64).max
"""The end of a slice that takes everything that is left."""


@dataclass(frozen=True)
class Fragment:
    """A graph without control flow that stands for a function of tensors.

    Attributes:
        nodes: in an order in which they can run.
        weights: the initialisers.
        inputs: names of the arguments, in order.
        output: name of the result.
        opset: version of the default operator set that the nodes are of.
        ir_version: of the file format it came in.
    """

    nodes: Sequence[onnx.NodeProto]
    weights: Sequence[onnx.TensorProto]
    inputs: Sequence[str]
    output: str
    opset: int
    ir_version: int


class Graph:
    """Nodes in the making. Calling it adds a node: ``g("Add", a, b)`` is the name of its result.

    Args:
        outer: the graph in whose loop or branch this one stands. Constants and names are shared with it.
    """

    def __init__(self, outer: Graph | None = None) -> None:
        self.root: Graph = self if outer is None else outer.root
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._count = 0

    def _name(self, stem: str = "v") -> str:
        self.root._count += 1
        return f"{stem}{self.root._count}"

    def __call__(self, op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output and gives the output's name."""
        name = out or self._name()
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def subgraphs(self, op: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Adds a node with several outputs, such as a Loop, and gives their names."""
        names = [self._name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        """The name of a constant, which stands once in the outermost graph."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        known = self.root._constants
        if key not in known:
            known[key] = self._name("c")
            self.root.weights.append(numpy_helper.from_array(array, known[key]))
        return known[key]

    def default(self, name: str, value: npt.NDArray[Any]) -> None:
        """What an input of the outermost graph is where it is not given."""
        self.root.weights.append(numpy_helper.from_array(value, name))

    def float32(self, value: npt.ArrayLike) -> str:
        """A float32 constant."""
        return self.constant(value, np.float32)

    def float64(self, value: npt.ArrayLike) -> str:
        """A float64 constant."""
        return self.constant(value, np.float64)

    def int64(self, value: npt.ArrayLike) -> str:
        """An int64 constant."""
        return self.constant(value, np.int64)

    def slice(self, x: str, start: int | str, end: int | str, axis: int) -> str:
        """``x[start:end]`` along one axis; a bound is an integer or the name of an int64 [1]."""
        bounds = [self.int64([b]) if isinstance(b, int) else b for b in (start, end)]
        return self("Slice", x, *bounds, self.int64([axis]))

    def inline(self, fragment: Fragment, *arguments: str) -> str:
        """Copies a fragment into this graph, weights included, and gives the name of its result."""
        prefix = self._name("n") + "_"
        names: dict[str, str] = {"": "", **dict(zip(fragment.inputs, arguments, strict=True))}

        def renamed(name: str) -> str:
            return names.setdefault(name, f"{prefix}{len(names)}")

        for weight in fragment.weights:
            copy = onnx.TensorProto()
            copy.CopyFrom(weight)
            copy.name = renamed(weight.name)
            self.weights.append(copy)
        for node in fragment.nodes:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = ""
            copied.input[:] = [renamed(name) for name in node.input]
            copied.output[:] = [renamed(name) for name in node.output]
            self.nodes.append(copied)
        return renamed(fragment.output)

    def finished(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """The graph as ONNX."""
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs), self.weights)


def value(name: str, kind: int, shape: Sequence[int | str] = ()) -> onnx.ValueInfoProto:
    """A typed and named input or output; a string in the shape is a size that may vary."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def as_model(graph: onnx.GraphProto, opset: int, ir_version: int) -> onnx.ModelProto:
    """A graph as a model of the default operator set."""
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
        producer_name="fastddpm",
    )


def fragment_of(model: onnx.ModelProto) -> Fragment:
    """An exported network as a fragment, without names, stack traces and other notes on its nodes.

    Raises:
        ExportError: operators outside ONNX, control flow, or other than one output.
    """
    graph = model.graph
    opsets: Mapping[str, int] = {opset.domain: opset.version for opset in model.opset_import}
    if len(model.functions):
        model = inliner.inline_local_functions(model)
        graph = model.graph
    foreign = sorted({node.domain for node in graph.node} - {"", "ai.onnx"})
    if foreign:
        raise ExportError(f"model: exported with operators of {', '.join(foreign)}, which is not ONNX")
    if len(graph.output) != 1:
        raise ExportError(f"model: exported with {len(graph.output)} outputs, one tensor accepted")
    for node in graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
        if any(attribute.HasField("g") or len(attribute.graphs) for attribute in node.attribute):
            raise ExportError(f"model: exported with control flow ({node.op_type}); plain layers accepted")
    for weight in graph.initializer:
        del weight.metadata_props[:]
        weight.ClearField("doc_string")
    weights = {weight.name for weight in graph.initializer}
    return Fragment(
        nodes=list(graph.node),
        weights=list(graph.initializer),
        inputs=[one.name for one in graph.input if one.name not in weights],
        output=graph.output[0].name,
        opset=opsets.get("", 0),
        ir_version=model.ir_version,
    )
