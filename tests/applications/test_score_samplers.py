"""What the samplers draw from a mixture that is known in closed form, and their steps against diffusers'."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import EulerDiscreteScheduler, ScoreSdeVeScheduler
from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from mixtures import Mixture, many_dimensions

from fastddpm import NoiseSchedule
from fastddpm.score import (
    VESDE,
    VPSDE,
    Churn,
    Denoiser,
    Heun,
    ScheduleSDE,
    SubVPSDE,
    karras_sigmas,
    sample_annealed_langevin,
    sample_karras,
    sample_ode,
    sample_pc,
)
from fastddpm.score.langevin import corrector_step_size, langevin_step
from fastddpm.score.predictor_corrector import euler_maruyama, reverse_diffusion
from fastddpm_kernels import normal

SDES = {
    "vp": VPSDE(),
    "sub_vp": SubVPSDE(),
    "ve": VESDE(0.01, 20.0),
    "cosine": ScheduleSDE(NoiseSchedule.cosine(300)),
}
COUNT, D = 1000, 12


def sigmas_for(mixture: Mixture, steps: int) -> torch.Tensor:
    return karras_sigmas(steps, max(0.01, Denoiser(mixture).sigma_min), 20.0)


SAMPLERS = {
    "ancestral": lambda m: sample_pc(
        m, range(COUNT), (D,), steps=100, predictor="ancestral", corrector_steps=0, spacing="log_snr"
    ),
    "reverse_diffusion": lambda m: sample_pc(
        m, range(COUNT), (D,), steps=400, corrector_steps=0, spacing="log_snr"
    ),
    "euler_maruyama": lambda m: sample_pc(
        m, range(COUNT), (D,), steps=200, predictor="euler_maruyama", corrector_steps=0, spacing="log_snr"
    ),
    "predictor_corrector": lambda m: sample_pc(
        m, range(COUNT), (D,), steps=60, predictor="ancestral", corrector_steps=1, spacing="log_snr"
    ),
    "annealed_langevin": lambda m: sample_annealed_langevin(
        m, range(COUNT), (D,), sigmas=torch.logspace(0.7, -1.3, 25), steps_per_level=30, step_size=0.15
    ),
    "ode": lambda m: sample_ode(m, range(COUNT), (D,), solver=Heun(40)),
    "karras": lambda m: sample_karras(m, range(COUNT), (D,), sigmas=sigmas_for(m, 25)),
    "karras_churn": lambda m: sample_karras(
        m, range(COUNT), (D,), sigmas=sigmas_for(m, 50), churn=Churn(15.0)
    ),
}


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_of_a_mixture_have_its_weights_means_and_covariances(name, sampler):
    """1,000 samples in 12 dimensions of two well separated Gaussians, within five standard errors.

    On top of that come the samplers' own errors with these numbers of steps: 4 % of a variance.
    """
    mixture = many_dimensions(SDES[name], D)
    x = SAMPLERS[sampler](mixture).double()
    assert x.shape == (COUNT, D)
    second = (x @ (mixture.means[1] - mixture.means[0])) > 0
    share = float(mixture.weights[1])
    assert abs(float(second.double().mean()) - share) < 5 * math.sqrt(share * (1 - share) / COUNT)
    for k, members in enumerate((x[~second], x[second])):
        n, covariance = len(members), mixture.covariances[k]
        deviations = covariance.diag().sqrt()
        assert ((members.mean(dim=0) - mixture.means[k]).abs() < 5 * deviations / n**0.5).all()
        # In units of the component's standard deviations: the unit matrix, with errors of sqrt((1 + I)/n).
        correlation = members.T.cov() / deviations[:, None] / deviations
        error = ((1 + torch.eye(D)) / n).sqrt()
        assert ((correlation - torch.eye(D)).abs() < 5 * error + 0.04).all()
        # The mean of the twelve variances is twelve times surer.
        assert float(correlation.diag().mean()) == pytest.approx(1, abs=0.04 + 5 * (2 / (n * D)) ** 0.5)


def test_predictor_of_ve_is_diffusers():
    """`ScoreSdeVeScheduler.step_pred` at several of its steps: mean, and noise from the same generator."""
    peer = ScoreSdeVeScheduler(num_train_timesteps=50, sigma_min=0.01, sigma_max=50.0)
    peer.set_timesteps(50)
    peer.set_sigmas(50)
    sde, generator = VESDE(0.01, 50.0), torch.Generator().manual_seed(0)
    for i in (49, 30, 12, 3):
        x = torch.randn(2, 3, 4, 4, generator=generator)
        score = torch.randn(2, 3, 4, 4, generator=generator) / sde.sigma(torch.tensor(i / 49.0)).float()
        # Slightly above i/49, since the scheduler rounds down.
        expected = peer.step_pred(
            score, i / 49 + 1e-6, x, generator=torch.Generator().manual_seed(i), return_dict=False
        )
        noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(i))
        t, s = (torch.tensor(value / 49, dtype=torch.float64) for value in (i, i - 1))
        mean, deviation = reverse_diffusion(sde, x, score, t, s)
        torch.testing.assert_close(mean, expected[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mean + deviation * noise, expected[0], rtol=1e-4, atol=1e-5)


def test_corrector_of_ve_is_diffusers_for_one_sample():
    """`ScoreSdeVeScheduler.step_correct`, which takes norms over the batch: of one sample they are its own.

    It takes the norm of the noise where sqrt(d) stands here.
    """
    peer = ScoreSdeVeScheduler(num_train_timesteps=50, sigma_min=0.01, sigma_max=50.0, snr=0.15)
    peer.set_timesteps(50)
    peer.set_sigmas(50)
    sde, generator = VESDE(0.01, 50.0), torch.Generator().manual_seed(0)
    t, s = torch.tensor([0.6, 0.5], dtype=torch.float64)
    x = torch.randn(1, 3, 4, 4, generator=generator)
    score = torch.randn(1, 3, 4, 4, generator=generator) / sde.sigma(s).float()
    expected = peer.step_correct(score, x, generator=torch.Generator().manual_seed(5), return_dict=False)[0]
    noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    size = corrector_step_size(sde, score, s, t, 0.15) * noise.double().square().sum() / noise.numel()
    torch.testing.assert_close(langevin_step(x, score, size, noise), expected, rtol=1e-5, atol=1e-5)


def test_each_sample_has_its_own_step_size():
    sde = VESDE(0.01, 50.0)
    t, s = torch.tensor([0.6, 0.5], dtype=torch.float64)
    score = torch.stack((torch.full((3, 4), 2.0), torch.full((3, 4), 5.0))) / sde.sigma(s).float()
    sizes = corrector_step_size(sde, score, s, t, 0.2)
    expected = 2 * 0.2**2 / torch.tensor([4.0, 25.0], dtype=torch.float64) * sde.sigma(s) ** 2
    torch.testing.assert_close(sizes, expected, rtol=1e-6, atol=0)
    assert corrector_step_size(sde, torch.zeros(1, 3), s, t, 0.2) == sde.sigma(s) ** 2


def test_euler_maruyama_of_vp_is_diffusers():
    """`ScoreSdeVpScheduler.step_pred`, whose network returns eps and whose step is 1/N."""
    peer, sde = ScoreSdeVpScheduler(), VPSDE()
    peer.set_timesteps(100)
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    for start in (1.0, 0.6, 0.05):
        expected, expected_mean = peer.step_pred(
            eps, x, torch.tensor([start] * 2), generator=torch.Generator().manual_seed(3)
        )
        noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
        t, s = (torch.tensor(value, dtype=torch.float64) for value in (start, start - 0.01))
        mean, deviation = euler_maruyama(sde, x, -eps / sde.sigma(t).float(), t, s)
        torch.testing.assert_close(mean, expected_mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mean + deviation * noise, expected, rtol=1e-4, atol=1e-4)


def test_karras_sigmas_are_diffusers():
    peer = EulerDiscreteScheduler()
    expected = peer._convert_to_karras(torch.tensor([60.0, 0.02]), 18)
    torch.testing.assert_close(
        karras_sigmas(18, 0.02, 60.0)[:-1], torch.tensor(expected).double(), rtol=1e-6, atol=0
    )
    assert karras_sigmas(18, 0.02, 60.0)[-1] == 0


@pytest.mark.parametrize("amount", [0.0, 30.0])
def test_karras_steps_are_diffusers(amount):
    """A chain of `KarrasVeScheduler`'s churn, predictor and corrector with the same noise, on the mixture.

    Its last corrector step would divide by sigma = 0; algorithm 2 has none there.
    """
    mixture = many_dimensions(VESDE(0.01, 20.0), D)
    denoiser, seeds, n = Denoiser(mixture), [4, 9], 12
    sigmas = karras_sigmas(n, 0.02, 20.0)
    churn = Churn(amount, low=0.05, high=15.0, scale=1.007)
    found = sample_karras(mixture, seeds, (D,), sigmas=sigmas, churn=churn)

    peer = KarrasVeScheduler(s_churn=amount, s_min=0.05, s_max=15.0, s_noise=1.007)
    peer.set_timesteps(n)

    def toward_data(y: torch.Tensor, sigma: float) -> torch.Tensor:
        return (denoiser(y, torch.tensor(sigma, dtype=torch.float64)) - y) / sigma

    y = 20.0 * normal(torch.tensor(seeds), 0, (D,)).double()
    for i in range(n):
        sigma, sigma_next = sigmas[i].item(), sigmas[i + 1].item()
        _, raised = peer.add_noise_to_input(y, sigma)
        # The scheduler draws its noise itself; ours instead, as large as it makes it.
        y = y + 1.007 * (raised**2 - sigma**2) ** 0.5 * normal(torch.tensor(seeds), i + 1, (D,)).double()
        moved, slope = peer.step(toward_data(y, raised), raised, sigma_next, y, return_dict=False)
        if sigma_next > 0:
            moved, _ = peer.step_correct(
                toward_data(moved, sigma_next), raised, sigma_next, y, moved, slope, return_dict=False
            )
        y = moved
    torch.testing.assert_close(found.double(), y, rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_named():
    mixture = many_dimensions(VPSDE(), 2)
    falling = torch.tensor([1.0, 0.5, 0.0])
    for make, name in [
        (lambda: karras_sigmas(1, 0.1, 1.0), "steps"),
        (lambda: karras_sigmas(5, 1.0, 0.1), "sigma_max"),
        (lambda: karras_sigmas(5, 0.1, 1.0, rho=0.5), "rho"),
        (lambda: Churn(-1.0), "amount"),
        (lambda: Churn(1.0, low=2.0, high=1.0), "high"),
        (lambda: sample_karras(mixture, [1], (2,), sigmas=falling[:2]), "sigmas"),
        (lambda: sample_karras(mixture, [1], (2,), sigmas=torch.tensor([1e9, 0.0])), "sigmas"),
        (lambda: sample_karras(mixture, [1], (2,), order=3), "order"),
        (lambda: sample_annealed_langevin(mixture, [1], (2,), sigmas=falling), "sigmas"),
        (lambda: sample_annealed_langevin(mixture, [1], (2,), sigmas=[1.0], step_size=2.0), "step_size"),
        (lambda: sample_annealed_langevin(mixture, [1], (2,), sigmas=[1.0], steps_per_level=0), "steps_per"),
    ]:
        with pytest.raises(ValueError, match=name):
            make()
