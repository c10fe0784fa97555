"""A trained network as ONNX fragments, and its place in a graph.

Our UNets are exported in parts, so that what depends on time, class or observations is computed outside the
loop; any other network in one piece. Weights are those given, on the CPU, in float32 or float16.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from fastddpm.export.call import EXAMPLE_BATCH, NetworkCall
from fastddpm.export.errors import ExportError
from fastddpm.export.nodes import FLOAT, HALF, Fragment, Graph, fragment_of
from fastddpm.network import unwrapped
from fastddpm.unet import UNet
from fastddpm.unet1d import UNet1D

OPSET = 20

Prepared = tuple[str, list[str]]
"""Times, and what else a network is given, in a graph."""


@dataclass(frozen=True)
class ExportedNetwork:
    """A network in ONNX.

    Attributes:
        call: how it is called.
        core: (x, bias) -> m of our UNets; (x, t[, class_labels], *cond) -> m of another network.
        time: t [N] -> bias [N, width] of our UNets, else None.
        classes: class_labels [B], or observations [B, width of them], -> bias [B, width], or None.
        out_channels: C or 2C.
        dynamic_size: whether height and width may vary.

    Where it `tells_between`, the time that it is given in a graph is float32 in place of int64.
    """

    call: NetworkCall
    core: Fragment
    time: Fragment | None
    classes: Fragment | None
    out_channels: int
    dynamic_size: bool

    @property
    def tells_between(self) -> bool:
        """Whether it takes times between two timesteps: our UNet, and one exported with such a plan."""
        return not self.call.tells_levels and (self.time is not None or self.call.between)

    def prepare(self, g: Graph, time: str, labels: str | None, cond: Sequence[str] = ()) -> Prepared:
        """What is computed once per chain: of times [N], labels and conditions [B], as `predict` takes it."""
        if self.time is None:
            casts = self.call.half
            cond = [
                g("Cast", name, to=HALF) if casts and one.kind == FLOAT else name
                for name, one in zip(cond, self.call.cond, strict=True)
            ]
            return time, [*([] if labels is None else [labels]), *cond]
        table = g.inline(self.time, time)
        given = labels if labels is not None or not cond else cond[0]
        biases = None if self.classes is None or given is None else g.inline(self.classes, given)
        return table, [] if biases is None else [biases]

    def predict(self, g: Graph, x: str, prepared: Prepared, row: str | None = None) -> str:
        """The network's output, float32 [B, out_channels, ...].

        Args:
            g: where to put it.
            x: float32 [B, Cc + C, ...].
            prepared: from `prepare`.
            row: int64 [1], which of N times it is; None where there is one per sample, or one for all.
        """
        time, others = prepared
        if row is not None:
            time = g("Gather", time, row, axis=0)
        batch = g.slice(g("Shape", x), 0, 1, 0)
        if self.time is None:
            arguments = [g("Expand", time, batch), *others]
        elif not others:
            # One row a sample: an exported network may read the batch size from either argument.
            arguments = [g("Expand", time, g("Concat", batch, g.int64([1]), axis=0))]
        else:
            arguments = [g("Add", time, *others)]
        if self.call.half:
            x = g("Cast", x, to=HALF)
        m = g.inline(self.core, x, *arguments)
        return g("Cast", m, to=FLOAT) if self.call.half else m


class _Core(nn.Module):
    """Our UNet behind its time and class path."""

    def __init__(self, unet: UNet | UNet1D) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.unet.forward_biased(x, bias)


class _Time(_Core):
    def forward(self, t: Tensor) -> Tensor:  # type: ignore[override]
        return self.unet.time_biases(t)


class _Classes(nn.Module):
    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, class_labels: Tensor) -> Tensor:
        return self.unet.class_biases(class_labels)


class _Observations(nn.Module):
    def __init__(self, unet: UNet1D) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, global_cond: Tensor) -> Tensor:
        return self.unet.condition_biases(global_cond)


class Whole(nn.Module):
    """Any network as ``(x, t, *conditions) -> m``.

    Args:
        model: the network.
        names: of the conditions, in order.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, x: Tensor, t: Tensor, *cond: Tensor) -> Tensor:
        """The output as one tensor."""
        return unwrapped(self.model(x, t, **dict(zip(self.names, cond, strict=True))))


