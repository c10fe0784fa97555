"""Denoising score matching: what a score network is trained with, for any process.

    L = E over t, x_0, z of w(t) |s(x_t, t) + z/sigma(t)|^2          x_t = a x_0 + sigma z

(Vincent 2011; Song et al. 2021, equation 7.) The score of p_t is its minimiser for every w. For VP processes
on a discrete schedule `fastddpm.training` minimises the same with w = sigma^2, which is the loss of epsilon.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastddpm.checks import check_choice
from fastddpm.randomness import check_ordinals, checked_seeds
from fastddpm.score.sdes import Score, like
from fastddpm.signatures import checked
from fastddpm_kernels import normal
from fastddpm_kernels.noise import words

WEIGHTINGS = ("variance", "likelihood")
NOISE_STREAM, TIME_STREAM = 1, 2


class DenoisingScoreMatching:
    """The loss of each sample, with t and z that follow from the run's seed and the sample's ordinal alone.

    Args:
        seed: of the run, in [0, 2**63).
        weighting: ``variance``: w = sigma^2, so that every t counts alike; ``likelihood``: w = g^2, so that
            the mean bounds the negative log likelihood (Song, Durkan, Murray and Ermon 2021, arXiv
            2101.09258).

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """

    def __init__(self, seed: int = 0, weighting: str = "variance") -> None:
        check_choice("weighting", weighting, WEIGHTINGS)
        self.seed, self.weighting = int(checked_seeds([seed], "seed")[0]), weighting

    @checked
    def __call__(self, score: Score, x_0: Tensor, ordinals: Tensor) -> Tensor:
        """The weighted squared error summed over dimensions, ``(B,)``; differentiable.

        Args:
            score: the score model.
            x_0: float ``(B, ...)``, data.
            ordinals: int64 ``(B,)``, each sample's number over all that the run has drawn.
        """
        check_ordinals(ordinals, len(x_0))
        sde = score.sde
        seeds = torch.full_like(ordinals, self.seed)
        step, repeat = ordinals & 0xFFFFFFFF, ordinals >> 32
        word = words(seeds, step, repeat=repeat, n_elements=1, stream=TIME_STREAM)[0][:, 0]
        t = sde.t_min + (1 - sde.t_min) * (word.double() + 0.5) / 2**32
        z = normal(seeds, step, repeat=repeat, shape=x_0.shape[1:], stream=NOISE_STREAM).to(x_0)
        sigma = sde.sigma(t)
        x_t = like(sde.signal(t), x_0) * x_0 + like(sigma, x_0) * z
        # sigma s + z: of order 1 at every t, where s alone is large.
        squared = (like(sigma, x_0) * score(x_t, t) + z).square().flatten(1).sum(dim=1)
        if self.weighting == "variance":
            return squared
        return squared * (sde.diffusion_squared(t) / sigma**2).to(x_0)
