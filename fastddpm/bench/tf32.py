"""TF32 on a CPU: what tensor cores make of float32 inputs, emulated.

A tensor core reads 10 of the 23 bits of a mantissa and sums in float32. Here the inputs of every
convolution, matrix product and attention are rounded to 10 bits first and the product is float32's. What is
not emulated is the order in which a card sums, which differs in float32's last bits.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Rounding = Literal["nearest", "truncated"]
aten = torch.ops.aten
_DROPPED = 13  # of float32's 23 bits
# Which arguments of an operator a tensor core reads.
_INPUTS: dict[Any, tuple[int, ...]] = {
    aten.convolution: (0, 1),
    aten.mm: (0, 1),
    aten.bmm: (0, 1),
    aten.addmm: (1, 2),
    aten.baddbmm: (1, 2),
}
_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu


def rounded(x: Tensor, rounding: Rounding = "nearest") -> Tensor:
    """A float32 tensor with 10 bits of mantissa; another dtype as it is.

    Args:
        x: any shape.
        rounding: ``nearest``: ties away from zero, as the instruction ``cvt.rna.tf32.f32`` with which
            libraries prepare inputs. ``truncated``: as a tensor core reads float32 that nobody prepared.
    """
    if x.dtype != torch.float32:
        return x
    bits = x.view(torch.int32)
    if rounding == "nearest":
        bits = bits + (1 << (_DROPPED - 1))
    return (bits & -(1 << _DROPPED)).view(torch.float32)


class EmulatedTF32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, products of float32 tensors are those of TF32.

    Args:
        rounding: as of `rounded`.
    """

    def __init__(self, rounding: Rounding = "nearest") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rounding: Rounding = rounding

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        if packet is _ATTENTION:
            return self._attention(func, args, kwargs or {})
        args = list(args)
        for place in _INPUTS.get(packet, ()):
            args[place] = rounded(args[place], self.rounding)
        return func(*args, **(kwargs or {}))

    def _attention(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Both products of attention: the weights are rounded before they meet the values."""
        q, k, v = (rounded(one, self.rounding) for one in args[:3])
        if len(args) > 3 or set(kwargs) - {"scale"}:
            raise NotImplementedError(f"{func}: with a mask, dropout or causal")
        scale = kwargs.get("scale") or q.shape[-1] ** -0.5
        scores = q @ k.transpose(-2, -1) * scale
        weights = rounded(scores.softmax(-1), self.rounding)
        # The operator's second result, the logarithm of the sums, serves its gradient.
        return weights @ v, scores.logsumexp(-1)
