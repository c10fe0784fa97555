"""The probability-flow ODE: the deterministic process with the same densities as the SDE.

    dx/dt = f(t) x - g(t)^2/2 s(x, t)                          Song et al. 2021, equation 13

From t = 1 to t_min it draws samples; from t_min to 1 it encodes an image as a latent, which comes back to the
image. Latents are mixed on spheres (Shoemake 1985), since normal noise lies near one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_values, whole
from fastddpm.finite import check_finite
from fastddpm.score.noise import SeededNoise
from fastddpm.score.sdes import Score, denoised, like
from fastddpm.score.solvers import RK45, Solver
from fastddpm.signatures import checked


def velocity(score: Score, x: Tensor, t: Tensor) -> Tensor:
    """f x - g^2/2 s: x ``(B, ...)``, t float64 ``(B,)`` -> like x."""
    drift, variance = score.sde.drift(t), score.sde.diffusion_squared(t)
    return like(drift, x) * x - like(variance / 2, x) * score(x, t)


@checked
def flow(score: Score, x: Tensor, *, forward: bool, solver: Solver | None = None) -> Tensor:
    """x carried along the ODE, float64 like x: from t_min to 1 (``forward``), or from 1 to t_min.

    Args:
        score: the score model; it is given float64 states.
        x: ``(B, ...)``, finite.
        forward: the direction.
        solver: `Euler`, `Heun` or `RK45`; None for RK45 with tolerances of 1e-5.

    Raises:
        ValueError: x is not finite.
    """
    check_values("x", x)
    shape = x.shape

    def flat(y: Tensor, t: Tensor) -> Tensor:
        return velocity(score, y.reshape(shape), t).flatten(1)

    solve = RK45() if solver is None else solver
    return solve(flat, x.to(score.device, torch.float64).flatten(1), score.sde, forward).reshape(shape)


@checked
@torch.no_grad()
def sample_ode(
    score: Score,
    seeds: Sequence[int] | Tensor,
    shape: Sequence[int],
    *,
    solver: Solver | None = None,
    denoise: bool = True,
) -> Tensor:
    """Draws samples by the ODE; the only noise is where they start.

    Args:
        score: the score model.
        seeds: one integer in [0, 2**63) per sample, which depends on it alone. Its start is that of
            `Sampler`.
        shape: of a sample, usually ``(C, H, W)``.
        solver: `Euler`, `Heun` or `RK45`; None for RK45 with tolerances of 1e-5.
        denoise: end with E[x_0 | x] instead of a sample of p at t_min.

    Returns:
        float32 ``(B, *shape)``.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
        ArithmeticError: NaN or infinity on the way or among the samples (`NonFiniteSamples`).
    """
    noise = SeededNoise(seeds, shape, score.device)
    images = _decoded(score, score.sde.prior_std * noise.start(), solver, denoise)
    check_finite(images, noise.seeds)
    return images


@checked
@torch.no_grad()
def encode(score: Score, images: Tensor, *, solver: Solver | None = None) -> Tensor:
    """The latents x_1 of images ``(B, ...)`` taken as states at t_min, float32; `decode` undoes it.

    Raises:
        ArithmeticError: NaN or infinity on the way or among the latents (`NonFiniteSamples`).
    """
    latents = flow(score, images, forward=True, solver=solver).float()
    check_finite(latents, what="latents")
    return latents


@checked
@torch.no_grad()
def decode(score: Score, latents: Tensor, *, solver: Solver | None = None, denoise: bool = False) -> Tensor:
    """The images of latents ``(B, ...)``, float32: states at t_min, or with ``denoise`` E[x_0 | x].

    Raises:
        ArithmeticError: NaN or infinity on the way or among the images (`NonFiniteSamples`).
    """
    images = _decoded(score, latents, solver, denoise)
    check_finite(images)
    return images


def _decoded(score: Score, latents: Tensor, solver: Solver | None, denoise: bool) -> Tensor:
    x = flow(score, latents, forward=False, solver=solver)
    if denoise:
        x = denoised(score, x, torch.tensor(score.sde.t_min, dtype=torch.float64, device=x.device))
    return x.float()


@checked
def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation: (sin((1-w) A) first + sin(w A) second)/sin A, A the angle between the two.

    Where the two are parallel it is their linear interpolation.

    Args:
        first: ``(...)``.
        second: likewise.
        weights: ``(N,)`` in [0, 1].

    Returns:
        ``(N, ...)``, float64.
    """
    _check_common(first, second)
    a, b = first.to(torch.float64), second.to(torch.float64)
    w = weights.to(a).reshape(-1, *(1,) * a.ndim)
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if not bool(angle.sin() > 1e-9):
        return torch.lerp(a[None], b[None], w)
    return (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / torch.sin(angle)


@checked
def interpolate(
    score: Score, first: Tensor, second: Tensor, *, images: int = 8, solver: Solver | None = None
) -> Tensor:
    """A row from one image to another through the middle of their latents: encode, slerp, decode.

    Args:
        score: the score model, with one label for all images if it has labels.
        first: ``(C, H, W)`` in the model's range.
        second: likewise.
        images: in the row, at least 2; the ends are the given images, to the solver's accuracy.
        solver: of both ways.

    Returns:
        float32 ``(images, C, H, W)``.

    Raises:
        ValueError: other shapes, or fewer than two images.
    """
    _check_common(first, second)
    count = whole("images", images, least=2)
    ends = encode(score, torch.stack((first, second)), solver=solver)
    return decode(score, slerp(ends[0], ends[1], torch.linspace(0, 1, count)), solver=solver)


def _check_common(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise BadArgument(
            "first, second", f"shapes {tuple(first.shape)} and {tuple(second.shape)}", "one common"
        )
