"""The ODE solvers: their order, their equality with scipy's, and the samples of a mixture that they carry."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from mixtures import two_blobs
from scipy.integrate import solve_ivp

from fastddpm import NoiseSchedule
from fastddpm.score import (
    RK4,
    RK45,
    VESDE,
    VPSDE,
    Euler,
    Heun,
    ScheduleSDE,
    SubVPSDE,
    decode,
    encode,
    flow,
    interpolate,
    slerp,
)
from fastddpm.score.ode import velocity

SPREAD = 0.5

SDES = {
    "vp": VPSDE(t_min=0.02),
    "sub_vp": SubVPSDE(t_min=0.05),
    "ve": VESDE(0.02, 20.0),
    "cosine": ScheduleSDE(NoiseSchedule.cosine(50)),
}


class Gaussian:
    """The score of N(0, SPREAD^2) under a process. The ODE takes x to x s(t_min)/s(1), s^2 the variance."""

    device = torch.device("cpu")

    def __init__(self, sde):
        self.sde = sde

    def variance(self, t):
        return (self.sde.signal(t) * SPREAD) ** 2 + self.sde.sigma(t) ** 2

    def __call__(self, x, t):
        return -x / self.variance(t)[:, None]

    def carried(self, x):
        ends = torch.tensor([1.0, self.sde.t_min], dtype=torch.float64)
        before, after = self.variance(ends).sqrt()
        return x * after / before


def latents(sde, count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return sde.prior_std * torch.randn(count, 2, dtype=torch.float64, generator=generator)


@lru_cache
def carried_exactly(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Six latents and where the mixture's ODE takes them, by tolerances of 1e-10."""
    mixture = two_blobs(SDES[name])
    x = latents(mixture.sde)
    return x, flow(mixture, x, forward=False, solver=RK45(1e-10, 1e-10))


@pytest.mark.parametrize(
    ("name", "spacing"), [("vp", "time"), ("vp", "log_snr"), ("sub_vp", "log_snr"), ("ve", "log_snr")]
)
@pytest.mark.parametrize(("solver", "order"), [(Euler, 1), (Heun, 2), (RK4, 4)])
def test_error_falls_with_the_solvers_order(name, spacing, solver, order):
    """Halving the step divides the error by 2, 4 or 16, on a mixture, whose equation is not linear."""
    x, exact = carried_exactly(name)
    mixture = two_blobs(SDES[name])
    errors = [
        (flow(mixture, x, forward=False, solver=solver(steps, spacing)) - exact).norm().item()
        for steps in (80, 160)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15 * order), errors


@pytest.mark.parametrize("name", SDES)
def test_solvers_carry_a_gaussian(name):
    """Against the closed form, also for a discrete schedule, whose rates have kinks in time."""
    gaussian = Gaussian(SDES[name])
    x = latents(gaussian.sde)
    for solver, tolerance in [
        (RK45(1e-5, 1e-5), 1e-3),
        (RK4(40), 1e-4),
        (Heun(80), 1e-2),
        (Euler(160), 0.1),
    ]:
        found = flow(gaussian, x, forward=False, solver=solver)
        assert float((found - gaussian.carried(x)).abs().max()) < tolerance, solver


@pytest.mark.parametrize("forward", [True, False])
def test_adaptive_steps_are_scipys(forward):
    """Each sample of a batch against scipy's RK45 on it alone with the same first step."""
    mixture = two_blobs(SDES["vp"])
    x = latents(mixture.sde, 3) * (0.5 if forward else 1.0)
    start, end = (mixture.sde.t_min, 1.0) if forward else (1.0, mixture.sde.t_min)
    found = flow(mixture, x, forward=forward, solver=RK45(1e-5, 1e-6, "time"))
    for i in range(3):

        def alone(t: float, y: np.ndarray) -> np.ndarray:
            return velocity(mixture, torch.tensor(y)[None], torch.tensor([t], dtype=torch.float64))[0].numpy()

        first = 1e-3 * abs(end - start)
        solved = solve_ivp(alone, (start, end), x[i].numpy(), rtol=1e-5, atol=1e-6, first_step=first)
        np.testing.assert_allclose(found[i].numpy(), solved.y[:, -1], rtol=1e-10, atol=1e-12)


