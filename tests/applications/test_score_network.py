"""A DDPM network is a VP score network: one set of weights, seen as both, gives one set of images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from networks import TINY, make_unet
from tolerances import ACROSS_BATCHES, NETWORK

from fastddpm import NoiseSchedule, Sampler
from fastddpm import gaussian as formulas
from fastddpm.score import Denoiser, ScheduleSDE, sample_karras, sample_ode, sample_pc, score_of
from fastddpm.score.solvers import Heun
from fastddpm_kernels import normal

SHAPE = (3, 8, 8)
T = 20
SCHEDULE = NoiseSchedule.linear(T, 1e-3, 0.3)
SEEDS = [3, 2**40, 11]


def make_sampler(**options) -> Sampler:
    return Sampler(make_unet(), SCHEDULE, shape=SHAPE, engine="eager", **options)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    """Relative to the largest value: chains of untrained networks are not clipped here."""
    assert float((a - b).abs().max()) <= 2 * NETWORK * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_score_is_minus_eps_over_sigma(prediction_type):
    """At every timestep, eps from the network's output by the formulas of docs/math.md."""
    sampler = make_sampler(prediction_type=prediction_type)
    score = score_of(sampler, class_labels=2)
    index = torch.arange(T)
    x = torch.randn(T, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        m = sampler.model(x, index, torch.full((T,), 2))
        eps = {
            "epsilon": lambda: m,
            "sample": lambda: formulas.eps_from_x0(SCHEDULE, x, index, m),
            "v_prediction": lambda: formulas.eps_from_v(SCHEDULE, x, index, m),
        }[prediction_type]()
        found = score(x, (index.double() + 1) / T)
    sigma = torch.tensor(SCHEDULE.sqrt_one_minus_alphas_cumprod).float().reshape(-1, 1, 1, 1)
    close(found * sigma, -eps)
    assert score.model is sampler.model


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_ancestral_steps_of_the_score_are_ddpm(prediction_type, guidance_scale):
    """T steps of `Sampler` and of the reverse SDE draw the same images from the same seeds."""
    sampler = make_sampler(prediction_type=prediction_type)
    images = sampler.sample(seeds=SEEDS, class_labels=1, guidance_scale=guidance_scale, progress=False)
    score = score_of(sampler, class_labels=1, guidance_scale=guidance_scale)
    found = sample_pc(score, SEEDS, SHAPE, steps=T - 1, predictor="ancestral", corrector_steps=0)
    close(found, images)


@pytest.mark.parametrize("time_input", ["noise_level", "alphas_cumprod"])
def test_a_network_told_levels_is_told_them(time_input):
    """SR3's networks take sqrt(abar), Palette's abar."""
    sampler = make_sampler(time_input=time_input)
    images = sampler.sample(seeds=SEEDS, progress=False)
    found = sample_pc(score_of(sampler), SEEDS, SHAPE, steps=T - 1, predictor="ancestral", corrector_steps=0)
    close(found, images)


@pytest.mark.parametrize("time_input", ["timestep", "noise_level", "alphas_cumprod"])
def test_what_a_solvers_plan_tells_between_timesteps_is_known(time_input):
    """Times between those of training are floats, and no levels."""
    sampler = make_sampler(method="heun", timestep_spacing="karras", time_input=time_input)
    assert sampler.plan.model_time.dtype == np.float32
    given = Sampler.from_plan(sampler.model, SCHEDULE, sampler.plan, shape=SHAPE)
    assert score_of(sampler).time_input == score_of(given).time_input == time_input


def test_channels_of_a_learned_variance_are_left_out():
    config = dataclasses.replace(TINY, out_channels=6)
    sampler = Sampler(make_unet(config), SCHEDULE, shape=SHAPE, engine="eager", variance_type="learned_range")
    x, t = torch.randn(2, *SHAPE), torch.tensor([0.5, 1.0], dtype=torch.float64)
    with torch.no_grad():
        m = sampler.model(x, torch.tensor([9, 19]), torch.full((2,), 4))[:, :3]
        close(score_of(sampler).eps(x, t), m)


def test_eulers_step_in_sigma_is_ddim():
    """Karras et al.'s Euler step on the schedule's own sigmas: `ddim_plan`, eta 0."""
    sampler = make_sampler(method="ddim", prediction_type="v_prediction")
    ratio = SCHEDULE.sqrt_one_minus_alphas_cumprod / SCHEDULE.sqrt_alphas_cumprod
    sigmas = torch.cat((torch.tensor(ratio).flip(0), torch.zeros(1, dtype=torch.float64)))
    # y = sigma_T/a_T z is the state sigma_T z, where `Sampler` would start from z.
    score = score_of(sampler, class_labels=0)
    found = sample_karras(score, SEEDS, SHAPE, sigmas=sigmas, order=1)
    start = torch.tensor(SCHEDULE.sqrt_one_minus_alphas_cumprod[-1]).float()
    x_T = start * normal(torch.tensor(SEEDS), 0, SHAPE)
    images = sampler.sample(x_T=x_T, class_labels=0, progress=False)
    close(found, images)


def test_a_sample_depends_on_its_own_seed_alone():
    score = score_of(make_sampler(prediction_type="v_prediction"), class_labels=3)
    draws = {
        "pc": lambda seeds: sample_pc(score, seeds, SHAPE, steps=5, corrector_steps=2),
        "heun": lambda seeds: sample_ode(score, seeds, SHAPE, solver=Heun(4)),
        "rk45": lambda seeds: sample_ode(score, seeds, SHAPE),
        "karras": lambda seeds: sample_karras(score, seeds, SHAPE),
    }
    for name, draw in draws.items():
        together, alone = draw([5, 6, 7]), draw([7])
        largest = float(together.abs().max())
        assert float((together[2] - alone[0]).abs().max()) <= ACROSS_BATCHES * largest, name
        assert float((together[1] - alone[0]).abs().max()) > 0.01 * largest, name


def test_new_weights_are_seen_at_once():
    sampler = make_sampler()
    score = score_of(sampler)
    x, t = torch.randn(1, *SHAPE), torch.tensor([0.5], dtype=torch.float64)
    with torch.no_grad():
        before = score(x, t)
        sampler.model.conv_out.bias.add_(1.0)
        torch.testing.assert_close(score(x, t), before - 1 / score.sde.sigma(t).item())


def test_denoiser_is_the_x0_of_the_network():
    """D(x/a; sigma/a) of Karras et al. for a network that predicts x_0 is its output."""
    sampler = make_sampler(prediction_type="sample")
    score = score_of(sampler)
    x, t = torch.randn(2, *SHAPE), torch.tensor(0.5, dtype=torch.float64)
    sde = ScheduleSDE(SCHEDULE)
    with torch.no_grad():
        m = sampler.model(x, torch.tensor([9, 9]), torch.full((2,), 4))
        close(Denoiser(score)(x / sde.signal(t).float(), sde.sigma(t) / sde.signal(t)), m)


def test_bad_arguments_are_named():
    sampler = make_sampler()
    with pytest.raises(ValueError, match="guidance_scale"):
        score_of(sampler, guidance_scale=2.0)
    with pytest.raises(ValueError, match="class_labels"):
        score_of(sampler, class_labels=-1)
    with pytest.raises(ValueError, match="class_labels: 5 given"):
        score_of(sampler, class_labels=torch.tensor([4, 5]))
    with pytest.raises(ValueError, match="schedule"):
        score_of(Sampler(make_unet(), SCHEDULE.rescaled_zero_terminal_snr(), prediction_type="v_prediction"))
    score = score_of(sampler)
    for options, name in [
        ({"steps": 0}, "steps"),
        ({"predictor": "euler"}, "predictor"),
        ({"corrector_steps": -1}, "corrector_steps"),
        ({"snr": -0.1}, "snr"),
        ({"spacing": "sigma"}, "spacing"),
    ]:
        with pytest.raises(ValueError, match=name):
            sample_pc(score, [1], SHAPE, **options)
    with pytest.raises(ValueError, match="seeds"):
        sample_ode(score, [-1], SHAPE)
    with pytest.raises(ValueError, match="shape"):
        sample_ode(score, [1], (0, 8, 8))
