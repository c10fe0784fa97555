"""Janspiry's Palette repository restated: its Network around either UNet, in its order of operations.

Source: models/network.py and models/guided_diffusion_modules/unet.py, read for what they compute. The
network is told gamma, the product of 1 - beta up to a timestep.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastddpm_bench.peers.guided_unet import UNetModel, embedding


class GammaUNet(UNetModel):
    """The UNetModel with its embedding under another name, of gammas ``(B, 1)`` in the place of times."""

    def __init__(self, channels: int = 6, outputs: int = 3, **options: Any) -> None:
        super().__init__(channels, outputs, **options)
        self.cond_embed = self.time_embed
        del self.time_embed

    def embedded(self, t: Tensor) -> Tensor:
        """``(B, 1)`` -> ``(B, 4 * width)``."""
        emb: Tensor = self.cond_embed(embedding(t.view(-1), self.width))
        return emb


class Network(nn.Module):
    """A UNet and the buffers of a schedule.

    Args:
        denoise_fn: called with what is known beside y_t, and gamma ``(B, 1)``.
        betas: float64 ``[T]``.
    """

    gammas: Tensor
    sqrt_recip_gammas: Tensor
    sqrt_recipm1_gammas: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def __init__(self, denoise_fn: nn.Module, betas: npt.NDArray[np.float64]) -> None:
        super().__init__()
        self.denoise_fn = denoise_fn
        self.set_new_noise_schedule(betas)

    def set_new_noise_schedule(self, betas: npt.NDArray[np.float64]) -> None:
        gammas = np.cumprod(1.0 - betas)
        before = np.append(1.0, gammas[:-1])
        variance = betas * (1.0 - before) / (1.0 - gammas)
        buffers = {
            "gammas": gammas,
            "sqrt_recip_gammas": np.sqrt(1.0 / gammas),
            "sqrt_recipm1_gammas": np.sqrt(1.0 / gammas - 1.0),
            "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
            "posterior_mean_coef1": betas * np.sqrt(before) / (1.0 - gammas),
            "posterior_mean_coef2": (1.0 - before) * np.sqrt(1.0 - betas) / (1.0 - gammas),
        }
        for name, values in buffers.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def p_sample(self, y_t: Tensor, t: int, y_cond: Tensor) -> Tensor:
        gamma = self.gammas[t].repeat(len(y_t), 1)
        eps = self.denoise_fn(torch.cat([y_cond, y_t], dim=1), gamma)
        y_0 = (self.sqrt_recip_gammas[t] * y_t - self.sqrt_recipm1_gammas[t] * eps).clamp(-1.0, 1.0)
        mean = self.posterior_mean_coef1[t] * y_0 + self.posterior_mean_coef2[t] * y_t
        noise = torch.randn_like(y_t) if t > 0 else torch.zeros_like(y_t)
        return mean + noise * (0.5 * self.posterior_log_variance_clipped[t]).exp()

    @torch.no_grad()
    def restoration(
        self, y_cond: Tensor, y_t: Tensor, y_0: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The last of its images; what ``mask`` leaves at 0 is that of ``y_0`` after every step."""
        for t in reversed(range(len(self.gammas))):
            y_t = self.p_sample(y_t, t, y_cond)
            if mask is not None:
                assert y_0 is not None
                y_t = y_0 * (1.0 - mask) + mask * y_t
        return y_t
