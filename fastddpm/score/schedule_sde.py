"""The VP process in continuous time of a discrete `NoiseSchedule`: what a DDPM network was trained on.

Timestep i of T stands at t = (i + 1)/T. Between timesteps log SNR is interpolated by a monotone cubic (PCHIP,
Fritsch and Butland 1984, from scipy), so that beta(t) is continuous and solvers keep their order; at
timesteps everything is the schedule's own.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.extras import needed
from fastddpm.schedule import NoiseSchedule
from fastddpm.score.sdes import SDE
from fastddpm.signatures import checked


class ScheduleSDE(SDE):
    """dx = -beta/2 x dt + sqrt(beta) dw with the abar_t of a schedule.

    a^2 = abar and sigma^2 = 1 - abar follow from log SNR L(t): abar = 1/(1 + exp(-L)), beta = -L' (1 - abar).

    Args:
        schedule: T >= 2 timesteps; t_min is 1/T, timestep 0.

    Raises:
        ValueError: a schedule that ends at zero SNR, where log SNR is -infinity, or has one timestep.
        MissingExtra: (an ImportError) scipy is not installed.
    """

    prior_std = 1.0

    @checked
    def __init__(self, schedule: NoiseSchedule) -> None:
        if len(schedule) < 2:
            raise BadArgument("schedule", "one timestep", "two or more")
        if not np.isfinite(schedule.log_snr).all():
            raise BadArgument(
                "schedule", "one that ends at zero SNR, whose logarithm is not finite,", "any other"
            )
        self.schedule = schedule
        self.t_min = 1.0 / len(schedule)
        # Per interval, the cubic's coefficients from the highest power down, in timesteps.
        interpolation = needed("scipy.interpolate", by="fastddpm.score.ScheduleSDE")
        cubics = interpolation.PchipInterpolator(np.arange(len(schedule)), schedule.log_snr).c
        self._cubics = torch.tensor(cubics, dtype=torch.float64)

    def index(self, t: Tensor) -> Tensor:
        """The timestep at time t, as a float: T t - 1, within 0 .. T-1."""
        # 1e-9 of a timestep is rounding: (i + 1)/T * T - 1 is not always i.
        index = t.to(torch.float64) * len(self.schedule) - 1
        whole = index.round()
        index = torch.where((index - whole).abs() < 1e-9, whole, index)
        if bool(((index < 0) | (index > len(self.schedule) - 1)).any()):
            raise BadArgument("t", f"{float(t.min())} .. {float(t.max())}", f"{self.t_min} .. 1")
        return index

    def log_snr(self, t: Tensor) -> Tensor:
        """L(t)."""
        return self._polynomial(t)[0]

    def signal(self, t: Tensor) -> Tensor:
        """sqrt(abar)."""
        return torch.sigmoid(self.log_snr(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - abar)."""
        return torch.sigmoid(-self.log_snr(t)).sqrt()

    def drift(self, t: Tensor) -> Tensor:
        """-beta/2."""
        return -self.diffusion_squared(t) / 2

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """beta = -L' (1 - abar), per unit of t."""
        log_snr, slope = self._polynomial(t)
        return -slope * len(self.schedule) * torch.sigmoid(-log_snr)

    def _polynomial(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """L and its slope per timestep."""
        index = self.index(t)
        interval = index.floor().long().clamp(max=len(self.schedule) - 2)
        u = index - interval
        c3, c2, c1, c0 = self._cubics.to(t.device)[:, interval]
        return ((c3 * u + c2) * u + c1) * u + c0, (3 * c3 * u + 2 * c2) * u + c1
