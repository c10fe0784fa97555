"""DDIM inversion: against diffusers' inverse scheduler, and there and back again."""

import numpy as np
import pytest
import torch
from networks import make_unet

from fastddpm import NoiseSchedule, Sampler
from fastddpm.checks import BadArgument
from fastddpm.plans import Method
from fastddpm.plans.inversion import inverse_plan

SCHEDULE = NoiseSchedule.linear(1000)


def sampler(model, **options):
    options = {"method": "ddim", "num_inference_steps": 20, "shape": (3, 8, 8), "engine": "eager", **options}
    return Sampler(model, SCHEDULE, **options)


@pytest.mark.filterwarnings("ignore:.*__array__")
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_diffusers_inverse_scheduler(spacing, prediction_type):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMInverseScheduler(
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        beta_start=1e-4,
        beta_end=0.02,
    )
    unet = make_unet().eval()
    labels = torch.tensor([1, 2])
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    theirs.set_timesteps(20)
    x = images
    for t in theirs.timesteps:
        with torch.no_grad():
            x = theirs.step(unet(x, t.expand(2), labels), t, x).prev_sample
    made = sampler(unet, timestep_spacing=spacing, prediction_type=prediction_type)
    found = made.invert(images, class_labels=[1, 2], progress=False)
    # Theirs takes the first step of trailing from timestep -1: alphas_cumprod 1, as ours.
    assert (found - x).abs().max() <= 1e-4 * x.abs().max()
    assert torch.equal(found, made.invert(images, class_labels=[1, 2], max_batch=2, progress=False))


def test_there_and_back():
    """For data N(0.3, 0.5**2), whose exact prediction is known: the error falls with the steps."""

    def model(x, t):
        abar = torch.tensor(SCHEDULE.alphas_cumprod, dtype=torch.float32)[t].reshape(-1, 1, 1, 1)
        return (1 - abar).sqrt() * (x - abar.sqrt() * 0.3) / (abar * 0.25 + 1 - abar)

    images = 0.3 + 0.5 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    errors = []
    for steps in (50, 500):
        made = sampler(model, num_inference_steps=steps, timestep_spacing="trailing")
        noise = made.invert(images, progress=False)
        errors.append((made.sample(x_T=noise, progress=False) - images).abs().max().item())
    assert noise.mean().abs() < 0.1
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    assert errors[1] < 0.02
    assert errors[1] < 0.2 * errors[0]


def test_a_network_that_is_told_noise_levels():
    plan = Method(method="ddim", num_inference_steps=5, time_input="noise_level").plan(SCHEDULE)
    levels = np.sqrt(SCHEDULE.alphas_cumprod[[0, 200, 400, 600, 800]])
    assert inverse_plan(plan, SCHEDULE).model_time == pytest.approx(levels, rel=1e-6)


def test_what_cannot_be_inverted_is_said():
    images = torch.zeros(1, 3, 8, 8)
    for options, words in [
        ({"method": "ddpm"}, "method: 'ddpm' given, ddim with eta 0"),
        ({"eta": 0.5}, "method: ddim with noise given"),
        ({"prediction_type": "sample"}, "prediction_type: 'sample' given, epsilon or v_prediction"),
    ]:
        with pytest.raises(BadArgument, match=words):
            sampler(lambda x, t: x, **options).invert(images)
    with pytest.raises(BadArgument, match=r"images: shape \(3, 8, 8\) given"):
        sampler(make_unet()).invert(images[0])
    with pytest.raises(BadArgument, match=r"images: shape \(3, 8, 8\) given, .* 3 sides behind B"):
        sampler(lambda x, t: x, shape=(3, 8, 8)).invert(images[0])
    with pytest.raises(BadArgument, match=r"class_labels: 2 for 1 images given"):
        sampler(make_unet()).invert(images, class_labels=[1, 2])
