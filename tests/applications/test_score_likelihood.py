"""Likelihoods against the closed form of a mixture, and bits/dim against a count of bits that is known."""

from __future__ import annotations

import math

import pytest
import torch
from mixtures import Mixture, many_dimensions, two_blobs
from networks import make_unet

from fastddpm import NoiseSchedule, Sampler
from fastddpm.score import (
    RK4,
    RK45,
    VESDE,
    VPSDE,
    Heun,
    ScheduleSDE,
    SubVPSDE,
    bits_per_dim,
    dequantised,
    encode,
    log_likelihood,
    score_of,
)
from fastddpm.score.likelihood import exact_divergence, hutchinson_divergence, rademacher
from fastddpm.score.ode import velocity

SDES = {
    "vp": VPSDE(),
    "sub_vp": SubVPSDE(t_min=0.02),
    "ve": VESDE(0.02, 100.0),
    "cosine": ScheduleSDE(NoiseSchedule.cosine(100)),
}


def expected_likelihood(mixture: Mixture, x: torch.Tensor) -> torch.Tensor:
    """log p at t_min, but for what the prior leaves out of p_1: both at the latents, in closed form."""
    latent, one = encode(mixture, x, solver=RK4(80)), torch.ones(len(x), dtype=torch.float64)
    prior = torch.distributions.Normal(0.0, mixture.sde.prior_std).log_prob(latent.double()).sum(dim=1)
    t = torch.full((len(x),), mixture.sde.t_min, dtype=torch.float64)
    return mixture.log_density(x, t) + prior - mixture.log_density(latent, one)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("solver", [RK45(1e-6, 1e-6), RK4(60)], ids=["rk45", "rk4"])
def test_likelihood_of_a_mixture_is_its_density(name, solver):
    mixture = two_blobs(SDES[name])
    x = mixture.draw(10)
    found = log_likelihood(mixture, x, solver=solver)
    torch.testing.assert_close(found, expected_likelihood(mixture, x), rtol=0, atol=1e-3)


def test_heun_comes_to_the_density_too():
    mixture = two_blobs(SDES["vp"])
    x = mixture.draw(10)
    exact = expected_likelihood(mixture, x)
    errors = [
        float((log_likelihood(mixture, x, solver=Heun(steps)) - exact).abs().max()) for steps in (100, 200)
    ]
    assert errors[1] < 0.02
    assert errors[0] > 2.5 * errors[1]


def test_hutchinsons_estimate_has_the_right_mean_and_is_exact_where_it_must_be():
    """Mean of 2,000 probes within five standard errors; a diagonal Jacobian needs one probe of +-1."""
    mixture = many_dimensions(SDES["vp"], 6)
    x, t = mixture.draw(1).repeat(2000, 1), torch.full((2000,), 0.3, dtype=torch.float64)
    _, exact = exact_divergence(mixture)(x[:1], t[:1])
    probes = rademacher(range(2000), (6,), 0, mixture.device)
    assert set(probes.unique().tolist()) == {-1.0, 1.0}
    _, estimates = hutchinson_divergence(mixture, [probes])(x, t)
    error = float(estimates.std()) / 2000**0.5
    assert error > 0
    assert abs(float(estimates.mean() - exact)) < 5 * error
    _, four = hutchinson_divergence(
        mixture, [rademacher(range(2000), (6,), k, mixture.device) for k in range(4)]
    )(x, t)
    assert float(four.std()) == pytest.approx(float(estimates.std()) / 2, rel=0.1)
    one = Mixture(
        torch.ones(1), torch.zeros(1, 3), torch.diag(torch.tensor([0.1, 0.2, 0.4]))[None], SDES["vp"]
    )
    x, t = one.draw(4), torch.full((4,), 0.3, dtype=torch.float64)
    _, estimate = hutchinson_divergence(one, [rademacher(range(4), (3,), 0, one.device)])(x, t)
    torch.testing.assert_close(estimate, exact_divergence(one)(x, t)[1])


def test_divergence_is_the_trace_of_the_jacobian():
    """By torch's own functional Jacobian of the velocity."""
    mixture = two_blobs(SDES["sub_vp"])
    x, t = mixture.draw(3), torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    _, found = exact_divergence(mixture)(x, t)
    for i in range(3):
        jacobian = torch.func.jacrev(lambda y, i=i: velocity(mixture, y[None], t[i : i + 1])[0])(x[i])
        torch.testing.assert_close(found[i], jacobian.trace())


def test_bits_of_a_known_density():
    """Independent pixels N(m, c^2), c far above a level: -log2 of a cell's mass, by the error function."""
    sde, c, m = ScheduleSDE(NoiseSchedule.linear(200, 5e-4, 0.1)), 0.2, 0.1

    class Pixels:
        device = torch.device("cpu")

        def __init__(self):
            self.sde = sde

        def __call__(self, x, t):
            a, variance = sde.signal(t), (sde.signal(t) * c) ** 2 + sde.sigma(t) ** 2
            return -(x - (m * a)[:, None, None, None]) / variance[:, None, None, None]

    generator = torch.Generator().manual_seed(0)
    x = m + c * torch.randn(3, 1, 16, 16, generator=generator)
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    t = torch.tensor(sde.t_min, dtype=torch.float64)
    mean, deviation = sde.signal(t) * m, torch.sqrt((sde.signal(t) * c) ** 2 + sde.sigma(t) ** 2)
    edges = (pixels.double() + torch.tensor([-0.5, 0.5]).reshape(2, 1, 1, 1, 1)) / 127.5 - 1
    below, above = torch.special.ndtr((edges - mean) / deviation)
    expected = -torch.log2(above - below).mean(dim=(1, 2, 3))
    found = bits_per_dim(Pixels(), pixels, seeds=[1, 2, 3], solver=RK45(1e-5, 1e-5))
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-3)


def test_dequantised_pixels_stay_in_their_cells_and_fill_them():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(8, 1, 1, 1)
    x = dequantised(pixels, range(8))
    offset = (x + 1) * 127.5 - pixels.double()
    assert float(offset.abs().max()) < 0.5
    assert float(offset.mean()) == pytest.approx(0, abs=5 * (1 / 12 / 2048) ** 0.5)
    assert float(offset.var()) == pytest.approx(1 / 12, rel=0.1)
    torch.testing.assert_close(x[3:4], dequantised(pixels[:1], [3]), rtol=0, atol=0)


def test_likelihood_of_a_network_depends_on_its_own_image_and_seed():
    """A tiny UNet: two images together and one of them alone; no gradients are left behind."""
    sampler = Sampler(
        make_unet(),
        NoiseSchedule.cosine(20),
        prediction_type="v_prediction",
        shape=(3, 8, 8),
        engine="eager",
    )
    score = score_of(sampler, class_labels=1)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    together = bits_per_dim(score, pixels, [7, 8], solver=RK4(8))
    alone = bits_per_dim(score, pixels[1:], [8], solver=RK4(8))
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in sampler.model.parameters())


def test_bad_arguments_are_named():
    mixture = two_blobs(SDES["vp"])
    x = mixture.draw(2)
    for make, name in [
        (lambda: log_likelihood(mixture, x * math.inf), "x:"),
        (lambda: log_likelihood(mixture, x, seeds=[1]), "seeds"),
        (lambda: log_likelihood(mixture, x, seeds=[1, 2], probes=0), "probes"),
        (lambda: bits_per_dim(mixture, x, [1, 2]), "pixels"),
        (lambda: dequantised(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), [1]), "seeds"),
    ]:
        with pytest.raises(ValueError, match=name):
            make()
