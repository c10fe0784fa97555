"""Solvers of dy/dt = v(y, t) for a batch: Euler, Heun, Runge-Kutta 4, and the adaptive Runge-Kutta 4(5).

Every sample of an adaptive solution has steps of its own, so that it does not depend on the others in its
batch: scipy's `solve_ivp` solves a batch as one system with one step size. The tableau and the rules for the
step size are those of `scipy.integrate.RK45`, and so are the steps of a sample
(tests/applications/test_score_solvers.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastddpm.checks import check_choice, check_number, whole
from fastddpm.extras import needed
from fastddpm.score.sdes import SDE, SPACINGS, Spacing, like

# y (B, n) float64, t (B,) float64 -> dy/dt (B, n)
Velocity = Callable[[Tensor, Tensor], Tensor]

SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 10.0
FIRST_STEP = 1e-3


class Solver(Protocol):
    """Takes y from the process's time ``start`` to ``end``, one of them 1 and the other t_min."""

    def __call__(self, velocity: Velocity, y: Tensor, sde: SDE, forward: bool) -> Tensor:
        """y ``(B, n)`` float64 at the other end; forward is from t_min to 1."""


def in_variable(
    velocity: Velocity, sde: SDE, spacing: Spacing, forward: bool
) -> tuple[Velocity, float, float]:
    """The equation in the variable u that a solver steps in, and u at both ends: time, or log SNR L.

    dy/dL = v(y, t) dt/dL, and dL/dt = -g^2/sigma^2. In log SNR the equation is smooth where the process's
    rates are not: between the timesteps of a discrete schedule, and near t = 0, where sigma changes fastest.
    """
    if spacing == "time":
        ends = [sde.t_min, 1.0]
        moving = velocity
    else:
        ends = sde.log_snr(torch.tensor([sde.t_min, 1.0], dtype=torch.float64)).tolist()

        def moving(y: Tensor, u: Tensor) -> Tensor:
            t = sde.time_of_log_snr(u)
            return like(-(sde.sigma(t) ** 2) / sde.diffusion_squared(t), y) * velocity(y, t)

    start, end = ends if forward else ends[::-1]
    return moving, start, end


@dataclass(frozen=True)
class Euler:
    """y + h v(y, u): first order, one call a step.

    Attributes:
        steps: at least 1, equal in u.
        spacing: what u is, ``time`` or ``log_snr``.
    """

    steps: int = 100
    spacing: Spacing = "log_snr"

    def __post_init__(self) -> None:
        """ValueError for what is not as above."""
        whole("steps", self.steps, least=1)
        check_choice("spacing", self.spacing, SPACINGS)

    def __call__(self, velocity: Velocity, y: Tensor, sde: SDE, forward: bool) -> Tensor:
        """Walks the grid."""
        moving, start, end = in_variable(velocity, sde, self.spacing, forward)
        grid = torch.linspace(start, end, self.steps + 1, dtype=torch.float64, device=y.device)
        for u, u_next in itertools.pairwise(grid):
            y = self._step(moving, y, u.expand(len(y)), u_next.expand(len(y)))
        return y

    def _step(self, velocity: Velocity, y: Tensor, u: Tensor, u_next: Tensor) -> Tensor:
        return y + like(u_next - u, y) * velocity(y, u)


@dataclass(frozen=True)
class Heun(Euler):
    """y + h (v(y, u) + v(y + h v(y, u), u + h))/2: second order, two calls a step. Attributes as of Euler."""

    steps: int = 50

    def _step(self, velocity: Velocity, y: Tensor, u: Tensor, u_next: Tensor) -> Tensor:
        h = like(u_next - u, y)
        slope = velocity(y, u)
        return y + h / 2 * (slope + velocity(y + h * slope, u_next))


@dataclass(frozen=True)
class RK4(Euler):
    """The classical Runge-Kutta method: fourth order, four calls a step. Attributes as of Euler."""

    steps: int = 40

    def _step(self, velocity: Velocity, y: Tensor, u: Tensor, u_next: Tensor) -> Tensor:
        h, middle = like(u_next - u, y), (u + u_next) / 2
        k1 = velocity(y, u)
        k2 = velocity(y + h / 2 * k1, middle)
        k3 = velocity(y + h / 2 * k2, middle)
        k4 = velocity(y + h * k3, u_next)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@dataclass(frozen=True)
