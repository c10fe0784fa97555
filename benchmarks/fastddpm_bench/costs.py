"""What a function asks of a machine, by watching the operators that it dispatches: FLOPs and bytes of each.

A multiplication and an addition are two operations. Bytes are those of the tensors an operator reads and
writes, each once; views and allocations cost nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# They write their first argument without reading it.
_WRITE_ONLY = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_"}
_ALLOCATE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# Which argument is the left matrix of a product.
_PRODUCTS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}
_ATTENTION = "_scaled_dot_product"


@dataclasses.dataclass(frozen=True)
class OpCost:
    """Operations and traffic of one operator.

    Attributes:
        name: such as ``convolution``.
        flops: of convolutions, matrix products and attention; 0 for everything else, which traffic bounds.
        bytes: read and written.
        shape: of the first output.
    """

    name: str
    flops: int
    bytes: int
    shape: tuple[int, ...] = ()


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the cost of every operator while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.costs: list[OpCost] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not _is_view(func):
            self.costs.append(cost(func, args, kwargs or {}, out))
        return out


def watched(function: Callable[[], Any]) -> list[OpCost]:
    """Cost of every operator that a call dispatches, in order, without gradients."""
    with torch.no_grad(), Watch() as watch:
        function()
    return [op for op in watch.costs if op.bytes or op.flops]


def cost(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> OpCost:
    """Cost of one operator call."""
    name = func._schema.name.split("::")[1]
    outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    shape = tuple(outputs[0].shape) if outputs else ()
    if name in _ALLOCATE:
        return OpCost(name, 0, 0, shape)
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    read = inputs[1:] if name in _WRITE_ONLY else inputs
    return OpCost(name, flops(func, args, out), _bytes(read) + _bytes(outputs), shape)


def flops(func: Any, args: tuple[Any, ...], out: Any) -> int:
    """Operations of a convolution, matrix product or attention, forward or backward; else 0."""
    packet = func.overloadpacket
    if packet in _PRODUCTS:
        left: Tensor = args[_PRODUCTS[packet]]
        return 2 * left.shape[-1] * int(out.numel())
    if packet is aten.convolution:
        transposed = args[6]
        return _convolution(args[0] if transposed else out, args[1])
    if packet is aten.convolution_backward:
        transposed, wanted = args[7], args[10]
        return _convolution(args[1] if transposed else args[0], args[2]) * sum(map(bool, wanted[:2]))
    if _ATTENTION in packet.__name__:
        return _attention(packet.__name__, args)
    return 0


def _convolution(points: Tensor, weight: Tensor) -> int:
    """Each point of the output (of the input, if transposed) meets one filter of every channel it touches."""
    return int(2 * points.numel() * math.prod(weight.shape[1:]))


def _attention(name: str, args: tuple[Any, ...]) -> int:
    backward = "backward" in name
    query, key, value = args[1:4] if backward else args[:3]
    pairs: int = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    forward = 2 * pairs * (query.shape[3] + value.shape[3])
    # Backward: scores again, and gradients of scores, values, queries and keys: five products for two.
    return int(forward * 5 // 2 if backward else forward)


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each piece of memory once; an expanded tensor is as large as its memory."""
    sizes: dict[tuple[int, int], int] = {}
    for tensor in tensors:
        key = (id(tensor.untyped_storage()) if tensor.is_meta else tensor.data_ptr(), tensor.numel())
        numel = math.prod(n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
        sizes[key] = numel * tensor.element_size()
    return sum(sizes.values())
