"""Predictor-corrector sampling of the reverse SDE (Song et al. 2021, section 4.2, algorithms 1 to 5).

    for t, s in the grid:  x <- predictor(x, t -> s)      one step of the reverse SDE
                           x <- Langevin(x, s), M times   back toward the marginal at s
    x <- E[x_0 | x]                                       the noise that is left at t_min taken away

The process is linear, so that its exact transition x_t = A x_s + S z (`SDE.transition`) gives each predictor
for VP, sub-VP and VE alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from fastddpm.checks import check_choice, check_number, whole
from fastddpm.finite import check_finite
from fastddpm.score.langevin import corrector_step_size, langevin_step
from fastddpm.score.noise import SeededNoise
from fastddpm.score.sdes import SDE, Score, Spacing, denoised, like
from fastddpm.signatures import checked

Predictor = Callable[[SDE, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Constraint(Protocol):
    """What is known of the image: called with the state after each pass (`fastddpm.score.inverse`)."""

    def __call__(self, sde: SDE, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The state at time t, made to agree; noise is fresh, like x."""

    def final(self, x_0: Tensor) -> Tensor:
        """The finished image, made to agree."""


def ancestral(sde: SDE, x: Tensor, score: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior of x_s given x_t and the predicted x_0: DDPM's own step, in continuous time.

    mean (x + S^2 score)/A, standard deviation S sigma(s)/sigma(t) (Song et al. 2021, appendix F; the
    posterior variance, DDPM's ``fixed_small``).
    """
    factor, deviation = sde.transition(s, t)
    mean = (x + like(deviation**2, x) * score) / like(factor, x)
    return mean, like(deviation * sde.sigma(s) / sde.sigma(t), x)


def reverse_diffusion(sde: SDE, x: Tensor, score: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The forward step run backwards: (2 - A) x + S^2 score + S z (Song et al. 2021, equation 46)."""
    factor, deviation = sde.transition(s, t)
    return like(2 - factor, x) * x + like(deviation**2, x) * score, like(deviation, x)


def euler_maruyama(sde: SDE, x: Tensor, score: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """x - (f x - g^2 score) dt + g sqrt(dt) z with dt = t - s: the reverse SDE (equation 6), first order."""
    dt, variance = t - s, sde.diffusion_squared(t)
    mean = x - like(sde.drift(t) * dt, x) * x + like(variance * dt, x) * score
    return mean, like((variance * dt).sqrt(), x)


PREDICTORS: dict[str, Predictor] = {
    "ancestral": ancestral,
    "reverse_diffusion": reverse_diffusion,
    "euler_maruyama": euler_maruyama,
}


class PassOptions(TypedDict, total=False):
    """Of `sample_pc`: which passes there are."""

    steps: int
    predictor: str
    corrector_steps: int
    snr: float
    spacing: Spacing
    denoise: bool


@checked
@torch.no_grad()
def sample_pc(
    score: Score,
    seeds: Sequence[int] | Tensor,
    shape: Sequence[int],
    *,
    steps: int = 500,
    predictor: str = "reverse_diffusion",
    corrector_steps: int = 1,
    snr: float = 0.16,
    spacing: Spacing = "time",
    denoise: bool = True,
    constraint: Constraint | None = None,
) -> Tensor:
    """Draws samples by predictor-corrector steps: ``steps * (1 + corrector_steps) + 1`` calls of the score.

    Args:
        score: the score model.
        seeds: one integer in [0, 2**63) per sample, which depends on it alone.
        shape: of a sample, usually ``(C, H, W)``.
        steps: of the predictor.
        predictor: ``ancestral``, ``reverse_diffusion`` or ``euler_maruyama``.
        corrector_steps: Langevin passes after each; 0 for none.
        snr: r, the size of the corrector's steps relative to the noise (0.16 in the paper).
        spacing: of the times: ``time`` (the paper's) or ``log_snr``.
        denoise: end with E[x_0 | x] instead of a sample of p at t_min.
        constraint: what is known of the image.

    Returns:
        float32 ``(B, *shape)``.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
        NonFiniteSamples: NaN or infinity among the samples.
    """
    check_choice("predictor", predictor, tuple(PREDICTORS))
    check_number("snr", snr, low=0.0)
    passes = whole("corrector_steps", corrector_steps, least=0)
    sde, noise = score.sde, SeededNoise(seeds, shape, score.device)
    times = sde.times(steps, spacing).to(score.device)
    x = sde.prior_std * noise.start()
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        mean, deviation = PREDICTORS[predictor](sde, x, score(x, t.expand(len(x))), t, s)
        x = mean + deviation * noise.step(k)
        x = x if constraint is None else constraint(sde, x, s, noise.task(k))
        for j in range(passes):
            gradient = score(x, s.expand(len(x)))
            size = corrector_step_size(sde, gradient, s, t, snr)
            x = langevin_step(x, gradient, size, noise.corrector(k, j))
            x = x if constraint is None else constraint(sde, x, s, noise.task(k, j + 1))
    if denoise:
        x = denoised(score, x, times[-1])
    x = x if constraint is None else constraint.final(x)
    check_finite(x, noise.seeds)
    return x
