"""Arithmetic of cards on a CPU, emulated: TF32, and networks in bfloat16 and float16.

A tensor core reads 10 of the 23 bits of a float32's mantissa, or all of a bfloat16 or float16, and sums in
float32. `EmulatedTF32` rounds the inputs of every convolution, matrix product and attention; `EmulatedDtype`
the result of every operator. What is not emulated is the order in which a card sums, which differs in
float32's last bits. A CPU that has none of these computes them several times faster so than in its own
bfloat16.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastddpm.unet import UNet

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


class EmulatedDtype(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, what an operator makes is rounded to a dtype, and stays float32.

    Args:
        dtype: bfloat16 or float16.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        if isinstance(out, tuple):  # an image or so, and what serves a gradient
            return (self._rounded(out[0]), *out[1:])
        if func._schema.is_mutable:
            return out.copy_(self._rounded(out))
        return self._rounded(out)

    def _rounded(self, out: Any) -> Any:
        is_wide = isinstance(out, Tensor) and out.dtype == torch.float32
        return out.to(self.dtype).to(torch.float32) if is_wide else out


class InDtype(nn.Module):
    """Our network in bfloat16 or float16, on float32 tensors: weights, input and results are rounded.

    Args:
        network: float32; left as it is.
        dtype: bfloat16 or float16.
    """

    def __init__(self, network: UNet, dtype: torch.dtype) -> None:
        super().__init__()
        # The path of the time is small and has steps in float32: that is the dtype's own arithmetic.
        self.of_time = copy.deepcopy(network).to(dtype)
        self.network, self.dtype = copy.deepcopy(self.of_time).float(), dtype

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """What the network returns."""
        bias = self.of_time.time_biases(t)
        if class_labels is not None:
            bias = bias + self.of_time.class_biases(class_labels)
        with EmulatedDtype(self.dtype):
            return self.network.forward_biased(x.to(self.dtype).float(), bias.float())
