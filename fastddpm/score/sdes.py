"""Diffusion as a stochastic differential equation: what adds noise in continuous time.

    dx = f(t) x dt + g(t) dw        x_t = a(t) x_0 + sigma(t) z,  z ~ N(0, I),  t in [t_min, 1]

An `SDE` says a, sigma, f and g; the samplers, the loss and the likelihood of this package ask it for nothing
else. Times are float64 tensors of any shape, and so is what comes back. Source: Song et al. 2021,
"Score-based generative modeling through stochastic differential equations" (arXiv 2011.13456), section 3 and
appendix B.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_choice, check_number, whole
from fastddpm.signatures import checked

Spacing = Literal["time", "log_snr"]
SPACINGS: tuple[Spacing, ...] = ("time", "log_snr")
# Halvings of [t_min, 1] that leave less than a float64 tells apart.
BISECTIONS = 60


class SDE(ABC):
    """A linear forward process with Gaussian transitions.

    Attributes:
        t_min: where sampling ends and likelihoods begin, in (0, 1): there the score is still finite.
        prior_std: standard deviation of the noise that sampling begins with, at t = 1.
    """

    t_min: float
    prior_std: float

    @abstractmethod
    def signal(self, t: Tensor) -> Tensor:
        """a(t): the factor of the clean image in x_t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """sigma(t): the standard deviation of the noise in x_t."""

    @abstractmethod
    def drift(self, t: Tensor) -> Tensor:
        """f(t) = d log a / dt, the factor of x in the drift."""

    @abstractmethod
    def diffusion_squared(self, t: Tensor) -> Tensor:
        """g(t)^2 = d sigma^2 / dt - 2 f sigma^2."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(a^2 / sigma^2), falling with t."""
        return 2 * (self.signal(t).log() - self.sigma(t).log())

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """A and S with x_t = A x_s + S z for s < t: the forward process in one exact step.

        A = a(t)/a(s), S^2 = sigma(t)^2 - A^2 sigma(s)^2. For VP on DDPM's timesteps these are sqrt(1 -
        beta_i) and sqrt(beta_i) (Song et al. 2021, equation 10), for VE 1 and sqrt(sigma_i^2 - sigma_{i-1}^2)
        (equation 8).
        """
        factor = self.signal(t) / self.signal(s)
        variance = self.sigma(t) ** 2 - (factor * self.sigma(s)) ** 2
        return factor, variance.clamp(min=0).sqrt()

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The t whose log SNR is given.

        Raises:
            ValueError: outside of what the process passes between t = 1 and t_min.
        """
        ends = self.log_snr(torch.tensor([1.0, self.t_min], dtype=torch.float64))
        low, high = ends.tolist()
        slack = 1e-9 * (1 + abs(low) + abs(high))
        if not bool(((log_snr >= low - slack) & (log_snr <= high + slack)).all()):
            raise BadArgument(
                "log_snr",
                f"{float(log_snr.min()):.6g} .. {float(log_snr.max()):.6g}",
                f"{low:.6g} .. {high:.6g}",
            )
        return self._inverse(log_snr.to(torch.float64)).clamp(self.t_min, 1.0)

    def _inverse(self, log_snr: Tensor) -> Tensor:
        """t by bisection, for processes without a closed form."""
        early = torch.full_like(log_snr, self.t_min)
        late = torch.ones_like(early)
        for _ in range(BISECTIONS):
            middle = (early + late) / 2
            is_early = self.log_snr(middle) > log_snr
            early, late = torch.where(is_early, middle, early), torch.where(is_early, late, middle)
        return (early + late) / 2

    def times(self, steps: int, spacing: Spacing = "time") -> Tensor:
        """``steps + 1`` times from 1 down to t_min, float64, evenly spaced in time or in log SNR.

        Raises:
            ValueError: fewer than one step, or another spacing.
        """
        steps = whole("steps", steps, least=1)
        check_choice("spacing", spacing, SPACINGS)
        if spacing == "time":
            return torch.linspace(1.0, self.t_min, steps + 1, dtype=torch.float64)
        low, high = self.log_snr(torch.tensor([1.0, self.t_min], dtype=torch.float64)).tolist()
        times = self.time_of_log_snr(torch.linspace(low, high, steps + 1, dtype=torch.float64))
        times[0], times[-1] = 1.0, self.t_min
        return times


class Score(Protocol):
    """A score model: s(x, t) = grad_x log p_t(x), with the process that it belongs to.

    Called with x ``(B, ...)`` and t float64 ``(B,)``; returns the score in x's shape and dtype.
    """

    @property
    def sde(self) -> SDE:
        """The forward process whose score this is."""

    @property
    def device(self) -> torch.device:
        """Where x is expected."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """s(x, t)."""


class VPSDE(SDE):
    """Variance preserving: dx = -beta/2 x dt + sqrt(beta) dw, beta linear (Song et al. 2021, equation 11).

    a = exp(-B/2) and sigma^2 = 1 - exp(-B), B(t) = integral of beta = beta_min t + (beta_max - beta_min)
    t^2/2: the limit of DDPM's linear schedule with beta_i = beta(i/T)/T.

    Args:
        beta_min: beta(0), above 0.
        beta_max: beta(1), at least beta_min.
        t_min: 1e-3 in the paper's sampling, 1e-5 in its training and likelihoods.
    """

    prior_std = 1.0

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3) -> None:
        check_number("beta_max", beta_max, low=0.0)
        check_number("beta_min", beta_min, above=0, high=beta_max)
        self.beta_min, self.beta_max, self.t_min = beta_min, beta_max, checked_t_min(t_min)

    def beta(self, t: Tensor) -> Tensor:
        """beta(t)."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def integrated_beta(self, t: Tensor) -> Tensor:
        """B(t)."""
        return self.beta_min * t + (self.beta_max - self.beta_min) / 2 * t**2

    def signal(self, t: Tensor) -> Tensor:
        """exp(-B/2)."""
        return torch.exp(-self.integrated_beta(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - exp(-B))."""
        return torch.sqrt(-torch.expm1(-self.integrated_beta(t)))

    def drift(self, t: Tensor) -> Tensor:
        """-beta/2."""
        return -self.beta(t) / 2

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """beta."""
        return self.beta(t)

    def _inverse(self, log_snr: Tensor) -> Tensor:
        """exp(-L) = exp(B) - 1."""
        return self._time_of_integrated_beta(torch.nn.functional.softplus(-log_snr))

    def _time_of_integrated_beta(self, integral: Tensor) -> Tensor:
        """The root of (beta_max - beta_min)/2 t^2 + beta_min t = B, without cancellation."""
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return 2 * integral / (self.beta_min + root)


class SubVPSDE(VPSDE):
    """Sub-VP: VP's drift with g^2 = beta (1 - exp(-2B)), so that sigma = 1 - exp(-B) (equation 12).

    Its variance is never above VP's; arguments as there.
    """

    def sigma(self, t: Tensor) -> Tensor:
        """1 - exp(-B)."""
        return -torch.expm1(-self.integrated_beta(t))

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """beta (1 - exp(-2B))."""
        return -self.beta(t) * torch.expm1(-2 * self.integrated_beta(t))

    def _inverse(self, log_snr: Tensor) -> Tensor:
        """exp(-L/2) = sigma/a = 2 sinh(B/2)."""
        return self._time_of_integrated_beta(2 * torch.asinh(torch.exp(-log_snr / 2) / 2))


class VESDE(SDE):
    """Variance exploding: dx = g dw, sigma(t) = sigma_min (sigma_max/sigma_min)^t (Song et al. 2021, eq. 9).

    x_0 comes with noise of sigma_min at t = 0, as in the paper's appendix C: data without noise would have no
    score. g^2 = 2 log(sigma_max/sigma_min) sigma(t)^2.

    Args:
        sigma_min: above 0; small beside the detail of the data (0.01 for images in [0, 1]).
        sigma_max: above sigma_min; as large as the largest distance between two training images.
        t_min: 1e-5 in the paper.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, t_min: float = 1e-5) -> None:
        check_number("sigma_min", sigma_min, above=0)
        check_number("sigma_max", sigma_max, above=sigma_min)
        self.sigma_min, self.sigma_max, self.t_min = sigma_min, sigma_max, checked_t_min(t_min)
        self.prior_std = float(sigma_max)

    def signal(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_min (sigma_max/sigma_min)^t."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def drift(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """2 log(sigma_max/sigma_min) sigma^2."""
        return 2 * math.log(self.sigma_max / self.sigma_min) * self.sigma(t) ** 2

    def _inverse(self, log_snr: Tensor) -> Tensor:
        """sigma = exp(-L/2)."""
        return (-log_snr / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


def checked_t_min(t_min: float) -> float:
    """t_min, in (0, 1); ValueError otherwise."""
    return check_number("t_min", t_min, above=0, below=1)


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient ``()`` or ``(B,)`` shaped to multiply x ``(B, ...)``, in x's dtype and on its device."""
    return coefficient.to(x).reshape(-1, *(1,) * (x.ndim - 1))


@checked
def denoised(score: Score, x: Tensor, t: Tensor) -> Tensor:
    """The mean of x_0 given x_t, by Tweedie's formula: (x + sigma^2 s) / a.

    Args:
        score: the score model.
        x: ``(B, ...)``.
        t: float64 ``()`` or ``(B,)``.
    """
    variance, signal = score.sde.sigma(t) ** 2, score.sde.signal(t)
    return (x + like(variance, x) * score(x, t.expand(len(x)))) / like(signal, x)
