"""What a network of actions is compared with another on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastddpm.unet1d.unet1d import UNet1D


def of_actions(unet: nn.Module, times: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Noise for trajectories ``(N, T, A)`` at times ``(N,)``, and observations where the network has them."""
    assert isinstance(unet, UNet1D)
    config, count = unet.config, len(times)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 4 * config.length_multiple, config.action_dim, generator=generator)
    if not config.cond_dim:
        return noise, {}
    return noise, {"global_cond": torch.randn(count, config.cond_dim, generator=generator)}
