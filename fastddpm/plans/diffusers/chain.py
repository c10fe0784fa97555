"""The chain that a diffusers scheduler has set: its noise levels and times, read off the scheduler itself.

Spacings, Karras' and other sigmas, offsets and roundings are then the scheduler's own, whichever class it is
of; only what its steps do with them is written here, in the other modules of this package.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastddpm.checks import BadArgument
from fastddpm.inputs import Fields
from fastddpm.plans.tableau import Point


class Level:
    """A noise level in float32, as diffusers' exponential solvers compute with it.

    Attributes:
        alpha: 1/sqrt(1 + (sigma/alpha)^2), a tensor without dimensions, as are the next.
        sigma: (sigma/alpha) alpha.
        log_snr: log alpha - log sigma; infinite at the clean image.
    """

    def __init__(self, ratio: float) -> None:
        given = torch.tensor(ratio, dtype=torch.float32)
        self.alpha = 1 / ((given**2 + 1) ** 0.5)
        self.sigma = given * self.alpha
        self.log_snr = torch.log(self.alpha) - torch.log(self.sigma)
        self.is_clean = ratio == 0


@dataclass(frozen=True)
class Chain:
    """Where a scheduler evaluates, in variance preserving terms: x = alpha*x0 + sigma*eps.

    Attributes:
        config: of the scheduler.
        scheduler: with its timesteps set; not stepped.
        points: of each timestep, and where the chain ends.
        start: the first that a chain visits; solvers that remember begin anew there.
        eta: of a scheduler whose step takes it.
        sigma_data: of a preconditioned network's, whose points are of x0/sigma_data; None of others.
    """

    config: Fields
    scheduler: Any
    points: list[Point]
    start: int = 0
    eta: float | None = None
    sigma_data: float | None = None

    @classmethod
    def of_sigmas(cls, scheduler: Any, *, start: int = 0, sigma_data: float | None = None) -> Chain:
        """Of a scheduler with ``sigmas``: over ``sigma_data``, sigma/alpha of each row and of the end."""
        sigmas = (scheduler.sigmas.detach().cpu().double() / (sigma_data or 1.0)).tolist()
        return cls(scheduler.config, scheduler, _points(scheduler, sigmas), start, sigma_data=sigma_data)

    @classmethod
    def of_alphas(cls, scheduler: Any, *, start: int = 0, eta: float | None = None) -> Chain:
        """Of a scheduler that looks its timesteps up in ``alphas_cumprod``; its class says where it ends."""
        abar = scheduler.alphas_cumprod.detach().cpu().double()
        times = scheduler.timesteps.tolist()
        points = [at_abar(float(abar[t]), time=float(t)) for t in times]
        return cls(scheduler.config, scheduler, points, start, eta)

    @functools.cached_property
    def levels(self) -> list[Level]:
        """Those of the points, in float32."""
        return [Level(point.ratio) for point in self.points]

    @property
    def steps(self) -> int:
        """Timesteps of the whole chain, also where it starts later."""
        return len(self.scheduler.timesteps)

    @property
    def rows(self) -> range:
        """Those that a chain visits."""
        return range(self.start, self.steps)

    def at_timestep(self, timestep: int) -> Point:
        """Where ``alphas_cumprod`` says; below 0 it is the class's ``final_alpha_cumprod``."""
        abar = self.scheduler.alphas_cumprod
        if timestep >= len(abar):
            raise BadArgument(
                "num_inference_steps", f"{self.steps}: timestep {timestep} is looked up", "another"
            )
        value = float(abar[timestep] if timestep >= 0 else self.scheduler.final_alpha_cumprod)
        return at_abar(value, time=float(max(timestep, 0)))


def at_ratio(ratio: float, *, time: float) -> Point:
    """Where sigma/alpha is so much."""
    alpha = 1 / math.hypot(1.0, ratio)
    return Point(time, alpha, ratio * alpha)


def at_abar(abar: float, *, time: float) -> Point:
    """Where alphas_cumprod is so much."""
    return Point(time, math.sqrt(abar), math.sqrt(1 - abar))


def with_timesteps(scheduler: object, num_inference_steps: int) -> Any:
    """A copy of a scheduler with its timesteps set; of a configuration, the scheduler that it describes.

    Raises:
        ValueError: a number of steps that the scheduler does not take, or a configuration without diffusers.
    """
    if isinstance(scheduler, Mapping):
        ready = _built(scheduler)
    else:
        ready = copy.copy(scheduler)
    try:
        ready.set_timesteps(num_inference_steps)
    except (ValueError, IndexError, ZeroDivisionError, AssertionError, RuntimeError) as error:
        raise BadArgument(
            "num_inference_steps", f"{num_inference_steps}, at which the scheduler says: {error},", "another"
        ) from error
    return ready


def _points(scheduler: Any, sigmas: Sequence[float]) -> list[Point]:
    times = scheduler.timesteps.detach().cpu().double().tolist()
    if len(sigmas) <= len(times):
        raise BadArgument("scheduler", f"{len(sigmas)} sigmas for {len(times)} timesteps", "one more")
    levels = zip([*times, math.nan], sigmas, strict=False)  # some repeat the last
    return [at_ratio(sigma, time=time) for time, sigma in levels]


def _built(config: Fields) -> Any:
    name = config.get("_class_name")
    try:
        import diffusers
    except ImportError:
        raise BadArgument(
            "scheduler",
            f"the configuration of a {name} without diffusers",
            "pip install 'fastddpm[diffusers]'",
        ) from None
    return getattr(diffusers, str(name)).from_config(dict(config))
