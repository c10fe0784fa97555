"""Forward processes in continuous time: against each other, the schedule's own numbers and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mixtures import two_blobs
from scipy.integrate import quad
from scipy.interpolate import PchipInterpolator

from fastddpm import NoiseSchedule
from fastddpm.score import VESDE, VPSDE, ScheduleSDE, SubVPSDE

SDES = {
    "vp": VPSDE(),
    "sub_vp": SubVPSDE(),
    "ve": VESDE(0.01, 50.0),
    "linear": ScheduleSDE(NoiseSchedule.linear(100, 1e-3, 0.2)),
    "cosine": ScheduleSDE(NoiseSchedule.cosine(100)),
}
# Times between knots of the schedules too, and none where a derivative jumps.
TIMES = torch.tensor([0.0213, 0.1, 0.3337, 0.5, 0.777, 0.93], dtype=torch.float64)


@pytest.mark.parametrize("name", SDES)
def test_marginals_solve_the_moment_equations(name):
    """da/dt = f a and d sigma^2/dt = 2 f sigma^2 + g^2 (Song et al. 2021, appendix B), by differences."""
    sde, h = SDES[name], 1e-6
    slope = (sde.signal(TIMES + h) - sde.signal(TIMES - h)) / (2 * h)
    torch.testing.assert_close(slope, sde.drift(TIMES) * sde.signal(TIMES), rtol=1e-6, atol=1e-8)
    variance = sde.sigma(TIMES) ** 2
    slope = (sde.sigma(TIMES + h) ** 2 - sde.sigma(TIMES - h) ** 2) / (2 * h)
    expected = 2 * sde.drift(TIMES) * variance + sde.diffusion_squared(TIMES)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-8)


def test_coefficients_are_those_of_the_paper():
    """Equations 9, 11 and 12 and table 1's marginals, written out in plain numbers at t = 0.4."""
    t = torch.tensor([0.4], dtype=torch.float64)
    beta, integral = 0.1 + 0.4 * 19.9, 0.1 * 0.4 + 19.9 * 0.4**2 / 2
    vp, sub = SDES["vp"], SDES["sub_vp"]
    assert vp.sigma(t).item() ** 2 == pytest.approx(1 - math.exp(-integral), rel=1e-12)
    assert vp.diffusion_squared(t).item() == pytest.approx(beta, rel=1e-12)
    assert sub.sigma(t).item() == pytest.approx(1 - math.exp(-integral), rel=1e-12)
    assert sub.diffusion_squared(t).item() == pytest.approx(beta * (1 - math.exp(-2 * integral)), rel=1e-12)
    assert vp.signal(t).item() == sub.signal(t).item() == pytest.approx(math.exp(-integral / 2), rel=1e-12)
    assert SDES["ve"].sigma(t).item() == pytest.approx(0.01 * 5000**0.4, rel=1e-12)


