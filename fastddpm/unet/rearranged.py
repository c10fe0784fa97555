"""A UNet as Inductor runs it fastest on a CPU: the same function, its convolutions packed, each
upsampling with its convolution as four small convolutions, and norms that vectorise.

The weights are derived from another network's and follow it by :meth:`Rearranged.refresh`; what needs no
other form is shared with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fastddpm.unet.blocks import Upsample
from fastddpm.unet.packed import CopiedConv2d, PackedConv2d, following
from fastddpm.unet.phases import phase_kernels
from fastddpm.unet.unet import UNet

EXACT = (torch.float32, torch.float64)
"""Dtypes whose sums over pixels need no wider one."""


class PhaseUpsample(nn.Module):
    """`Upsample` at 4/9 of its operations, by `fastddpm.unet.phases`."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        out_channels, in_channels = source.weight.shape[:2]
        # Drawing initial weights would advance torch's generator, from which a chain's noise may come.
        options = {"device": source.weight.device, "dtype": source.weight.dtype}
        undrawn: Callable[..., nn.Conv2d] = skip_init
        phases = undrawn(nn.Conv2d, in_channels, 4 * out_channels, 2, padding=1, **options)
        phases.requires_grad_(False)
        self._sources = [source, phases]  # in a list: no parts of this module
        self.conv = following(phases)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes the weights of the 3x3 convolution as they are now."""
        source, phases = self._sources
        phases.weight.copy_(phase_kernels(source.weight))
        if source.bias is not None and phases.bias is not None:
            phases.bias.copy_(source.bias.repeat(4))
        self.conv.refresh()

    def own_tensors(self) -> list[Tensor]:
        """The 2x2 kernels; their packed form is the convolution's own."""
        return list(self._sources[1].parameters())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, 2H, 2W)``, channels_last."""
        batch, _, height, width = x.shape
        phases = self.conv(x).permute(0, 2, 3, 1)
        # (B, H + 1, W + 1, 2, 2, C); phase (i, j) of output pixel (y, x) stands at (y + i, x + j)
        phases = phases.reshape(batch, height + 1, width + 1, 2, 2, -1)
        rows = [
            torch.stack([phases[:, i : i + height, j : j + width, i, j] for j in (0, 1)], 3) for i in (0, 1)
        ]
        out = torch.stack(rows, 2).reshape(batch, 2 * height, 2 * width, -1)
        return out.permute(0, 3, 1, 2)


class TwoPassGroupNorm(nn.Module):
    """`torch.nn.GroupNorm` from sums over pixels, which Inductor vectorises over the channels of a
    channels_last map; what it makes of torch's own is slower.

    The mean is taken before the squares, as large means would leave nothing of E[x^2] - m^2. A product with a
    0/1 matrix adds up a group's channels.
    """

    def __init__(self, source: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = source.weight, source.bias, source.eps
        self.group_size = source.num_channels // source.num_groups
        group = source.weight.new_ones(self.group_size, self.group_size)
        block_diag: Callable[..., Tensor] = torch.block_diag  # untyped in torch
        self.same_group = nn.Buffer(block_diag(*[group] * source.num_groups))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C, H, W)``, channels_last."""
        batch, channels, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        count = height * width * self.group_size
        mean = pixels.sum(1) @ self.same_group / count
        centred = pixels - mean[:, None]
        variance = (centred * centred).sum(1) @ self.same_group / count
        scale = (variance + self.eps).rsqrt() * self.weight
        out = centred * scale[:, None] + self.bias
        return out.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


OWNERS = (PhaseUpsample, PackedConv2d, CopiedConv2d)
"""What has weights of its own, derived from the source's."""


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
        for name, module in list(self.unet.named_modules()):
            if isinstance(module, Upsample):
                self._exchange(name, PhaseUpsample(module.conv))
        for name, module in list(self.unet.named_modules()):
            if isinstance(module, nn.Conv2d):
                self._exchange(name, following(module))
            elif isinstance(module, nn.GroupNorm) and module.weight.dtype in EXACT:
                self._exchange(name, TwoPassGroupNorm(module))
        self.refresh()

    def refresh(self) -> None:
        """Takes the source's weights as they are now."""
        for module in self.unet.modules():
            if isinstance(module, OWNERS):
                module.refresh()

    def forward_biased(self, x: Tensor, bias: Tensor) -> Tensor:
        """As of `UNet.forward_biased`."""
        return self.unet.forward_biased(x, bias)

    def tensors(self) -> list[Tensor]:
        """Tensors of its own: what it does not share with the source."""
        return [
            t for module in self.unet.modules() if isinstance(module, OWNERS) for t in module.own_tensors()
        ]

    def _exchange(self, name: str, module: nn.Module) -> None:
        parent, _, own_name = name.rpartition(".")
        setattr(self.unet.get_submodule(parent), own_name, module)


def can_be_rearranged(unet: UNet) -> bool:
    """Whether the network is as its configuration builds it: nothing exchanged, hooked or parametrised."""
    with torch.device("meta"):
        plain = UNet(unet.config)
    kinds = {name: type(module) for name, module in plain.named_modules()}
    return kinds == {name: type(module) for name, module in unet.named_modules()} and not any(
        module._forward_hooks or module._forward_pre_hooks for module in unet.modules()
    )
