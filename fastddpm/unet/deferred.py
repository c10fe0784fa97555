"""A UNet as a GPU runs it: channels_last, and nothing added to a map where a norm reads it anyway.

A convolution's bias, and the sum at the end of a residual block, are passes over a whole map. Here they wait:
a map is ``x + residual + owed``, whose last two are added by the norm that reads it next (`group_norm_silu`
before it normalises, `add_group_norm_silu` writing the sum too). ``owed`` is a vector of channels, the same
for every image and step, so it is worked out with the weights: a 1x1 convolution of it is a product, a
concatenation one of vectors. Only where a 3x3 convolution pads the map with zeros, before it is halved or
doubled, is it added by itself. A concatenation waits likewise, for the norm that writes it
(`cat_group_norm_silu`).

The weights are another network's, shared where they lie in channels_last order and copied where not, and
follow it by :meth:`Deferred.refresh`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastddpm.unet.blocks import Attention, Downsample, ResidualBlock, Upsample, activate, resized
from fastddpm.unet.config import Activation
from fastddpm.unet.maps import Map
from fastddpm.unet.phases import phase_kernels, phases_interleaved
from fastddpm.unet.unet import UNet
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
    """`Attention` behind a block, whose output it is added to."""

    def __init__(self, source: Attention) -> None:
        super().__init__(source.proj.out_channels, source.proj.weight)
        self._source = [source]  # in a list: no part of this module

    def refresh(self, owed: Tensor) -> Tensor:
        """As of `Part`."""
        super().refresh(owed)
        return self.owed + owed_by(self._source[0].proj, self.owed)

    def forward(self, x: Map) -> Map:
        """A map of the same shape."""
        source = self._source[0]
        plain = isinstance(source.norm, nn.Identity)
        y = x.whole(self.owed) if plain else x.normed(source.norm, None, self.owed)
        return x.plus_product(source.proj.weight, source.mixed(y))


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
        conv, whole = self._source[0].conv, x.whole(self.owed)
        if conv.padding == (0, 0):
            whole = F.pad(whole, (0, 1, 0, 1))
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


class Deferred(nn.Module):
    """A network in this form.

    Args:
        source: the network, as its configuration builds it. Its tensors must stay where they are.
    """

    def __init__(self, source: UNet) -> None:
        super().__init__()
        self._source = [source]  # in a list: no part of this module
        self.first, self.last = End(source.conv_in), End(source.conv_out)
        self._down, self._mid, self._up = (
            [part_of(layer) for layer in layers] for layers in (source.down, source.mid, source.up)
        )
        self.layers = nn.ModuleList([*self._down, *self._mid, *self._up])
        blocks, weight = source.residual_blocks, source.conv_in.weight
        width = sum(block.bias_width for block in blocks)
        self.offset = nn.Buffer(weight.new_zeros(width).detach())
        wide = source.config.embeds_class
        self.projection = (
            nn.Buffer(weight.new_zeros(width, source.config.time_dim).detach()) if wide else None
        )
        self.requires_grad_(False)
        self.refresh()

    @property
    def table_offset(self) -> Tensor | None:
        """``(bias_width,)``, added to a table of `UNet.time_biases`; None where time is projected here."""
        return self.offset if self.projection is None else None

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes the source's weights as they are now."""
        source = self._source[0]
        pairs = [pair for part in self._parts() for pair in part.copied()]
        if pairs:
            torch._foreach_copy_([own for own, _ in pairs], [theirs.detach() for _, theirs in pairs])
        blocks = source.residual_blocks
        offsets = []
        for block in blocks:
            bias = block.conv1.bias
            assert bias is not None
            offsets.append(bias if block.conditioning == "bias" else bias.new_zeros(block.bias_width))
        if self.projection is None:
            self.offset.copy_(torch.cat(offsets))
        else:
            self.projection.copy_(torch.cat([block.time_proj.weight for block in blocks]))
            self.offset.copy_(torch.cat(offsets) + torch.cat([block.time_proj.bias for block in blocks]))
        owed = owed_by(source.conv_in, self.last.owed)
        skips = [owed]
        for layer in self._down:
            owed = layer.refresh(owed)
            skips.append(owed.clone())
        for layer in self._mid:
            owed = layer.refresh(owed)
        for layer in self._up:
            if isinstance(layer, Block) and layer.takes_skip:
                owed = torch.cat((owed, skips.pop()))
            owed = layer.refresh(owed)
        self.last.refresh(owed)

    def tensors(self) -> list[Tensor]:
        """What it does not share with the source."""
        theirs = {tensor.data_ptr() for tensor in self._source[0].parameters()}
        return [tensor for tensor in self.buffers() if tensor.data_ptr() not in theirs]

    def forward_biased(self, x: Tensor, bias: Tensor) -> Tensor:
        """As of `UNet.forward_biased`; ``bias`` with the `table_offset`, if there is one."""
        source = self._source[0]
        source.check_size(x)
        x = source.prepared(x).contiguous(memory_format=torch.channels_last)
        if self.projection is not None:
            if source.config.time_activation:
                bias = activate(bias, source.config.activation)
            bias = F.linear(bias, self.projection, self.offset)
        biases = iter(torch.split(bias, [block.bias_width for block in source.residual_blocks], dim=1))
        out = self._features(Map(F.conv2d(x, self.first.weight, padding=1)), biases)
        pad = source.config.initial_pad
        return out[:, :, pad:-pad, pad:-pad] if pad else out

    def _features(self, x: Map, biases: Iterator[Tensor]) -> Tensor:
        source = self._source[0]
        skips = [x]
        for layer in self._down:
            x = layer(x, next(biases)) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self._mid:
            x = layer(x, next(biases))
        for layer in self._up:
            if isinstance(layer, Block):
                if layer.takes_skip:
                    x = x.beside(skips.pop())
                x = layer(x, next(biases))
            else:
                x = layer(x)
        h = x.normed(source.norm_out, source.config.activation, self.last.owed)
        return F.conv2d(h, self.last.weight, source.conv_out.bias, padding=1)

    def _parts(self) -> list[Part]:
        return [part for part in self.modules() if isinstance(part, Part)]


def part_of(layer: nn.Module) -> Layer:
    """A layer of a UNet in this form."""
    if isinstance(layer, ResidualBlock):
        return Block(layer)
    return Halved(layer) if isinstance(layer, Downsample) else Doubled(layer)  # type: ignore[arg-type]
