"""The layers of `fastddpm.unet.deferred`: each has its own weights, and what its input and output owe."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastddpm.unet.blocks import (
    Attention,
    Downsample,
    ResidualBlock,
    Upsample,
    activate,
    attended,
    resized,
)
from fastddpm.unet.config import Activation
from fastddpm.unet.maps import Map
from fastddpm.unet.phases import phase_kernels, phases_interleaved
from fastddpm_kernels import group_norm_silu


class Part(nn.Module):
    """A layer of the network. Its weights that are no others' are brought up to date by `refresh`.

    Attributes:
        owed: ``(C,)``, what the map that it is given lacks in every pixel; for a norm float32 or wider.
    """

    owed: Tensor

    def __init__(self, channels: int, like: Tensor, *, for_norm: bool = True) -> None:
        super().__init__()
        dtype = torch.promote_types(like.dtype, torch.float32) if for_norm else like.dtype
        self.owed = nn.Buffer(torch.zeros(channels, dtype=dtype, device=like.device))
        self._copied: list[tuple[Tensor, Tensor]] = []

    def following(self, weight: Tensor) -> Tensor:
        """A convolution's weight in channels_last order: itself where it lies so, or a copy."""
        own = weight.detach()
        if not own.is_contiguous(memory_format=torch.channels_last):
            own = torch.empty_like(own, memory_format=torch.channels_last)
            self._copied.append((own, weight))
        return nn.Buffer(own)

    def copied(self) -> list[tuple[Tensor, Tensor]]:
        """Its copies and what they are copies of."""
        return self._copied

    def refresh(self, owed: Tensor) -> Tensor:
        """Takes what its input lacks, and what else depends on the weights; returns what its output lacks."""
        self.owed.copy_(owed)
        return self.owed


def owed_by(conv: nn.Conv2d, like: Tensor) -> Tensor:
    """A convolution's bias as a vector like another, zeros where it has none."""
    if conv.bias is None:
        return like.new_zeros(conv.out_channels)
    return conv.bias.detach().to(like.dtype)


class Attended(Part):
    """`Attention` behind a block, whose output it is added to.

    Of one head: what it projects are sums of values by weights that are the same for every channel, so that
    the values may be projected instead, ``sum_j a_ij (P V y_j) = P sum_j a_ij V y_j``, by the product of both
    matrices in the place of the values'. A product of several heads' values would be as much wider.
    """

    def __init__(self, source: Attention) -> None:
        super().__init__(source.proj.out_channels, source.proj.weight)
        self._source = [source]  # in a list: no part of this module
        weight = source.qkv.weight.detach()
        self.weight = nn.Buffer(weight.flatten(1).clone()) if source.heads == 1 else None
        bias = source.qkv.bias
        self.bias = nn.Buffer(bias.detach().clone()) if source.heads == 1 and bias is not None else None

    def refresh(self, owed: Tensor) -> Tensor:
        """As of `Part`."""
        super().refresh(owed)
        source = self._source[0]
        if self.weight is not None:
            channels, wide = source.proj.out_channels, self.owed.dtype
            projection = source.proj.weight.detach().flatten(1).to(wide)
            for own, theirs in ((self.weight, source.qkv.weight), (self.bias, source.qkv.bias)):
                if own is not None and theirs is not None:
                    given = theirs.detach().view_as(own)
                    own[: 2 * channels].copy_(given[: 2 * channels])
                    own[2 * channels :].copy_(projection @ given[2 * channels :].to(wide))
        return self.owed + owed_by(source.proj, self.owed)

    def forward(self, x: Map) -> Map:
        """A map of the same shape."""
        source = self._source[0]
        plain = isinstance(source.norm, nn.Identity)
        y = x.whole(self.owed) if plain else x.normed(source.norm, None, self.owed)
        if self.weight is None:
            return x.plus_product(source.proj.weight, source.mixed(y))
        qkv = F.linear(y.permute(0, 2, 3, 1).flatten(1, 2), self.weight, self.bias)
        return x.plus(attended(qkv, 1, y.shape))