@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.linear(50), NoiseSchedule.cosine(50)], ids=["linear", "cosine"]
)
def test_a_step_of_a_schedule_is_ddpms(schedule):
    """x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z, equation 10 of Song et al. 2021."""
    sde = ScheduleSDE(schedule)
    t = (torch.arange(50, dtype=torch.float64) + 1) / 50
    factor, deviation = sde.transition(t[:-1], t[1:])
    torch.testing.assert_close(factor**2, torch.tensor(schedule.alphas[1:]), rtol=1e-9, atol=0)
    torch.testing.assert_close(deviation**2, torch.tensor(schedule.betas[1:]), rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(sde.signal(t), torch.tensor(schedule.sqrt_alphas_cumprod), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        sde.sigma(t), torch.tensor(schedule.sqrt_one_minus_alphas_cumprod), rtol=1e-10, atol=0
    )


def test_a_step_of_ve_is_smlds():
    """x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z, equation 8, with sigmas in a geometric row."""
    sigmas = np.geomspace(0.01, 50, 20)
    t = torch.linspace(0, 1, 20, dtype=torch.float64)
    factor, deviation = SDES["ve"].transition(t[:-1], t[1:])
    assert (factor == 1).all()
    torch.testing.assert_close(deviation**2, torch.tensor(np.diff(sigmas**2)), rtol=1e-9, atol=0)


def test_continuous_vp_is_the_limit_of_ddpms_linear_schedule():
    """beta_i = beta(i/T)/T: abar of 10,000 discrete steps is a(t)^2 to about 1/T."""
    n = 10_000
    schedule = NoiseSchedule.linear(n, 0.1 / n, 20 / n)
    t = torch.arange(n, dtype=torch.float64)[::1000] / n
    abar = torch.tensor(schedule.alphas_cumprod[::1000])
    torch.testing.assert_close(SDES["vp"].signal(t) ** 2, abar, rtol=0, atol=3e-4)


def test_between_timesteps_log_snr_is_a_monotone_cubic():
    schedule = NoiseSchedule.cosine(100)
    sde = ScheduleSDE(schedule)
    expected = PchipInterpolator(np.arange(100), schedule.log_snr)
    t = torch.linspace(sde.t_min, 1, 777, dtype=torch.float64)
    values = sde.log_snr(t)
    np.testing.assert_allclose(values.numpy(), expected(t.numpy() * 100 - 1), rtol=1e-10, atol=1e-10)
    assert (values.diff() < 0).all()


def test_beta_of_a_schedule_integrates_to_its_abar():
    """-log abar(t) rises by the integral of beta; scipy's quadrature, interval by interval."""
    schedule = NoiseSchedule.cosine(20)
    sde = ScheduleSDE(schedule)

    def beta(t: float) -> float:
        return sde.diffusion_squared(torch.tensor(t, dtype=torch.float64)).item()

    for i in (0, 7, 18):
        integral = quad(beta, (i + 1) / 20, (i + 2) / 20, epsrel=1e-9)[0]
        rise = math.log(schedule.alphas_cumprod[i] / schedule.alphas_cumprod[i + 1])
        assert integral == pytest.approx(rise, rel=1e-6)


@pytest.mark.parametrize("name", SDES)
def test_time_of_log_snr_inverts_it(name):
    sde = SDES[name]
    torch.testing.assert_close(sde.time_of_log_snr(sde.log_snr(TIMES)), TIMES, rtol=0, atol=1e-10)
    grid = sde.times(9, "log_snr")
    steps = sde.log_snr(grid).diff()
    torch.testing.assert_close(steps, steps.mean().expand(9), rtol=1e-6, atol=0)
    assert (grid[0], grid[-1]) == (1.0, sde.t_min)


def test_the_mixture_of_the_tests_has_its_own_gradient_as_score():
    """The closed forms that other tests stand on: the score by formula against autograd of the density."""
    mixture = two_blobs(SDES["sub_vp"])
    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    t = torch.linspace(0.01, 1, 20, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(mixture.log_density(x, t).sum(), x)
    torch.testing.assert_close(mixture(x.detach(), t), gradient)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: VPSDE(beta_min=0.0), "beta_min"),
        (lambda: VPSDE(beta_min=2.0, beta_max=1.0), "beta_min"),
        (lambda: VPSDE(t_min=0), "t_min"),
        (lambda: VESDE(0.0, 1.0), "sigma_min"),
        (lambda: VESDE(2.0, 1.0), "sigma_max"),
        (lambda: ScheduleSDE(NoiseSchedule.jsd(10)), "schedule"),
        (lambda: SDES["vp"].times(0), "steps"),
        (lambda: SDES["vp"].times(3, "cosine"), "spacing"),
        (lambda: SDES["ve"].time_of_log_snr(torch.tensor([100.0])), "log_snr"),
        (lambda: SDES["linear"].sigma(torch.tensor([0.001])), "t:"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()
