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

from fastddpm.unet.blocks import activate
from fastddpm.unet.maps import Map
from fastddpm.unet.parts import Block, End, Part, owed_by, part_of
from fastddpm.unet.unet import UNet


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
