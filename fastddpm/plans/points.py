"""The points of a solver's chain: noise levels, and the times that a network trained at T of them is told.

Between two training timesteps the time is interpolated in log sigma, sigma = sqrt((1 - abar)/abar), as
k-diffusion and diffusers do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastddpm.checks import BadArgument, check_choice
from fastddpm.extras import install
from fastddpm.plans.dpmpp import SMALLEST_ALPHA_CUMPROD
from fastddpm.plans.plan import Float64
from fastddpm.plans.spacing import SIGMA_SPACINGS, Int64, TimestepSpacing
from fastddpm.plans.tableau import Point
from fastddpm.schedule import NoiseSchedule

KARRAS_RHO = 7.0
"""Karras et al. 2022, equation 5."""

BETA_SHAPE = 0.6
"""Both parameters of the beta distribution: Lee et al. 2024 (beta sampling)."""

OUTSIDE = 0.05
"""By how much of itself a given level may lie above the largest of training, or below the smallest: published
lists are rounded. The network is told the nearest time."""

CLEAN = Point(time=math.nan, alpha=1.0, sigma=0.0)
"""Where every chain ends."""


@dataclass(frozen=True)
class Levels:
    """The noise levels that a network was trained at.

    Attributes:
        abar: float64 [T], alphas_cumprod, falling, none 0.
        log_ratio: float64 [T], log(sigma/alpha), rising.
    """

    abar: Float64
    log_ratio: Float64

    @classmethod
    def of(cls, schedule: NoiseSchedule) -> Levels:
        """Those of a schedule; 0 is taken as 2**-24."""
        abar = np.maximum(schedule.alphas_cumprod, SMALLEST_ALPHA_CUMPROD)
        return cls(abar, 0.5 * (np.log1p(-abar) - np.log(abar)))

    def at_timestep(self, timestep: int) -> Point:
        """At a training timestep."""
        abar = float(self.abar[timestep])
        return Point(float(timestep), math.sqrt(abar), math.sqrt(1 - abar))

    def at_ratio(self, ratio: float) -> Point:
        """Where sigma/alpha is ``ratio``, at the time between two training timesteps that this is."""
        time = float(np.interp(math.log(ratio), self.log_ratio, np.arange(len(self.abar))))
        alpha = 1 / math.hypot(1.0, ratio)
        return Point(time, alpha, ratio * alpha)


def points_at(levels: Levels, timesteps: Int64) -> list[Point]:
    """Points at training timesteps, and the clean image."""
    return [*(levels.at_timestep(int(t)) for t in timesteps), CLEAN]


def points_of_sigmas(levels: Levels, sigmas: Float64) -> list[Point]:
    """Points where sigma/alpha is as given, and the clean image.

    Args:
        levels: of training.
        sigmas: [S], strictly descending, above 0; at most as many as there are timesteps.

    Raises:
        ValueError: more of them, or one outside the levels of training by more than `OUTSIDE`.
    """
    smallest, largest = np.exp(levels.log_ratio[[0, -1]])
    if len(sigmas) > len(levels.abar):
        raise BadArgument("sigmas", f"{len(sigmas)} numbers", f"at most T, {len(levels.abar)}")
    for sigma in sigmas[[0, -1]]:
        if not smallest * (1 - OUTSIDE) <= sigma <= largest * (1 + OUTSIDE):
            accepted = f"levels of training, {smallest:.4g} to {largest:.4g},"
            raise BadArgument("sigmas", f"{sigma:.6g} among them", accepted)
    return [*(levels.at_ratio(float(sigma)) for sigma in sigmas), CLEAN]


def spaced_points(levels: Levels, steps: int, spacing: TimestepSpacing) -> list[Point]:
    """``steps`` points from the largest noise level to the smallest, and the clean image.

    In sigma/alpha, as in diffusers. karras: evenly in its seventh root (Karras et al. 2022, equation 5).
    exponential, or log_snr: evenly in its logarithm, which is evenly in the log signal-to-noise ratio. beta:
    at quantiles of the beta distribution with both parameters 0.6 (Lee et al. 2024).

    Raises:
        ValueError: fewer than 2 steps: a spacing has two ends; beta without scipy.
    """
    check_choice("timestep_spacing", spacing, SIGMA_SPACINGS)
    if steps < 2:
        raise BadArgument("num_inference_steps", f"{steps} with timestep_spacing {spacing!r}", "at least 2")
    largest, smallest = np.exp(levels.log_ratio[[-1, 0]])
    way = np.linspace(0.0, 1.0, steps)[1:-1]
    if spacing == "karras":
        first, last = largest ** (1 / KARRAS_RHO), smallest ** (1 / KARRAS_RHO)
        ratios = (first + way * (last - first)) ** KARRAS_RHO
    elif spacing in ("exponential", "log_snr"):
        ratios = largest * (smallest / largest) ** way
    else:
        ratios = smallest + _beta_quantiles(1 - way) * (largest - smallest)
    ends = levels.at_timestep(len(levels.abar) - 1), levels.at_timestep(0)
    return [ends[0], *(levels.at_ratio(float(ratio)) for ratio in ratios), ends[1], CLEAN]


def _beta_quantiles(probabilities: Float64) -> Float64:
    try:
        from scipy import special  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise BadArgument(
            "timestep_spacing", "'beta' without scipy", f"another, or {install('scipy')}"
        ) from None
    quantiles: Float64 = special.betaincinv(BETA_SHAPE, BETA_SHAPE, probabilities)
    return quantiles
