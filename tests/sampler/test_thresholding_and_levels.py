"""Thresholding by a Sampler against diffusers' loops; noise levels through folders and jobs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import TINY, make_unet
from tolerances import DROP_IN

import fastddpm
from fastddpm import NoiseSchedule, Sampler
from fastddpm.jobs import Job, TorchDrawer

LEVELS = [60.0, 12.0, 2.5, 0.4, 0.05]
BOUNDS = [(0.995, 1.0), (0.7, 1.5)]
SHAPE = (2, 3, 8, 8)


def network(x, t):
    """Of a large x0, which the bound bends."""
    return torch.tanh(0.8 * x + 0.05 * torch.sin(t.float() / 100).reshape(-1, 1, 1, 1)) * 1.3


@pytest.mark.parametrize(("ratio", "largest"), BOUNDS)
@pytest.mark.parametrize("method", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_as_in_diffusers_own_loop(method, prediction, ratio, largest):
    diffusers = pytest.importorskip("diffusers")
    name = {"ddim": "DDIMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}[method]
    options = {"prediction_type": prediction, "timestep_spacing": "trailing", "thresholding": True}
    options |= {"dynamic_thresholding_ratio": ratio, "sample_max_value": largest}
    # Without the clip, which would go first; ours takes eps of the thresholded x0.
    own, of_step = (
        ({"clip_sample": False}, {"use_clipped_model_output": True}) if method == "ddim" else ({}, {})
    )
    scheduler = getattr(diffusers, name)(**options, **own)
    scheduler.set_timesteps(8)
    x_T = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.repeat(2)), t, x, **of_step).prev_sample
    sampler = Sampler(
        network, NoiseSchedule.linear(), method=method, num_inference_steps=8, shape=SHAPE[1:], **options
    )
    images = sampler.sample(x_T=x_T, progress=False)
    assert (images - x).abs().max() <= DROP_IN * x.abs().max().clamp(min=1)
    unbent = sampler.replace(thresholding=False, dynamic_thresholding_ratio=0.995, sample_max_value=1.0)
    assert (unbent.sample(x_T=x_T, progress=False) - x).abs().max() > 0.01


@pytest.fixture(scope="module")
def sampler():
    options = {"method": "unipc", "sigmas": LEVELS, "clip_sample_range": 1.0}
    return Sampler(make_unet(), NoiseSchedule.linear(), shape=(3, 8, 8), **options)


def test_levels_in_a_folder(sampler, tmp_path):
    fastddpm.save_folder(
        tmp_path / "model", sampler.model, sampler.schedule, sampler.replace(device=None).options
    )
    again = fastddpm.load(tmp_path / "model")
    assert again.method.sigmas == tuple(LEVELS)
    call = {"seeds": [1, 2], "class_labels": 1, "progress": False}
    assert (again.sample(**call) - sampler.sample(**call)).abs().max() <= DROP_IN


def test_levels_in_a_job(sampler, tmp_path):
    labels = [seed % TINY.num_classes for seed in range(4)]
    job = Job(
        TorchDrawer(sampler), range(4), tmp_path / "job", class_labels=labels, shard_size=4, batch_size=4
    )
    job.run(progress=False)
    shard = next((tmp_path / "job").rglob("*.npz"))
    images = sampler.sample(seeds=range(4), class_labels=labels, progress=False)
    with np.load(shard) as held:
        drawn = held["arr_0"].astype(int)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(drawn - pixels).max() <= 1
