"""Convolutions that follow another's weights in a faster layout: channels_last, or the order oneDNN wants.

torch's own convolution brings its weights into that order on every call: 8 % of a step of a network of 36 M
parameters at batch 2. Inductor can do it once (``freezing``), but then serves old weights after an update;
these take them anew at every :meth:`PackedConv2d.refresh`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_convolutions: weakref.WeakValueDictionary[int, PackedConv2d] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def following(conv: nn.Conv2d) -> PackedConv2d | CopiedConv2d:
    """The same convolution in a faster layout, in step with the weights of ``conv`` by its ``refresh()``."""
    return PackedConv2d(conv) if can_be_packed(conv) else CopiedConv2d(conv)


def can_be_packed(conv: nn.Conv2d) -> bool:
    """Whether oneDNN runs it here: float32 on a CPU, outside autocast, with what these classes know."""
    is_available: Callable[[], bool] = torch.backends.mkldnn.is_available
    return (
        conv.weight.device.type == "cpu"
        and conv.weight.dtype == torch.float32
        and is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
        and not torch.is_autocast_enabled("cpu")
        and not isinstance(conv.padding, str)
        and (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
    )


class CopiedConv2d(nn.Module):
    """A convolution with a channels_last copy of another's weight, whose tensors must stay where they are."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        self._source = [source]  # in a list: no part of this module
        self.weight = nn.Buffer(torch.empty_like(source.weight, memory_format=torch.channels_last))
        self.bias = None if source.bias is None else nn.Buffer(source.bias.detach())
        self.stride, self.padding = source.stride, source.padding

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes the weight as it is now."""
        self.weight.copy_(self._source[0].weight)

    def own_tensors(self) -> list[Tensor]:
        """The copy."""
        return [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W)`` -> ``(B, out, H', W')``."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class PackedConv2d(nn.Module):
    """A convolution that packs another's weight at the first call after each :meth:`refresh`."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        self._source = [source]  # in a list: no part of this module
        self._packed: Tensor | None = None
        self._packed_for: torch.Size | None = None
        self.bias = None if source.bias is None else nn.Buffer(source.bias.detach())
        self.stride, self.padding = source.stride, source.padding
        self.out_channels, self.kernel = source.out_channels, source.kernel_size[0]
        number = next(_numbers)
        _convolutions[number] = self
        # A tensor, not a number: compiled code is the same for all, and found again in Inductor's cache.
        self.number = nn.Buffer(torch.tensor(number))

    def refresh(self) -> None:
        """Takes the weight as it is then, at the next call."""
        self._packed = None

    def own_tensors(self) -> list[Tensor]:
        """The packed weight, once there is one."""
        return [] if self._packed is None else [self._packed]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W)`` -> ``(B, out, H', W')``, channels_last."""
        out: Tensor = torch.ops.fastddpm.packed_conv2d(
            x, self.number, self.bias, self.stride, self.padding, self.out_channels, self.kernel
        )
        return out

    def packed(self, shape: torch.Size) -> Tensor:
        """The weight in oneDNN's order for inputs of a shape."""
        if self._packed is None or self._packed_for != shape:
            reorder: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
            plain = self._source[0].weight.detach().contiguous().to_mkldnn()
            self._packed = reorder(plain, self.padding, self.stride, [1, 1], 1, list(shape))
            self._packed_for = shape
        assert self._packed is not None
        return self._packed


# torch's functions are untyped here.
_torch_library: Any = torch.library
_library = _torch_library.Library("fastddpm", "FRAGMENT")
_library.define(
    "packed_conv2d(Tensor x, Tensor number, Tensor? bias, int[] stride, int[] padding, int out_channels, "
    "int kernel) -> Tensor",
    tags=(torch.Tag.needs_fixed_stride_order,),
)


def _run(
    x: Tensor,
    number: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    out_channels: int,
    kernel: int,
) -> Tensor:
    weight = _convolutions[int(number)].packed(x.shape)
    x = x.contiguous(memory_format=torch.channels_last)
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, stride, [1, 1], 1, "none", [], ""
    )
    return out


def _fake(
    x: Tensor,
    number: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    out_channels: int,
    kernel: int,
) -> Tensor:
    sizes = zip(x.shape[2:], padding, stride, strict=True)
    height, width = ((size + 2 * pad - kernel) // step + 1 for size, pad, step in sizes)
    out = x.new_empty(x.shape[0], out_channels, height, width)
    return out.to(memory_format=torch.channels_last)


_library.impl("packed_conv2d", _run, "CPU")
_torch_library.register_fake("fastddpm::packed_conv2d", _fake, lib=_library)
