"""`q_sample` in plain torch: what runs on every device but CUDA, and what the kernel is held against."""

from __future__ import annotations

from torch import Tensor

from ..noise import normal

TRAINING_NOISE_STREAM = 1
"""Counter word 2 of the noise that training adds (noise spec v1)."""


def q_sample(
    x_0: Tensor,
    t: Tensor,
    sqrt_alphas_cumprod: Tensor,
    sqrt_one_minus_alphas_cumprod: Tensor,
    noise: Tensor,
) -> Tensor:
    """x_t = sqrt_alphas_cumprod[t] * x_0 + sqrt_one_minus_alphas_cumprod[t] * noise, differentiable."""
    per_sample = (-1, *(1,) * (x_0.dim() - 1))
    signal = sqrt_alphas_cumprod.index_select(0, t).reshape(per_sample)
    sigma = sqrt_one_minus_alphas_cumprod.index_select(0, t).reshape(per_sample)
    return signal * x_0 + sigma * noise


def training_noise(seeds: Tensor, ordinals: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The noise (B, *shape) of the samples with these global ordinals, whose halves are step and repeat."""
    return normal(seeds, ordinals & 0xFFFFFFFF, shape, stream=TRAINING_NOISE_STREAM, repeat=ordinals >> 32)