class Block(Part):
    """`ResidualBlock`."""

    def __init__(self, source: ResidualBlock) -> None:
        super().__init__(source.conv1.in_channels, source.conv1.weight)
        self._source = [source]  # in a list: no part of this module
        self.weight1, self.weight2 = self.following(source.conv1.weight), self.following(source.conv2.weight)
        # What the first convolution owes, where time is no bias that it could be added to beforehand.
        self.owed1 = nn.Buffer(self.owed.new_zeros(source.out_channels))
        self.attended = Attended(source.attention) if isinstance(source.attention, Attention) else None

    def refresh(self, owed: Tensor) -> Tensor:
        """As of `Part`."""
        source = self._source[0]
        super().refresh(owed)
        self.owed1.copy_(owed_by(source.conv1, self.owed))
        owed = self.owed
        if isinstance(source.skip, nn.Conv2d):
            owed = source.skip.weight.flatten(1).to(owed.dtype) @ owed + owed_by(source.skip, owed)
        owed = owed + owed_by(source.conv2, owed)
        return owed if self.attended is None else self.attended.refresh(owed)

    def forward(self, x: Map, bias: Tensor) -> Map:
        """``bias (B or 1, bias_width)``, with the first convolution's where it is added before the norm."""
        source = self._source[0]
        h = resized(x.normed(source.norm1, source.activation, self.owed), source.resize)
        h = self.conditioned(F.conv2d(h, self.weight1, padding=1), bias)
        h = F.conv2d(h, self.weight2, padding=1)
        skip = resized(x.settled(), source.resize)  # what it owes is the same in every pixel
        if isinstance(source.skip, nn.Conv2d):
            out = Map(h).plus_product(source.skip.weight, skip)
        else:
            out = Map(h, skip)
        return out if self.attended is None else self.attended(out)

    @property
    def takes_skip(self) -> bool:
        """Whether, on the way up, it is given what was kept on the way down: unless it doubles the size."""
        return self._source[0].resize == "none"

    def conditioned(self, h: Tensor, bias: Tensor) -> Tensor:
        """The second norm and its activation, with time and class; see `ResidualBlock.conditioned`."""
        source = self._source[0]
        norm, activation = source.norm2, source.activation
        if source.conditioning == "bias" and isinstance(norm, nn.GroupNorm):
            return _fused_norm(h, norm, activation, pre_bias=bias)
        if source.conditioning == "scale_shift" and isinstance(norm, nn.GroupNorm):
            scale, shift = bias.chunk(2, dim=1)
            return _fused_norm(h, norm, activation, pre_bias=self.owed1[None], scale=scale, shift=shift)
        if source.conditioning != "bias":
            h = h + self.owed1.to(h.dtype)[:, None, None]
        return activate(source.conditioned(h, bias[:, :, None, None].to(h.dtype)), activation)


def _fused_norm(h: Tensor, norm: nn.GroupNorm, activation: Activation, **vectors: Tensor) -> Tensor:
    fused = "silu" if activation == "silu" else "none"
    y = group_norm_silu(h, norm.num_groups, norm.weight, norm.bias, norm.eps, activation=fused, **vectors)
    return y if activation == "silu" else activate(y, activation)


class Halved(Part):
    """`Downsample`."""

    def __init__(self, source: Downsample) -> None:
        super().__init__(source.conv.in_channels, source.conv.weight, for_norm=False)
        self._source = [source]  # in a list: no part of this module
        self.weight = self.following(source.conv.weight)

    def refresh(self, owed: Tensor) -> Tensor:
        """As of `Part`."""
        super().refresh(owed)
        return owed_by(self._source[0].conv, owed)

    def forward(self, x: Map) -> Map:
        """Half the height and width."""
        conv = self._source[0].conv
        whole = x.padded(self.owed, 1 if conv.padding == (0, 0) else 0)
        return Map(F.conv2d(whole, self.weight, None, conv.stride, conv.padding))


class Doubled(Part):
    """`Upsample`, by phases (`fastddpm.unet.phases`): 4/9 of the operations, and one pass as before."""

    def __init__(self, source: Upsample) -> None:
        super().__init__(source.conv.in_channels, source.conv.weight, for_norm=False)
        self._source = [source]  # in a list: no part of this module
        kernels = phase_kernels(source.conv.weight.detach())
        self.weight = nn.Buffer(kernels.contiguous(memory_format=torch.channels_last))

    def refresh(self, owed: Tensor) -> Tensor:
        """As of `Part`."""
        super().refresh(owed)
        self.weight.copy_(phase_kernels(self._source[0].conv.weight))
        return owed_by(self._source[0].conv, owed)

    def forward(self, x: Map) -> Map:
        """Twice the height and width."""
        return Map(phases_interleaved(F.conv2d(x.whole(self.owed), self.weight, padding=1)))


class End(Part):
    """The first convolution, or the last, whose input the norm before it has made whole."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__(source.in_channels, source.weight)
        self.weight = self.following(source.weight)


Layer = Block | Halved | Doubled


def part_of(layer: nn.Module) -> Layer:
    """A layer of a UNet in this form."""
    if isinstance(layer, ResidualBlock):
        return Block(layer)
    return Halved(layer) if isinstance(layer, Downsample) else Doubled(layer)  # type: ignore[arg-type]
