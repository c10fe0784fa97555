"""The tiny network whose chains the tests draw, and whose rounding `precision_mnist.py` measures."""

from __future__ import annotations

import torch

from fastddpm import UNet, UNetConfig

TINY = UNetConfig(
    in_channels=3,
    base_channels=8,
    channel_mults=(1, 2),
    num_groups=4,
    time_dim=16,
    num_classes=4,
    null_class=True,
    attention_levels=(1,),
)


def make_unet(config: UNetConfig = TINY, seed: int = 0) -> UNet:
    """A network with weights from a seed; every parameter is random, so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    unet = UNet(config)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            is_scale = "norm" in name and name.endswith("weight")
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if is_scale else noise * parameter[0].numel() ** -0.5)
    return unet.eval()
