"""`UNet1D` on a card: places as a map of height 1 whose channels are neighbours in memory.

cuDNN convolves such maps, ``(B, C, 1, T)`` in channels_last order, without changing their layout, and the
norm with its Mish reads and writes them as they are; a trajectory ``(B, T, A)`` is one without being copied.
The weights are another network's, shared where they lie so and copied where not, and follow it by
`Rows.refresh`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm.unet1d.unet1d import Block, Pair, UNet1D, mish_of, parts

Convolution = nn.Conv1d | nn.ConvTranspose1d


class Rows:
    """A network in this form.

    Args:
        model: whose weights it reads.
    """

    def __init__(self, model: UNet1D) -> None:
        self._model = model
        self._widths = [block.film.out_features for block in model.blocks()]
        self._copies: dict[Convolution, Tensor] = {}
        self._views: dict[Convolution, Tensor] = {}
        for part in model.modules():
            if isinstance(part, Convolution) and part.kernel_size != (1,):
                like = part.weight.detach()[:, :, None]
                self._copies[part] = torch.empty_like(like, memory_format=torch.channels_last)
            elif isinstance(part, Convolution):
                self._views[part] = part.weight.detach()[:, :, None]

    def tensors(self) -> list[Tensor]:
        """What it holds besides the model: a copy of every kernel of several places."""
        return list(self._copies.values())

    def refresh(self) -> None:
        """Brings the copies up to date."""
        for part, own in self._copies.items():
            own.copy_(part.weight.detach()[:, :, None])
        self._views = {part: part.weight.detach()[:, :, None] for part in self._views}

    def forward_biased(self, x: Tensor, bias: Tensor) -> Tensor:
        """As of `UNet1D`."""
        model, kept = self._model, []
        films = iter(torch.split(bias[:, :, None, None], self._widths, dim=1))
        halves = parts(model.downsample, nn.Conv1d)
        h = x.transpose(1, 2)[:, :, None]
        for i, pair in enumerate(parts(model.down, Pair)):
            h = self._through(pair, h, films)
            if i < len(halves):
                kept.append(h)
                h = self._convolved(halves[i], h)
        last = h
        h = self._through(model.mid, h, films)
        doubles = parts(model.upsample, nn.ConvTranspose1d)
        for pair, double in zip(parts(model.up, Pair), doubles, strict=True):
            h = self._through(pair, torch.cat((h, last), dim=1), films)
            h, last = self._convolved(double, h), kept.pop()
        h = mish_of(model.final_norm, self._convolved(model.final_conv, h))
        return self._convolved(model.conv_out, h)[:, :, 0].transpose(1, 2)

    def _through(self, pair: Pair, x: Tensor, films: Iterator[Tensor]) -> Tensor:
        return self._block(pair.second, self._block(pair.first, x, next(films)), next(films))

    def _block(self, block: Block, x: Tensor, film: Tensor) -> Tensor:
        h = mish_of(block.norm1, self._convolved(block.conv1, x))
        scale, shift = film.chunk(2, dim=1) if film.shape[1] > h.shape[1] else (None, film)
        h = h + shift if scale is None else torch.addcmul(shift, h, scale)
        h = mish_of(block.norm2, self._convolved(block.conv2, h))
        return h + (x if block.residual is None else self._convolved(block.residual, x))

    def _convolved(self, part: Convolution, h: Tensor) -> Tensor:
        weight = self._copies[part] if part in self._copies else self._views[part]
        (stride,), padding = part.stride, part.padding[0]
        assert isinstance(padding, int)
        function = F.conv_transpose2d if isinstance(part, nn.ConvTranspose1d) else F.conv2d
        return function(h, weight, part.bias, stride=(1, stride), padding=(0, padding))
