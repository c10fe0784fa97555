"""A UNet as Inductor runs it fastest on a CPU: the same function, its convolutions in channels_last, each
upsampling with its convolution as four small convolutions, and norms that vectorise.

The weights are derived from another network's and follow it by :meth:`Rearranged.refresh`; what needs no
other form is shared with it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastddpm.unet.blocks import Upsample
from fastddpm.unet.unet import UNet

EXACT = (torch.float32, torch.float64)
"""Dtypes whose sums over pixels need no wider one."""


class PhaseUpsample(nn.Module):
    """`Upsample` at 4/9 of its operations: each phase of the output sees 2x2 pixels of the input, not 3x3.

    Nearest-neighbour doubling makes a 3x3 kernel meet each input pixel once, twice or four times; its weights
    are added up beforehand (the sub-pixel convolution of Shi et al. 2016, run backwards).
    """

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        out_channels, in_channels = source.weight.shape[:2]
        weight = source.weight.new_empty(4 * out_channels, in_channels, 2, 2)
        self.weight = nn.Buffer(weight.to(memory_format=torch.channels_last))
        self.bias = None if source.bias is None else nn.Buffer(source.bias.new_empty(4 * out_channels))

    @torch.no_grad()
    def refresh(self, source: nn.Conv2d) -> None:
        """Takes the weights of the 3x3 convolution."""
        above, middle, below = source.weight.unbind(2)
        rows = (torch.stack((above, middle + below), 2), torch.stack((above + middle, below), 2))
        phases = []
        for row in rows:
            left, centre, right = row.unbind(3)
            phases += [torch.stack((left, centre + right), 3), torch.stack((left + centre, right), 3)]
        self.weight.copy_(torch.cat(phases))
        if source.bias is not None and self.bias is not None:
            self.bias.copy_(source.bias.repeat(4))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, 2H, 2W)``, channels_last."""
        batch, _, height, width = x.shape
        phases = F.conv2d(x, self.weight, self.bias, padding=1).permute(0, 2, 3, 1)
        # (B, H + 1, W + 1, 2, 2, C); phase (i, j) of output pixel (y, x) stands at (y + i, x + j)
        phases = phases.reshape(batch, height + 1, width + 1, 2, 2, -1)
        rows = [
            torch.stack([phases[:, i : i + height, j : j + width, i, j] for j in (0, 1)], 3) for i in (0, 1)
        ]
        out = torch.stack(rows, 2).reshape(batch, 2 * height, 2 * width, -1)
        return out.permute(0, 3, 1, 2)


class TwoPassGroupNorm(nn.Module):
    """`torch.nn.GroupNorm` from sums over pixels, which Inductor vectorises over the channels of a
    channels_last map; of torch's own it makes a scalar loop.

    The mean is taken before the squares, as large means would leave nothing of E[x^2] - m^2. A product with a
    0/1 matrix adds up a group's channels.
    """

    def __init__(self, source: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = source.weight, source.bias, source.eps
        self.group_size = source.num_channels // source.num_groups
        group = source.weight.new_ones(self.group_size, self.group_size)
        block_diag: Any = torch.block_diag  # untyped in torch
        self.same_group = nn.Buffer(block_diag(*[group] * source.num_groups))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``, channels_last."""
        batch, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        share = 1 / (height * width * self.group_size)
        mean = pixels.sum(1) @ self.same_group * share
        centred = pixels - mean[:, None]
        variance = (centred * centred).sum(1) @ self.same_group * share
        scale = (variance + self.eps).rsqrt() * self.weight
        out = centred * scale[:, None] + self.bias
        return out.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class Rearranged:
    """A network in another form.

    Args:
        source: the network, as :func:`can_be_rearranged` wants it. Its tensors must stay where they are.

    Attributes:
        unet: it, in eval mode.
    """

    def __init__(self, source: UNet) -> None:
        with torch.device("meta"):
            self.unet = UNet(source.config).eval()
        self.unet.load_state_dict(source.state_dict(), assign=True)
        self.unet.requires_grad_(False)
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._upsamples: list[tuple[nn.Conv2d, PhaseUpsample]] = []
        for i, layer in enumerate(source.up):
            if isinstance(layer, Upsample):
                form = PhaseUpsample(layer.conv)
                self.unet.up[i] = form
                self._upsamples.append((layer.conv, form))
        for name, module in list(self.unet.named_modules()):
            if isinstance(module, nn.GroupNorm) and module.weight.dtype in EXACT:
                parent, _, own_name = name.rpartition(".")
                setattr(self.unet.get_submodule(parent), own_name, TwoPassGroupNorm(module))
            if isinstance(module, nn.Conv2d):
                given = module.weight.detach()
                copied = torch.empty_like(given, memory_format=torch.channels_last)
                module.weight = nn.Parameter(copied, requires_grad=False)
                self._copies.append((given, copied))
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes the source's weights as they are now."""
        for given, copied in self._copies:
            copied.copy_(given)
        for conv, form in self._upsamples:
            form.refresh(conv)


def can_be_rearranged(unet: UNet) -> bool:
    """Whether the network is as its configuration builds it: nothing exchanged, hooked or parametrised."""
    with torch.device("meta"):
        plain = UNet(unet.config)
    kinds = {name: type(module) for name, module in plain.named_modules()}
    return kinds == {name: type(module) for name, module in unet.named_modules()} and not any(
        module._forward_hooks or module._forward_pre_hooks for module in unet.modules()
    )
