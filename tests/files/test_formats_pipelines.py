"""Folders of diffusers, both ways: read into samplers, and written so that diffusers reads them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from networks import make_unet
from tolerances import NETWORK

import fastddpm
from fastddpm import CheckpointError, NoiseSchedule, UNet, UNetConfig, load
from fastddpm.formats.writing import save_pipeline

diffusers = pytest.importorskip("diffusers")

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
# A chain of 50 steps whose tables are float32 there and float64 here; in [-1, 1].
CHAIN = 1e-3
PLAIN = UNetConfig(
    in_channels=3, base_channels=8, channel_mults=(1, 2), num_groups=4, time_dim=24, attention_levels=(1,)
)


def network(**options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**{**TINY, **options}).eval()


def saved(folder, scheduler, **options):
    pipeline = {"DDPMScheduler": diffusers.DDPMPipeline, "DDIMScheduler": diffusers.DDIMPipeline}
    made = pipeline[type(scheduler).__name__](unet=network(**options), scheduler=scheduler)
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(folder)
    return made


@torch.no_grad()
def test_pipeline_folder(tmp_path):
    pipeline = saved(
        tmp_path, diffusers.DDPMScheduler(num_train_timesteps=200, beta_schedule="squaredcos_cap_v2")
    )
    sampler = load(tmp_path)
    assert isinstance(sampler.model, UNet)
    assert sampler.shape == (3, 8, 8)
    assert sampler.schedule == NoiseSchedule.cosine(200)
    assert (sampler.plan.method, len(sampler.plan)) == ("ddpm", 200)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 150])
    assert (sampler.model(x, t) - pipeline.unet(x, t).sample).abs().max() <= NETWORK
    images = sampler.replace(num_inference_steps=50).sample(
        2, noise="torch", generator=torch.Generator().manual_seed(4), progress=False
    )
    expected = pipeline(
        2, generator=torch.Generator().manual_seed(4), num_inference_steps=50, output_type="np"
    ).images
    given = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(given - expected).max() <= CHAIN


SCHEDULERS = {
    "ddpm": (
        diffusers.DDPMScheduler(num_train_timesteps=100, clip_sample_range=2.0, variance_type="fixed_large"),
        {"method": "ddpm", "variance_type": "fixed_large", "clip_sample_range": 2.0},
    ),
    "ddpm v, trailing": (
        diffusers.DDPMScheduler(
            num_train_timesteps=100, prediction_type="v_prediction", timestep_spacing="trailing"
        ),
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "clip_sample_range": 1.0},
    ),
    "ddpm, unclipped": (
        diffusers.DDPMScheduler(num_train_timesteps=100, clip_sample=False, variance_type="fixed_small_log"),
        {"clip_sample_range": None, "variance_type": "fixed_small"},
    ),
    "ddim": (
        diffusers.DDIMScheduler(num_train_timesteps=100, beta_schedule="scaled_linear", beta_start=1e-3),
        {"method": "ddim", "num_inference_steps": 50, "clip_sample_range": 1.0},
    ),
}


@pytest.mark.parametrize("case", SCHEDULERS)
def test_a_schedulers_configuration_gives_the_defaults(tmp_path, case):
    scheduler, expected = SCHEDULERS[case]
    saved(tmp_path, scheduler)
    sampler = load(tmp_path)
    assert {name: sampler.options[name] for name in expected} == expected
    relative = abs(sampler.schedule.alphas_cumprod / scheduler.alphas_cumprod.double().numpy() - 1)
    assert relative.max() <= 1e-5


@pytest.mark.parametrize("betas", ["sigmoid", "laplace", "trained", "zero_snr"])
def test_schedules(tmp_path, betas):
    options = {
        "sigmoid": {"beta_schedule": "sigmoid"},
        "laplace": {"beta_schedule": "laplace"},
        "trained": {"trained_betas": np.linspace(1e-3, 0.1, 50).tolist()},
        "zero_snr": {"rescale_betas_zero_snr": True},
    }[betas]
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=50, **options)
    saved(tmp_path, scheduler)
    expected = scheduler.alphas_cumprod.double().numpy()
    assert abs(load(tmp_path).schedule.alphas_cumprod - expected).max() <= 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance_type": "fixed_large_log"}, "scheduler: variance_type='fixed_large_log'"),
    ],
)
def test_what_the_sampler_has_not_is_named(tmp_path, options, message):
    saved(tmp_path, diffusers.DDPMScheduler(num_train_timesteps=100, **options))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)
    name = next(iter(options))
    neutral = {name: "fixed_large"}
    assert load(tmp_path, config={"scheduler": neutral}).schedule.num_train_timesteps == 100


@torch.no_grad()
@pytest.mark.parametrize("safe", [True, False])
def test_folder_of_a_network_alone(tmp_path, safe):
    theirs = network(sample_size=None, num_class_embeds=4)
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    with pytest.raises(CheckpointError, match="config: image_size, scheduler not given"):
        load(tmp_path)
    sampler = load(tmp_path, config={"image_size": [8, 16], "schedule": NoiseSchedule.cosine(10)})
    assert sampler.shape == (3, 8, 16)
    x, t, y = torch.randn(2, 3, 8, 16), torch.tensor([3, 9]), torch.tensor([0, 3])
    assert (sampler.model(x, t, y) - theirs(x, t, class_labels=y).sample).abs().max() <= NETWORK
    assert load(tmp_path, shape=(3, 8, 8), config={"schedule": NoiseSchedule.cosine(10)}).shape == (3, 8, 8)
    state = theirs.state_dict()
    with pytest.raises(CheckpointError, match="config: unet not given"):
        load(state)
    given = {"unet": dict(theirs.config), "image_size": 8, "schedule": NoiseSchedule.cosine(10)}
    again = load(state, config=given).model
    assert torch.equal(again(x, t, y), sampler.model(x, t, y))


@torch.no_grad()
def test_a_network_that_does_not_fit_runs_as_it_is(tmp_path):
    pipeline = saved(tmp_path, diffusers.DDPMScheduler(num_train_timesteps=30), act_fn="gelu")
    with pytest.warns(UserWarning, match="diffusers' own UNet2DModel is used: act_fn: 'gelu' given"):
        sampler = load(tmp_path)
    assert not isinstance(sampler.model, UNet)
    images = sampler.sample(1, noise="torch", generator=torch.Generator().manual_seed(1), progress=False)
    expected = pipeline(
        1, generator=torch.Generator().manual_seed(1), num_inference_steps=30, output_type="np"
    ).images
    given = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(given - expected).max() <= CHAIN


def test_without_diffusers(tmp_path, monkeypatch):
    saved(tmp_path / "fits", diffusers.DDPMScheduler(num_train_timesteps=30))
    saved(tmp_path / "not", diffusers.DDPMScheduler(num_train_timesteps=30), act_fn="gelu")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert isinstance(load(tmp_path / "fits").model, UNet)
    with pytest.raises(CheckpointError, match=r"act_fn: 'gelu' given.*with diffusers: pip install"):
        load(tmp_path / "not")


def test_damaged_folders_are_named(tmp_path):
    saved(tmp_path, diffusers.DDPMScheduler(num_train_timesteps=30))
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.safetensors: not found"):
        load(tmp_path)


def test_another_scheduler_is_named(tmp_path):
    saved(tmp_path, diffusers.DDPMScheduler(num_train_timesteps=30))
    index = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    index["_class_name"] = "PNDMScheduler"
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'PNDMScheduler' given, DDPMScheduler by model_ind"):
        load(tmp_path)


# ------------------------------------------------------------------ written


WRITTEN = {
    "ddpm": (PLAIN, {"method": "ddpm", "clip_sample_range": 1.0}, NoiseSchedule.linear(60, 1e-3, 0.1)),
    "fixed_large, unclipped": (PLAIN, {"variance_type": "fixed_large"}, NoiseSchedule.cosine(60)),
    "ddim, own betas": (PLAIN, {"method": "ddim"}, NoiseSchedule.sigmoid(60)),
    "zero terminal snr": (
        PLAIN,
        {"prediction_type": "v_prediction", "clip_sample_range": 1.0},
        NoiseSchedule.linear(60, 1e-3, 0.1).rescaled_zero_terminal_snr(),
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("case", WRITTEN)
def test_diffusers_reads_what_is_written(tmp_path, case):
    config, options, schedule = WRITTEN[case]
    unet = make_unet(config)
    options = {**options, "shape": [3, 8, 8]}
    save_pipeline(tmp_path, unet, schedule, options)
    kind = diffusers.DDIMPipeline if options.get("method") == "ddim" else diffusers.DDPMPipeline
    pipeline = kind.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 50])
    assert (pipeline.unet(x, t).sample - unet(x, t)).abs().max() <= NETWORK
    sampler = fastddpm.Sampler(unet, schedule, **{**options, "num_inference_steps": 30})
    images = sampler.sample(2, noise="torch", generator=torch.Generator().manual_seed(4), progress=False)
    expected = pipeline(
        2, generator=torch.Generator().manual_seed(4), num_inference_steps=30, output_type="np"
    ).images
    given = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(given - expected).max() <= CHAIN
    back = load(tmp_path)
    assert all(torch.equal(back.model.state_dict()[k], v) for k, v in unet.state_dict().items())
    assert back.model.config.to_dict() == {**config.to_dict(), "class_conditioning": "embedding"}
    assert abs(back.schedule.alphas_cumprod - schedule.alphas_cumprod).max() <= 1e-6


@pytest.mark.parametrize(
    ("network_options", "options", "message"),
    [
        ({"num_classes": 3}, {}, "class_conditioning: 'bias', which diffusers' UNet2DModel has not, given"),
        ({"initial_pad": 2}, {}, "initial_pad: 2, which"),
        ({"activation": "relu"}, {}, "activation: 'relu', which"),
        ({"time_scale": 2.0}, {}, "time_scale: 2.0, which"),
        ({"norm": "bn"}, {}, "norm: 'bn', which"),
        ({"time_activation": False}, {}, "time_activation: False, which"),
        ({"attention_heads": 2}, {}, "attention_heads: 2, which"),
        ({"attention_bias": False}, {}, "attention_bias: False, which"),
        ({}, {"method": "dpmpp_2m"}, "method: 'dpmpp_2m' given"),
        ({}, {"sigma_scale": 0.5}, "sigma_scale: 0.5 given, 1.0 by a pipeline of diffusers"),
        ({}, {"time_input": "noise_level"}, "time_input: 'noise_level' given, 'timestep' by"),
        ({}, {"time_input": "alphas_cumprod"}, "time_input: 'alphas_cumprod' given, 'timestep' by"),
        ({}, {"shape": None}, "shape: None given"),
    ],
)
def test_what_diffusers_has_not_is_not_written(tmp_path, network_options, options, message):
    unet = make_unet(UNetConfig(**{**PLAIN.to_dict(), **network_options}))
    with pytest.raises(ValueError, match=message):
        save_pipeline(tmp_path / "p", unet, NoiseSchedule.linear(), {"shape": [3, 8, 8], **options})
    assert not (tmp_path / "p").exists()
