"""The likelihood of images under a score model, by the change of variables along the probability-flow ODE.

    log p(x) = log p_1(x_1) + integral over t from t_min to 1 of div v(x_t, t)

(Song et al. 2021, section 4.3 and appendix D.2; Chen et al. 2018). The divergence is exact, by one
vector-Jacobian product a dimension, or Hutchinson's estimate: u . grad_x (u . v) with u of +-1 from each
sample's seed, the same along its whole way, which has the right mean over u (Hutchinson 1990; Grathwohl et
al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, check_count, check_values, whole
from fastddpm.finite import check_finite
from fastddpm.randomness import TASK_STREAM
from fastddpm.score.noise import SeededNoise
from fastddpm.score.ode import velocity
from fastddpm.score.sdes import Score
from fastddpm.score.solvers import RK45, Solver
from fastddpm.signatures import checked
from fastddpm_kernels.noise import words

# x (B, ...), t (B,) -> v and its divergence (B,)
Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

LEVELS = 256
DEQUANTISATION = 1


@checked
def log_likelihood(
    score: Score,
    x: Tensor,
    *,
    seeds: Sequence[int] | Tensor | None = None,
    probes: int = 1,
    solver: Solver | None = None,
) -> Tensor:
    """log p(x) in nats of the density at t_min, float64 ``(B,)``.

    Args:
        score: the score model; differentiable.
        x: ``(B, ...)``, finite.
        seeds: of Hutchinson's probes, one per sample; None for the exact divergence, whose cost grows with
            the number of dimensions.
        probes: whose estimates are averaged for each sample, at least 1.
        solver: `Euler`, `Heun` or `RK45`; None for RK45 with tolerances of 1e-5.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
        ArithmeticError: NaN or infinity on the way or among the results (`NonFiniteSamples`).
    """
    check_values("x", x)
    x = x.to(score.device, torch.float64)
    shape, n = x.shape, x[0].numel()
    if seeds is None:
        divergence = exact_divergence(score)
    else:
        count = whole("probes", probes, least=1)
        vectors = [rademacher(seeds, shape[1:], k, score.device) for k in range(count)]
        check_count("seeds", len(vectors[0]), len(x), of="samples")
        divergence = hutchinson_divergence(score, vectors)

    def joint(y: Tensor, t: Tensor) -> Tensor:
        v, change = divergence(y[:, :n].reshape(shape), t)
        return torch.cat((v.flatten(1), change.unsqueeze(1)), dim=1)

    start = torch.cat((x.flatten(1), torch.zeros(len(x), 1, dtype=x.dtype, device=x.device)), dim=1)
    solve = RK45() if solver is None else solver
    with torch.no_grad():
        end = solve(joint, start, score.sde, True)
    latent, change = end[:, :n], end[:, n]
    variance = score.sde.prior_std**2
    log_prior = -0.5 * (latent.square().sum(dim=1) / variance + n * math.log(2 * math.pi * variance))
    result = log_prior + change
    check_finite(result, seeds, what="log likelihoods")
    return result


@checked
def bits_per_dim(
    score: Score,
    pixels: Tensor,
    seeds: Sequence[int] | Tensor,
    *,
    probes: int = 1,
    solver: Solver | None = None,
) -> Tensor:
    """Bits per dimension of 8-bit images in [-1, 1], uniformly dequantised; float64 ``(B,)``.

    Level k = 0 .. 255 of a pixel stands for k/127.5 - 1, as everywhere in this package. To it is added
    uniform noise of one level, (u - 1/2)/127.5 with u from the seed, and

        bits/dim = -log2 p(x)/d + log2(127.5)

    bounds from above, in the mean over u, the bits of the discrete model that gives a level the mass of p in
    its cell (Theis et al. 2016).

    Args:
        score: the score model of images in [-1, 1].
        pixels: uint8 ``(B, C, H, W)``.
        seeds: one per image, for its u and its probes.
        probes: as in `log_likelihood`.
        solver: likewise.

    Raises:
        ValueError: pixels that are not uint8; other arguments as in `log_likelihood`.
    """
    x = dequantised(pixels, seeds)
    nats = log_likelihood(score, x, seeds=seeds, probes=probes, solver=solver)
    return -nats / (math.log(2) * x[0].numel()) + math.log2((LEVELS - 1) / 2)


@checked
def dequantised(pixels: Tensor, seeds: Sequence[int] | Tensor) -> Tensor:
    """(k + u - 1/2)/127.5 - 1 for levels k, float64 like pixels; u in (0, 1) from the seeds."""
    if pixels.dtype != torch.uint8:
        raise BadArgument("pixels", str(pixels.dtype), "uint8")
    noise = SeededNoise(seeds, pixels.shape[1:], pixels.device)
    check_count("seeds", len(noise.seeds), len(pixels))
    drawn = torch.cat(words(noise.seeds, DEQUANTISATION, pixels[0].numel(), stream=TASK_STREAM), dim=1)
    u = (drawn[:, : pixels[0].numel()].reshape(pixels.shape).double() + 0.5) / 2**32
    return (pixels.double() + u - 0.5) / ((LEVELS - 1) / 2) - 1


def rademacher(
    seeds: Sequence[int] | Tensor, shape: Sequence[int], probe: int, device: torch.device
) -> Tensor:
    """u of +-1 with equal chances, float64 ``(B, *shape)``: the signs of stream 4's noise at step 0."""
    noise = SeededNoise(seeds, shape, device)
    return torch.where(noise.task(-1, probe) > 0, 1.0, -1.0).double()


def exact_divergence(score: Score) -> Divergence:
    """div v by one product a dimension."""

    def divergence(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(score, x, t)
            total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for i in range(x[0].numel()):
                (row,) = torch.autograd.grad(v.flatten(1)[:, i].sum(), x, retain_graph=True)
                total = total + row.flatten(1)[:, i]
        return v.detach(), total.detach()

    return divergence


def hutchinson_divergence(score: Score, probes: Sequence[Tensor]) -> Divergence:
    """The mean over probes u of u . grad_x (u . v)."""

    def divergence(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(score, x, t)
            total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for u in probes:
                (row,) = torch.autograd.grad(v, x, grad_outputs=u, retain_graph=u is not probes[-1])
                total = total + (row * u).flatten(1).sum(dim=1)
        return v.detach(), total.detach() / len(probes)

    return divergence
