"""Solvers of dy/dt = v(y, t) for a batch: Euler, Heun, and Dormand and Prince's adaptive Runge-Kutta 4(5).

Every sample of an adaptive solution has steps of its own, so that it does not depend on the others in its
batch: scipy's `solve_ivp` solves a batch as one system with one step size. The tableau and the rules for the
step size are those of `scipy.integrate.RK45`, and so are the steps of a sample (tests/test_score_solvers.py).
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastddpm.plans.plan import check_choice, check_number
from fastddpm.request import whole
from fastddpm.score.sdes import SDE, SPACINGS, Spacing, like

# y (B, n) float64, t (B,) float64 -> dy/dt (B, n)
Velocity = Callable[[Tensor, Tensor], Tensor]

SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 10.0
FIRST_STEP = 1e-3


class Solver(Protocol):
    """Takes y from the process's time ``start`` to ``end``, one of them 1 and the other t_min."""

    def __call__(self, velocity: Velocity, y: Tensor, sde: SDE, forward: bool) -> Tensor:
        """y ``(B, n)`` float64 at the other end; forward is from t_min to 1."""


@dataclass(frozen=True)
class Euler:
    """y + h v(y, t): first order, one call a step.

    Attributes:
        steps: at least 1.
        spacing: of the times, ``time`` or ``log_snr``.
    """

    steps: int = 100
    spacing: Spacing = "log_snr"

    def __post_init__(self) -> None:
        """ValueError for what is not as above."""
        whole("steps", self.steps, least=1)
        check_choice("spacing", self.spacing, SPACINGS)

    def __call__(self, velocity: Velocity, y: Tensor, sde: SDE, forward: bool) -> Tensor:
        """Walks the grid."""
        times = sde.times(self.steps, self.spacing).to(y.device)
        times = times.flip(0) if forward else times
        for t, s in itertools.pairwise(times):
            y = self._step(velocity, y, t.expand(len(y)), s.expand(len(y)))
        return y

    def _step(self, velocity: Velocity, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return y + like(s - t, y) * velocity(y, t)


@dataclass(frozen=True)
class Heun(Euler):
    """y + h (v(y, t) + v(y + h v(y, t), t + h))/2: second order, two calls a step. Attributes as of Euler."""

    steps: int = 50

    def _step(self, velocity: Velocity, y: Tensor, t: Tensor, s: Tensor) -> Tensor:
        h = like(s - t, y)
        slope = velocity(y, t)
        return y + h / 2 * (slope + velocity(y + h * slope, s))


@dataclass(frozen=True)
class RK45:
    """Dormand and Prince's Runge-Kutta 4(5) with local extrapolation, in time, needs scipy.

    A step is kept where the root mean square of error/(atol + rtol max(|y|, |y_next|)) over a sample is below
    1.

    Attributes:
        rtol: relative tolerance, above 0 (1e-5 in Song et al. 2021).
        atol: absolute tolerance, above 0.
    """

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        """ValueError for what is not as above."""
        for name in ("rtol", "atol"):
            check_number(name, getattr(self, name), low=1e-12, high=1.0)

    def __call__(self, velocity: Velocity, y: Tensor, sde: SDE, forward: bool) -> Tensor:
        """Walks until the last sample has arrived; those before it wait where they are."""
        start, end = (sde.t_min, 1.0) if forward else (1.0, sde.t_min)
        direction = 1.0 if forward else -1.0
        t = torch.full((len(y),), start, dtype=torch.float64, device=y.device)
        h = torch.full_like(t, FIRST_STEP * abs(end - start))
        rejected = torch.zeros_like(t, dtype=torch.bool)
        slope = velocity(y, t)
        while True:
            left = (end - t).abs()
            running = left > 0
            if not bool(running.any()):
                return y
            last = h >= left
            h = torch.minimum(h, left)
            t_next = torch.where(last, end, t + direction * h)
            self._check_advance(t, t_next, running)
            y_next, slope_next, error = self._attempt(velocity, y, slope, t, t_next)
            norm = self._norm(error, y, y_next)
            kept = running & (norm < 1)
            grown = (SAFETY * norm.clamp(min=1e-300) ** -0.2).clamp(SMALLEST, LARGEST)
            # After a rejection the next step is not larger than this one; a rejected one is made smaller.
            limit = torch.where(rejected | ~kept, torch.ones_like(h), torch.full_like(h, LARGEST))
            rejected = running & ~kept
            h = torch.where(running, h * torch.minimum(grown, limit), h)
            wide = kept.unsqueeze(1)
            y, slope = torch.where(wide, y_next, y), torch.where(wide, slope_next, slope)
            t = torch.where(kept, t_next, t)

    def _attempt(
        self, velocity: Velocity, y: Tensor, slope: Tensor, t: Tensor, t_next: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The state one step on, its slope, and the estimate of its error."""
        tableau = importlib.import_module("scipy.integrate").RK45

        h = like(t_next - t, y)
        slopes = [slope]
        for row, share in zip(tableau.A[1:], tableau.C[1:], strict=True):
            moved = sum(float(a) * k for a, k in zip(row, slopes, strict=False))
            slopes.append(velocity(y + h * moved, t + float(share) * (t_next - t)))
        y_next = y + h * sum(float(b) * k for b, k in zip(tableau.B, slopes, strict=True))
        slopes.append(velocity(y_next, t_next))
        error = h * sum(float(e) * k for e, k in zip(tableau.E, slopes, strict=True))
        return y_next, slopes[-1], error

    def _norm(self, error: Tensor, y: Tensor, y_next: Tensor) -> Tensor:
        scale = self.atol + self.rtol * torch.maximum(y.abs(), y_next.abs())
        return (error / scale).square().mean(dim=1).sqrt()

    def _check_advance(self, t: Tensor, t_next: Tensor, running: Tensor) -> None:
        stuck = running & ((t_next == t) | t_next.isnan())
        if bool(stuck.any()):
            place = int(stuck.nonzero()[0])
            raise ArithmeticError(
                f"rtol, atol: sample {place} needs steps below rounding at t = {float(t[place]):.6g}; the "
                "score is not finite there or the tolerances are too small"
            )