def plain_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy on the CPU, contiguous, in eval mode and in this dtype; the network itself stays as it is."""
    try:
        copied: nn.Module = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ExportError(f"model: {type(model).__name__} cannot be copied ({error})") from error
    copied.to(device="cpu", dtype=dtype).to(memory_format=torch.contiguous_format)
    return copied.requires_grad_(False).eval()


def export_network(model: nn.Module, call: NetworkCall) -> ExportedNetwork:
    """Exports a network.

    Raises:
        ExportError: torch.export or its translation to ONNX cannot, or the batch size would be fixed.
    """
    network = plain_copy(model, call.dtype)
    x = torch.zeros(EXAMPLE_BATCH, call.condition_channels + call.channels, *call.shape[1:])
    x = x.to(call.dtype)
    reals = torch.full((EXAMPLE_BATCH,), 0.5, dtype=torch.float32)
    t = reals if call.tells_levels or call.between else torch.ones(EXAMPLE_BATCH, dtype=torch.int64)
    labels = torch.zeros(EXAMPLE_BATCH, dtype=torch.int64)
    time = classes = None
    if isinstance(network, (UNet, UNet1D)):
        bias = torch.zeros(EXAMPLE_BATCH, network.bias_width, dtype=call.dtype)
        core, out_channels = _fragment(_Core(network), (x, bias), sizes_vary=isinstance(network, UNet))
        time, _ = _fragment(_Time(network), (reals,))
        if isinstance(network, UNet1D):
            if call.cond:
                classes, _ = _fragment(_Observations(network), (call.cond[0].examples(EXAMPLE_BATCH),))
        elif call.has_classes:
            classes, _ = _fragment(_Classes(network), (labels,))
    else:
        others = {"class_labels": labels} if call.has_classes else {}
        for one in call.cond:
            rows = one.examples(EXAMPLE_BATCH)
            others[one.name] = rows.to(call.dtype) if rows.is_floating_point() else rows
        core, out_channels = _fragment(Whole(network, list(others)), (x, t, *others.values()), fixed=2)
    if out_channels not in (call.channels, 2 * call.channels):
        raise ExportError(
            f"model: returns {out_channels} channels for a state of {call.channels}; "
            f"{call.channels} or, with learned variance, {2 * call.channels} accepted"
        )
    return ExportedNetwork(call, core, time, classes, out_channels, isinstance(network, UNet))


def _fragment(
    module: nn.Module, arguments: tuple[Tensor, ...], *, sizes_vary: bool = False, fixed: int | None = None
) -> tuple[Fragment, int]:
    """The module in ONNX with a batch of any size, and the size of its output's second dimension.

    Of the arguments, those behind the first ``fixed`` are one variable number of them.
    """
    shapes: list[dict[int, Any]] = [{0: Dim.AUTO} for _ in arguments]
    if sizes_vary:
        shapes[0] |= {2: Dim.AUTO, 3: Dim.AUTO}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own deprecations, of no use to the caller
            named = tuple(shapes[fixed:]) if fixed is not None else ()
            dynamic = (*shapes[:fixed], named) if named else tuple(shapes)
            program = torch.export.export(module.eval(), arguments, dynamic_shapes=dynamic)
            exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    except Exception as error:  # torch raises whatever it met inside the network
        reason = " ".join(str(error).split())[:400]
        raise ExportError(
            f"model: cannot be exported by torch.onnx ({type(error).__name__}: {reason})"
        ) from error
    _check_free(program, shapes)
    if exported is None:
        raise ExportError("model: torch.onnx exported nothing")
    proto = exported.model_proto
    out = proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    return fragment_of(proto), int(out)


def _check_free(program: torch.export.ExportedProgram, shapes: list[dict[int, Any]]) -> None:
    """ExportError where a dimension that ought to vary was fixed by something the network does."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values[str(name)] for name in program.graph_signature.user_inputs]
    for tensor, free in zip(inputs, shapes, strict=True):
        for axis in free:
            size = tensor.shape[axis]
            if str(size).isdigit():  # a symbol that was fixed still is a SymInt
                what = "batch size" if axis == 0 else "height and width"
                raise ExportError(
                    f"model: its {what} would be fixed at {size}; code that does not depend on it accepted"
                )
