"""`leading` timesteps that start far below T - 1: said, since the images come out paler than the data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from fastddpm import NoiseSchedule, Sampler
from fastddpm.plans import Method
from fastddpm.plans.abarankab import from_abarankab
from fastddpm.plans.sr3 import from_sr3

LINEAR, COSINE = NoiseSchedule.linear(1000), NoiseSchedule.cosine(1000)
MEAN = -0.7


def exact(schedule: NoiseSchedule):
    """The noise prediction for data N(MEAN, 1)."""
    abar = torch.tensor(schedule.alphas_cumprod, dtype=torch.float32)

    def model(x, t):
        a = abar[t][:, None, None, None]
        return (1 - a).sqrt() * (x - a.sqrt() * MEAN)

    return model


def mean_of(schedule, **options) -> float:
    sampler = Sampler(exact(schedule), schedule, shape=(1, 40, 40), engine="eager", **options)
    return float(sampler.sample(seeds=range(8), progress=False).mean())


@pytest.mark.parametrize(
    ("schedule", "options", "start"),
    [
        (LINEAR, {"method": "dpmpp_2m", "num_inference_steps": 500}, 500),
        (LINEAR, {"method": "ddim", "num_inference_steps": 600}, 599),
        (COSINE, {"method": "ddim", "num_inference_steps": 300}, 897),
    ],
)
def test_what_is_warned_of_is_what_loses_the_mean(schedule, options, start):
    """Data of variance 1 go along straight lines, x_0 - MEAN = x_t - sqrt(abar_t) MEAN: from noise alone the
    mean is too small by the factor that is missing."""
    with pytest.warns(UserWarning, match=rf"timestep_spacing: 'leading' .* at timestep {start} and not"):
        cut = mean_of(schedule, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = mean_of(schedule, **options, timestep_spacing="trailing")
    # Of 12,800 numbers the standard error is 0.009.
    assert whole == pytest.approx(MEAN, abs=0.02)
    assert cut == pytest.approx(MEAN * (1 - schedule.sqrt_alphas_cumprod[start]), abs=0.03)
    assert cut - whole > 0.1 * abs(MEAN)


@pytest.mark.parametrize("steps", [5, 10, 25, 50, 100, 250, 300, 1000])
def test_usual_numbers_of_steps_are_not_warned_of(steps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean = mean_of(LINEAR, method="ddim", num_inference_steps=steps)
        # Other spacings, and timesteps that were given, are as they were asked for.
        Sampler(exact(LINEAR), LINEAR, num_inference_steps=600, timestep_spacing="linspace")
        Sampler(exact(LINEAR), LINEAR, timesteps=range(599, -1, -1))
    assert mean == pytest.approx(MEAN, abs=0.04)


def test_the_timesteps_stay_as_they_were():
    with pytest.warns(UserWarning, match="leading"):
        sampler = Sampler(exact(LINEAR), LINEAR, num_inference_steps=600)
    assert np.array_equal(sampler.plan.timesteps, np.arange(599, -1, -1))
    assert np.array_equal(Method(num_inference_steps=600).plan(LINEAR).timesteps, sampler.plan.timesteps)


def test_added_methods_of_drop_ins_say_it_too():
    betas = torch.tensor(LINEAR.betas, dtype=torch.float32)
    abar = (1 - betas).cumprod(0)
    ours = {
        "betas": betas,
        "alphas_cumprod": abar,
        "reciprocal_sqrt_alphas": (1 - betas).rsqrt(),
        "remove_noise_coeff": betas / (1 - abar).sqrt(),
        "sigma": betas.sqrt(),
    }
    theirs = {
        "betas": betas,
        "sqrt_recip_alphas_cumprod": abar.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_mean_coef1": betas,
        "posterior_mean_coef2": betas,
        "posterior_log_variance_clipped": betas.log(),
    }
    for make, stored in ((from_abarankab, ours), (from_sr3, theirs)):
        with pytest.warns(UserWarning, match="start at timestep 599 and not at 999"):
            make(stored, method="ddim", num_inference_steps=600)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make(stored)
            make(stored, method="ddim", num_inference_steps=50)
            make(stored, method="ddim", num_inference_steps=600, timestep_spacing="trailing")
