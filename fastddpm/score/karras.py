"""The sampler of Karras et al. 2022 ("Elucidating the design space of diffusion-based generative models").

dy/dsigma = (y - D(y; sigma))/sigma in the variables of `denoiser`, on their sigma schedule (equation 5), with
Heun's steps (algorithm 1) or Euler's, and with their churn of fresh noise (algorithm 2). Written from the
paper. Euler's step on a DDPM network is DDIM's, which `fastddpm.plans.ddim_plan` has as a table.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_number, is_whole, quoted, whole
from fastddpm.finite import check_finite
from fastddpm.score.denoiser import Denoiser
from fastddpm.score.noise import SeededNoise
from fastddpm.score.sdes import Score, like
from fastddpm.signatures import checked


@dataclass(frozen=True)
class Churn:
    """Noise added before each step of algorithm 2; ``amount`` 0 is the deterministic sampler.

    Attributes:
        amount: S_churn: the noise of a step grows by gamma = min(S_churn/N, sqrt(2) - 1), but never above the
            largest sigma of the process, where the score ends.
        low: S_min; no noise below this sigma.
        high: S_max; none above.
        scale: S_noise, the standard deviation of the fresh noise, 1 or slightly more.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    scale: float = 1.0

    def __post_init__(self) -> None:
        """ValueError for what is not as above."""
        for name in ("amount", "low", "scale"):
            check_number(name, getattr(self, name), low=0.0)
        if not isinstance(self.high, Real) or not self.high >= self.low:
            raise BadArgument("high", quoted(self.high), f"at least low = {self.low!r}")

    def gamma(self, sigma: float, steps: int) -> float:
        """gamma_i of a step that starts at sigma, of ``steps``."""
        return min(self.amount / steps, math.sqrt(2) - 1) if self.low <= sigma <= self.high else 0.0


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """sigma_0 = sigma_max > ... > sigma_{N-1} = sigma_min, and sigma_N = 0; float64 ``(steps + 1,)``.

    sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho (equation 5).

    Raises:
        ValueError: fewer than 2 steps; not 0 < sigma_min < sigma_max; rho below 1.
    """
    steps = whole("steps", steps, least=2)
    check_number("rho", rho, low=1.0)
    check_number("sigma_min", sigma_min, above=0)
    check_number("sigma_max", sigma_max, above=sigma_min)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    largest, smallest = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat(((largest + ramp * (smallest - largest)) ** rho, torch.zeros(1, dtype=torch.float64)))


@checked
@torch.no_grad()
def sample_karras(
    score: Score,
    seeds: Sequence[int] | Tensor,
    shape: Sequence[int],
    *,
    sigmas: Tensor | None = None,
    order: int = 2,
    churn: Churn | None = None,
) -> Tensor:
    """Draws samples: ``order`` calls of the score a step, one in the last, which ends at sigma = 0.

    Args:
        score: the score model of any process.
        seeds: one integer in [0, 2**63) per sample, which depends on it alone.
        shape: of a sample, usually ``(C, H, W)``.
        sigmas: strictly falling and ending with 0, the others within the process; None for `karras_sigmas` of
            18 steps from 80 to 0.002, as far as the process passes these.
        order: 2 for Heun, 1 for Euler.
        churn: None for the deterministic sampler.

    Returns:
        float32 ``(B, *shape)``.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
        NonFiniteSamples: NaN or infinity among the samples.
    """
    if not is_whole(order) or order not in (1, 2):
        raise BadArgument("order", quoted(order), "1 (Euler) or 2 (Heun)")
    denoiser, noise = Denoiser(score), SeededNoise(seeds, shape, score.device)
    if sigmas is None:
        sigmas = karras_sigmas(18, max(0.002, denoiser.sigma_min), min(80.0, denoiser.sigma_max))
    levels = _checked_sigmas(sigmas, denoiser)
    churn, steps = churn or Churn(), len(levels) - 1
    y = levels[0] * noise.start().to(torch.float64)
    for i, (sigma, sigma_next) in enumerate(itertools.pairwise(levels)):
        gamma = churn.gamma(sigma, steps)
        raised = min(sigma * (1 + gamma), max(sigma, denoiser.sigma_max))
        if raised > sigma:
            y = y + math.sqrt(raised**2 - sigma**2) * churn.scale * noise.step(i)
        slope = _slope(denoiser, y, raised)
        step = sigma_next - raised
        moved = y + step * slope
        if order == 2 and sigma_next > 0:
            moved = y + step / 2 * (slope + _slope(denoiser, moved, sigma_next))
        y = moved
    samples = y.float()
    check_finite(samples, noise.seeds)
    return samples


def _slope(denoiser: Denoiser, y: Tensor, sigma: float) -> Tensor:
    """(y - D(y; sigma)) / sigma."""
    level = torch.tensor(sigma, dtype=torch.float64, device=y.device)
    return (y - denoiser(y, level)) / like(level, y)


def _checked_sigmas(sigmas: Tensor, denoiser: Denoiser) -> list[float]:
    levels = torch.as_tensor(sigmas, dtype=torch.float64)
    if levels.ndim != 1 or len(levels) < 2 or levels[-1] != 0 or not bool((levels[1:] < levels[:-1]).all()):
        raise BadArgument("sigmas", quoted(sigmas), "strictly falling numbers that end with 0")
    denoiser.check(levels[:-1])
    values: list[float] = levels.tolist()
    return values
