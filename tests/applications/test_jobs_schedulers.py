"""A job whose sampler takes the steps of a scheduler of diffusers: killed and resumed, and its images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from job_cases import contents, start
from networks import TINY, make_unet

from fastddpm import NoiseSchedule, Sampler
from fastddpm.jobs import Job, OtherSettingsError, TorchDrawer
from fastddpm.jobs.manifest import read_records

diffusers = pytest.importorskip("diffusers")

# NumPy's, of how diffusers makes arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 1000}
COUNT, SHARDS, STEPS = 48, 12, 5
# One that draws, one that remembers three predictions.
SCHEDULERS = {
    "SDE": lambda **config: diffusers.DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="sde-dpmsolver++", **config
    ),
    "UniPC": lambda **config: diffusers.UniPCMultistepScheduler(**BETAS, solver_order=3, **config),
}


def made(name, folder, *, seeds=COUNT, **config):
    sampler = Sampler(
        make_unet(),
        NoiseSchedule.linear(1000),
        method="diffusers",
        scheduler=SCHEDULERS[name](**config),
        num_inference_steps=STEPS,
        shape=(3, 8, 8),
        engine="eager",
    )
    labels = [seed % TINY.num_classes for seed in range(seeds)]
    drawer = TorchDrawer(sampler)
    return Job(drawer, range(seeds), folder, class_labels=labels, shard_size=4, batch_size=4)


def draw(name, folder):
    made(name, folder).run(progress=False)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_killed_and_resumed(name, tmp_path):
    """The files of a job that nobody killed; shards that were whole are not drawn again."""
    draw(name, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    folder = tmp_path / "job"
    for most in (2, 5):
        process = start(draw, name, folder)
        while process.is_alive() and len(list(folder.glob("records/[0-9]*.json"))) < most:
            process.join(0.0005)
        process.kill()
        process.join(60)
    finished = {record: (folder / record).stat().st_mtime_ns for record in read_records(folder)}
    assert 2 <= len(finished) < SHARDS
    assert made(name, folder).run(progress=False) == COUNT - 4 * len(finished)
    assert contents(folder) == whole
    assert {record: (folder / record).stat().st_mtime_ns for record in finished} == finished


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_images_are_the_schedulers(name, tmp_path):
    """Without noise: those of diffusers' own loop from the same noise; with it, of the sampler alone."""
    job = made(name, tmp_path, seeds=4)
    assert job.run(progress=False) == 4
    pixels = np.load(tmp_path / "00000.npz")["arr_0"].astype(int)
    sampler = job.drawer._sampler
    expected = sampler.sample(seeds=[2], class_labels=2, progress=False)
    if name == "UniPC":
        scheduler, unet = SCHEDULERS[name](), make_unet().eval()
        scheduler.set_timesteps(STEPS)
        x = sampler.sample_trajectory(seeds=[2], class_labels=2, progress=False)[0]
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(unet(x, t.reshape(1), class_labels=torch.tensor([2])), t, x).prev_sample
        assert (x - expected).abs().max() <= 1e-4 * x.abs().max()
    levels = ((expected.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy().astype(int)
    # A batch of four rounds otherwise than one image.
    assert np.abs(pixels[2] - levels).max() <= 1


def test_another_scheduler_is_another_job(tmp_path):
    made("SDE", tmp_path, seeds=4).run(progress=False)
    for name, config in (("UniPC", {}), ("SDE", {"use_karras_sigmas": True})):
        with pytest.raises(OtherSettingsError, match="scheduler"):
            made(name, tmp_path, seeds=4, **config).run(progress=False)