def test_rk45_meets_its_tolerance_and_more_tolerance_is_fewer_calls():
    mixture = two_blobs(SDES["vp"])
    x = latents(mixture.sde)
    calls, errors = [], []
    exact = flow(mixture, x, forward=False, solver=RK45(1e-9, 1e-9))

    class Counted(type(mixture)):
        def __call__(self, x, t):
            calls[-1] += 1
            return super().__call__(x, t)

    counted = Counted(mixture.weights, mixture.means, mixture.covariances, mixture.sde)
    for tolerance in (1e-3, 1e-4, 1e-6):
        calls.append(0)
        found = flow(counted, x, forward=False, solver=RK45(tolerance, tolerance))
        errors.append((found - exact).abs().max().item())
    assert calls == sorted(calls)
    assert calls[0] < calls[2] / 2
    for error, tolerance in zip(errors, (1e-3, 1e-4, 1e-6), strict=True):
        assert error < 20 * tolerance


@pytest.mark.parametrize("name", SDES)
def test_latents_come_back_to_their_images(name):
    mixture = two_blobs(SDES[name])
    x = mixture.draw(8)
    solver = RK45(1e-6, 1e-6)
    latent = encode(mixture, x, solver=solver)
    assert float((latent - x).abs().max()) > 0.1
    torch.testing.assert_close(decode(mixture, latent, solver=solver).double(), x, rtol=0, atol=1e-4)


def test_latents_of_data_are_normal():
    mixture = two_blobs(SDES["vp"])
    latent = encode(mixture, mixture.draw(1000), solver=Heun(40)).double()
    assert latent.mean(dim=0).abs().max() < 4 / 1000**0.5
    assert (latent.T.cov() - torch.eye(2)).abs().max() < 4 * (2 / 1000) ** 0.5


def test_slerp_keeps_the_norm_and_the_angle_in_proportion():
    a, b = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])
    row = slerp(a, b, torch.tensor([0.0, 1 / 3, 1.0]))
    expected = torch.tensor([[3.0, 0, 0], [3 * math.cos(math.pi / 6), 1.5, 0], [0, 3.0, 0]]).double()
    torch.testing.assert_close(row, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(slerp(a, 2 * a, torch.tensor([0.5]))[0], 1.5 * a.double())


def test_interpolation_has_the_images_at_its_ends():
    mixture = two_blobs(SDES["vp"])
    first, second = mixture.draw(2, seed=3)
    row = interpolate(mixture, first, second, images=5)
    assert row.shape == (5, 2)
    torch.testing.assert_close(row[0].double(), first, rtol=0, atol=1e-3)
    torch.testing.assert_close(row[-1].double(), second, rtol=0, atol=1e-3)


def test_a_score_that_is_not_finite_is_an_error_and_not_a_hang():
    mixture = two_blobs(SDES["vp"])

    class Broken(type(mixture)):
        def __call__(self, x, t):
            return super().__call__(x, t) * torch.where(t < 0.5, torch.nan, 1.0)[:, None]

    broken = Broken(mixture.weights, mixture.means, mixture.covariances, mixture.sde)
    with pytest.raises(ArithmeticError, match="not finite there"):
        flow(broken, latents(mixture.sde), forward=False)


def test_bad_arguments_are_named():
    mixture = two_blobs(SDES["vp"])
    for make, name in [
        (lambda: RK45(rtol=0.0), "rtol"),
        (lambda: RK45(atol=-1.0), "atol"),
        (lambda: Heun(0), "steps"),
        (lambda: Euler(3, "sigma"), "spacing"),
        (lambda: encode(mixture, torch.tensor([[torch.nan, 0.0]])), "x:"),
        (lambda: interpolate(mixture, torch.zeros(2), torch.zeros(3)), "first, second"),
        (lambda: interpolate(mixture, torch.zeros(2), torch.ones(2), images=1), "images"),
    ]:
        with pytest.raises(ValueError, match=name):
            make()
