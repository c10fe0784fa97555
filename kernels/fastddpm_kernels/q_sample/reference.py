"""`q_sample` in plain torch: what runs on every device but CUDA, and what the kernel is held against."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..noise import normal
from ..traffic import Traffic, size

TRAINING_NOISE_STREAM = 1
"""Counter word 2 of the noise that training adds (noise spec v1)."""


class Arguments(NamedTuple):
    """Of one call, in the order of the operator's schema; what each is says `op.q_sample`.

    signal and sigma are its tables of sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod).
    """

    x_0: Tensor
    t: Tensor
    signal: Tensor
    sigma: Tensor
    noise: Tensor | None = None
    seeds: Tensor | None = None
    ordinals: Tensor | None = None
    return_noise: bool = False

    def traffic(self) -> Traffic:
        """x_0 is read, x_t written; given noise is read, drawn noise written where it is returned."""
        tensors = 3 if self.noise is not None or self.return_noise else 2
        return Traffic(tensors * size(self.x_0), 3 * self.x_0.numel())


def q_sample(given: Arguments) -> tuple[Tensor, Tensor]:
    """(signal[t] * x_0 + sigma[t] * noise, noise), differentiable; the noise is drawn unless it is given."""
    x_0, t, signal, sigma, noise, seeds, ordinals, _ = given
    if noise is None:
        assert seeds is not None
        assert ordinals is not None
        noise = training_noise(seeds, ordinals, tuple(x_0.shape[1:]))
    per_sample = (-1, *(1,) * (x_0.dim() - 1))
    signal = signal.index_select(0, t).reshape(per_sample)
    sigma = sigma.index_select(0, t).reshape(per_sample)
    return signal * x_0 + sigma * noise, noise


def training_noise(seeds: Tensor, ordinals: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The noise (B, *shape) of the samples with these global ordinals, whose halves are step and repeat."""
    return normal(seeds, ordinals & 0xFFFFFFFF, shape, stream=TRAINING_NOISE_STREAM, repeat=ordinals >> 32)
