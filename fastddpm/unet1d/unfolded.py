"""`UNet1D` on a CPU for a few places of few channels: convolutions as products with the weights as they lie.

A convolution of torch costs the same tens of microseconds there whether the trajectory has 4 places or 400,
and multiplies small matrices the slower way round. Here the places that a kernel sees are laid side by side,
``(B * T, C_in * K)``, which one product with the weight, ``(C_out, C_in * K)`` as it is in memory, takes to
``(B * T, C_out)``. The same sums in another order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastddpm.unet1d.unet1d import Block, Pair, UNet1D, parts

MOST_WEIGHTS = 2**19
"""Of one convolution: above, reading them takes the time, and both ways take the same."""
MOST_PLACES = 32
"""Of all trajectories together."""


def is_small(model: UNet1D) -> bool:
    """Whether a network of these channels is quicker so, for few places."""
    return max(weight.numel() for weight in model.parameters() if weight.ndim == 3) <= MOST_WEIGHTS


class Unfolded:
    """A network as products, with a state between two convolutions of ``(B, T, C)``.

    Args:
        model: whose weights are read where they are, by each call.
    """

    def __init__(self, model: UNet1D) -> None:
        self._model = model
        self._widths = [block.film.out_features for block in model.blocks()]

    def forward_biased(self, x: Tensor, bias: Tensor) -> Tensor:
        """As of `UNet1D`."""
        model, kept, h = self._model, [], x
        films = iter(torch.split(bias, self._widths, dim=1))
        halves = parts(model.downsample, nn.Conv1d)
        for i, pair in enumerate(parts(model.down, Pair)):
            h = through(pair, h, films)
            if i < len(halves):
                kept.append(h)
                h = convolved(h, halves[i])
        last = h
        h = through(model.mid, h, films)
        for pair, upsample in zip(parts(model.up, Pair), model.upsample, strict=True):
            h = through(pair, torch.cat((h, last), dim=2), films)
            h, last = doubled(h, upsample), kept.pop()
        h = normed(convolved(h, model.final_conv), model.final_norm).transpose(1, 2)
        return convolved(h, model.conv_out)


def through(pair: Pair, x: Tensor, films: Iterator[Tensor]) -> Tensor:
    """As of `Pair`, of ``(B, T, C)``."""
    return _block(pair.second, _block(pair.first, x, next(films)), next(films))


def _block(block: Block, x: Tensor, film: Tensor) -> Tensor:
    h = normed(convolved(x, block.conv1), block.norm1)
    channels = h.shape[1]
    if film.shape[1] == channels:
        h = h + film[:, :, None]
    else:
        h = torch.addcmul(film[:, channels:, None], h, film[:, :channels, None])
    h = normed(convolved(h.transpose(1, 2), block.conv2), block.norm2).transpose(1, 2)
    return h + (x if block.residual is None else convolved(x, block.residual))


def normed(h: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Mish of the norm of h ``(B, T, C)``, as ``(B, C, T)``."""
    return F.mish(F.group_norm(h.transpose(1, 2), norm.num_groups, norm.weight, norm.bias, norm.eps))


def convolved(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A convolution of x ``(B, T, C_in)``: ``(B, T, C_out)``, or half as many places."""
    weight, (kernel,), (stride,), padding = conv.weight, conv.kernel_size, conv.stride, conv.padding[0]
    if kernel == 1:
        return F.linear(x, weight[:, :, 0], conv.bias)
    assert isinstance(padding, int)
    seen = F.pad(x, (0, 0, padding, padding)).unfold(1, kernel, stride)  # (B, T, C_in, K)
    return F.linear(seen.flatten(2), weight.flatten(1), conv.bias)


def doubled(x: Tensor, conv: nn.Module) -> Tensor:
    out: Tensor = conv(x.transpose(1, 2))
    return out.transpose(1, 2)
