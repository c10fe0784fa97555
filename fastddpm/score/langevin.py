"""Langevin dynamics: steps along the score with noise, which leave the density as it is.

    x <- x + eps s(x) + sqrt(2 eps) z

As the corrector of `predictor_corrector`, and annealed over a ladder of noise levels (Song and Ermon 2019,
"Generative modeling by estimating gradients of the data distribution", arXiv 1907.05600, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_number, quoted, whole
from fastddpm.finite import check_finite
from fastddpm.score.denoiser import Denoiser
from fastddpm.score.noise import SeededNoise
from fastddpm.score.sdes import SDE, Score, like
from fastddpm.signatures import checked


def langevin_step(x: Tensor, score: Tensor, step_size: Tensor, noise: Tensor) -> Tensor:
    """x + eps score + sqrt(2 eps) noise, for eps ``()`` or ``(B,)`` and tensors ``(B, ...)``."""
    return x + like(step_size, x) * score + like((2 * step_size).sqrt(), x) * noise


def corrector_step_size(sde: SDE, score: Tensor, s: Tensor, t: Tensor, snr: float) -> Tensor:
    """eps of each sample, ``(B,)``: 2 A^2 (r sqrt(d) / |score_i|)^2, at most (sigma(s))^2.

    Song et al. 2021, algorithms 4 and 5, whose alpha is 1 for VE and alpha_i for VP: A^2 of the predictor's
    transition from t to s. They take the means of norms over the batch; here each sample has its own, so that
    it depends on no other, and sqrt(d) stands for the norm of the noise, as they recommend for small batches:
    a step size that depends on its own noise would widen the density. The bound binds where a score is below
    sqrt(2) r A times what noise alone would give, and keeps the step finite where the score is 0.

    Args:
        sde: the process.
        score: ``(B, ...)`` at time s.
        s: float64 ``()``, where the state is.
        t: float64 ``()``, the time before the predictor's step.
        snr: r.
    """
    factor, _ = sde.transition(s, t)
    squared = score.to(torch.float64).flatten(1).square()
    largest = sde.sigma(s) ** 2
    wanted = 2 * factor**2 * snr**2 * squared.shape[1] / squared.sum(dim=1)
    return torch.minimum(wanted, largest)


@checked
@torch.no_grad()
def sample_annealed_langevin(
    score: Score,
    seeds: Sequence[int] | Tensor,
    shape: Sequence[int],
    *,
    sigmas: Sequence[float] | Tensor,
    steps_per_level: int = 100,
    step_size: float = 0.05,
    denoise: bool = True,
) -> Tensor:
    """Annealed Langevin dynamics in variables without signal decay, x_t / a: any process becomes a VE ladder.

    At each level sigma, ``steps_per_level`` times: x <- x + eps s + sqrt(2 eps) z with eps = step_size
    sigma^2. Song and Ermon's alpha_i = epsilon sigma_i^2/sigma_L^2, twice this eps, is step_size = epsilon/(2
    sigma_L^2); their 2e-5 at sigma_L = 0.01 is 0.1. The chain starts from sigma_1 z.

    Args:
        score: the score model; sigma is its sigma(t)/a(t).
        seeds: one integer in [0, 2**63) per sample, which depends on it alone.
        shape: of a sample.
        sigmas: noise levels, strictly falling, above 0, all within the process.
        steps_per_level: T in the paper, 100.
        step_size: in units of sigma^2, in (0, 1); the smaller, the less bias and the more steps.
        denoise: end with E[x_0 | x] instead of a sample at the last level.

    Returns:
        float32 ``(B, *shape)``.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
        NonFiniteSamples: NaN or infinity among the samples.
    """
    accepted = "a falling list of numbers above 0"
    try:
        levels = torch.as_tensor(sigmas, dtype=torch.float64).to(score.device)
    except (TypeError, ValueError, RuntimeError):
        raise BadArgument("sigmas", quoted(sigmas), accepted) from None
    if levels.ndim != 1 or not len(levels) or not bool((levels[1:] < levels[:-1]).all()) or levels[-1] <= 0:
        raise BadArgument("sigmas", quoted(sigmas), accepted)
    check_number("step_size", step_size, low=0.0, high=1.0)
    repeats = whole("steps_per_level", steps_per_level, least=1)
    denoiser, noise = Denoiser(score), SeededNoise(seeds, shape, score.device)
    denoiser.check(levels)
    x = float(levels[0]) * noise.start()
    for k, sigma in enumerate(levels):
        size, t = step_size * sigma**2, denoiser.time(sigma)
        for j in range(repeats):
            x = langevin_step(x, denoiser.score(x, t), size, noise.corrector(k, j))
    x = denoiser(x, levels[-1]) if denoise else x
    check_finite(x, noise.seeds)
    return x
