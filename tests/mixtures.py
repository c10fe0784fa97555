"""A mixture of Gaussians under a linear process: its density, score and likelihood in closed form.

Written from textbook formulas in float64, with nothing of `fastddpm.score` but the process's a(t) and
sigma(t): x_t = a x_0 + sigma z of a component N(m, C) is N(a m, a^2 C + sigma^2 I).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastddpm.score import SDE


class Mixture:
    """A `Score` whose p_t is known.

    Args:
        weights: ``(K,)``, summing to 1.
        means: ``(K, d)``.
        covariances: ``(K, d, d)``.
        sde: the process.
    """

    device = torch.device("cpu")

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, sde: SDE) -> None:
        self.weights, self.means, self.covariances = weights.double(), means.double(), covariances.double()
        self.sde = sde
        self.spreads, self.axes = torch.linalg.eigh(self.covariances)

    def _standardised(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Along each component's eigenvectors: offset from its mean, variance at t, ``(B, K, d)`` twice."""
        a, sigma = self.sde.signal(t)[:, None, None], self.sde.sigma(t)[:, None, None]
        offset = torch.einsum("kji,bkj->bki", self.axes, x.double()[:, None] - a * self.means)
        return offset, a**2 * self.spreads + sigma**2

    def component_log_densities(self, x: Tensor, t: Tensor) -> Tensor:
        """log(w_k N(x; a m_k, a^2 C_k + sigma^2 I)), float64 ``(B, K)``."""
        offset, variance = self._standardised(x, t)
        terms = offset**2 / variance + torch.log(2 * math.pi * variance)
        return self.weights.log() - terms.sum(dim=2) / 2

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x), float64 ``(B,)``."""
        return self.component_log_densities(x, t).logsumexp(dim=1)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """grad_x log p_t(x), by the formula, like x."""
        offset, variance = self._standardised(x, t)
        responsible = self.component_log_densities(x, t).softmax(dim=1)
        return -torch.einsum("bk,kji,bki->bj", responsible, self.axes, offset / variance).to(x.dtype)

    def draw(self, count: int, seed: int = 0) -> Tensor:
        """Samples of p_0 by torch's generator, float64 ``(count, d)``."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        factors = torch.linalg.cholesky(self.covariances)
        z = torch.randn(count, self.means.shape[1], 1, generator=generator, dtype=torch.float64)
        return self.means[component] + (factors[component] @ z)[..., 0]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``(d,)`` and covariance ``(d, d)`` of p_0."""
        mean = self.weights @ self.means
        centred = self.means - mean
        between = torch.einsum("k,ki,kj->ij", self.weights, centred, centred)
        return mean, between + torch.einsum("k,kij->ij", self.weights, self.covariances)


def two_blobs(sde: SDE) -> Mixture:
    """Two far Gaussians in the plane, one of them tilted, with weights 0.3 and 0.7."""
    return Mixture(
        torch.tensor([0.3, 0.7]),
        torch.tensor([[-1.0, -0.5], [1.0, 0.5]]),
        torch.tensor([[[0.04, 0.0], [0.0, 0.09]], [[0.09, 0.05], [0.05, 0.06]]]),
        sde,
    )


def many_dimensions(sde: SDE, d: int = 24) -> Mixture:
    """Two Gaussians in d dimensions, with variances from 0.05 to 0.3 and weights 0.4 and 0.6."""
    variances = torch.linspace(0.05, 0.3, d)
    mean = torch.full((d,), 0.5)
    covariances = torch.stack((torch.diag(variances), torch.diag(variances.flip(0))))
    return Mixture(torch.tensor([0.4, 0.6]), torch.stack((-mean, mean)), covariances, sde)