class RK45:
    """Dormand and Prince's Runge-Kutta 4(5) with local extrapolation; needs scipy.

    A step is kept where error/(atol + rtol max(|y|, |y_next|)) of a sample has a root mean square below 1.

    Attributes:
        rtol: relative tolerance, above 0 (1e-5 in Song et al. 2021).
        atol: absolute tolerance, above 0.
        spacing: what it steps in, ``log_snr``, or ``time`` as Song et al.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    spacing: Spacing = "log_snr"

    def __post_init__(self) -> None:
        """ValueError for what is not as above."""
        for name in ("rtol", "atol"):
            check_number(name, getattr(self, name), low=1e-12, high=1.0)
        check_choice("spacing", self.spacing, SPACINGS)

    def __call__(self, velocity: Velocity, y: Tensor, sde: SDE, forward: bool) -> Tensor:
        """Walks until the last sample has arrived; those before it wait where they are."""
        velocity, start, end = in_variable(velocity, sde, self.spacing, forward)
        direction = 1.0 if end > start else -1.0
        u = torch.full((len(y),), start, dtype=torch.float64, device=y.device)
        h = torch.full_like(u, FIRST_STEP * abs(end - start))
        rejected = torch.zeros_like(u, dtype=torch.bool)
        slope = velocity(y, u)
        while True:
            left = (end - u).abs()
            running = left > 0
            if not bool(running.any()):
                return y
            last = h >= left
            h = torch.minimum(h, left)
            u_next = torch.where(last, end, u + direction * h)
            self._check_advance(u, u_next, running)
            y_next, slope_next, error = self._attempt(velocity, y, slope, u, u_next)
            norm = self._norm(error, y, y_next)
            kept = running & (norm < 1)
            grown = (SAFETY * norm.clamp(min=1e-300) ** -0.2).clamp(SMALLEST, LARGEST)
            # After a rejection the next step is not larger than this one; a rejected one is made smaller.
            limit = torch.where(rejected | ~kept, torch.ones_like(h), torch.full_like(h, LARGEST))
            rejected = running & ~kept
            h = torch.where(running, h * torch.minimum(grown, limit), h)
            wide = kept.unsqueeze(1)
            y, slope = torch.where(wide, y_next, y), torch.where(wide, slope_next, slope)
            u = torch.where(kept, u_next, u)

    def _attempt(
        self, velocity: Velocity, y: Tensor, slope: Tensor, u: Tensor, u_next: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The state one step on, its slope, and the estimate of its error."""
        tableau = needed("scipy.integrate", by="fastddpm.score.RK45").RK45

        h = like(u_next - u, y)
        slopes = [slope]
        for row, share in zip(tableau.A[1:], tableau.C[1:], strict=True):
            moved = sum(float(a) * k for a, k in zip(row, slopes, strict=False))
            slopes.append(velocity(y + h * moved, u + float(share) * (u_next - u)))
        y_next = y + h * sum(float(b) * k for b, k in zip(tableau.B, slopes, strict=True))
        slopes.append(velocity(y_next, u_next))
        error = h * sum(float(e) * k for e, k in zip(tableau.E, slopes, strict=True))
        return y_next, slopes[-1], error

    def _norm(self, error: Tensor, y: Tensor, y_next: Tensor) -> Tensor:
        scale = self.atol + self.rtol * torch.maximum(y.abs(), y_next.abs())
        return (error / scale).square().mean(dim=1).sqrt()

    def _check_advance(self, u: Tensor, u_next: Tensor, running: Tensor) -> None:
        stuck = running & ((u_next == u) | u_next.isnan())
        if bool(stuck.any()):
            place = int(stuck.nonzero()[0])
            raise ArithmeticError(
                f"rtol, atol: sample {place} needs steps below rounding at {self.spacing} "
                f"{float(u[place]):.6g}; the score is not finite there or the tolerances are too small"
            )
