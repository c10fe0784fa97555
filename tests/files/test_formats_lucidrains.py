"""State dicts of denoising-diffusion-pytorch, and the `model-N.pt` of its Trainer, against the library."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from tolerances import DROP_IN, NETWORK

import fastddpm
from fastddpm import CheckpointError, NoiseSchedule
from fastddpm.cli import app as cli

lucidrains = pytest.importorskip("denoising_diffusion_pytorch")
ema_pytorch = pytest.importorskip("ema_pytorch")

NETWORKS = {
    "plain": {"dim": 8, "dim_mults": (1, 2)},
    "init_dim, full attention": {
        "dim": 8,
        "init_dim": 12,
        "dim_mults": (1, 2, 3),
        "channels": 1,
        "full_attn": (True, False, True),
    },
    "heads": {"dim": 8, "dim_mults": (2, 2), "attn_heads": (2, 3), "attn_dim_head": (16, 8)},
    "learned time": {
        "dim": 8,
        "dim_mults": (1, 2),
        "learned_sinusoidal_cond": True,
        "learned_sinusoidal_dim": 6,
    },
    "one level": {"dim": 8, "dim_mults": (1,), "random_fourier_features": True},
}


def network(name, seed=0):
    torch.manual_seed(seed)
    return lucidrains.Unet(**NETWORKS[name], flash_attn=False).eval()


def diffusion(name="plain", **options):
    return lucidrains.GaussianDiffusion(network(name), image_size=8, timesteps=30, **options).eval()


def images(of, count, **options):
    torch.manual_seed(1)
    return of.sample(count, **options)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_network(name):
    theirs = network(name)
    given = {"image_size": 8, "schedule": NoiseSchedule.linear(1000), "objective": "pred_v"}
    sampler = fastddpm.load(theirs.state_dict(), config=given)
    channels = theirs.channels
    assert sampler.shape == (channels, 8, 8)
    x, t = torch.randn(2, channels, 8, 8), torch.tensor([3, 700])
    assert float((sampler.model(x, t) - theirs(x, t)).abs().max()) <= NETWORK


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("beta_schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("min_snr", [False, True])
def test_chains_are_those_of_the_library(objective, beta_schedule, min_snr):
    theirs = diffusion(objective=objective, beta_schedule=beta_schedule, min_snr_loss_weight=min_snr)
    sampler = fastddpm.load(theirs.state_dict(), config={"image_size": 8})
    ours = images(sampler, 2, noise="torch", progress=False)
    assert float(((ours + 1) / 2 - images(theirs, 2)).abs().max()) <= DROP_IN


def test_what_its_trainer_saves(tmp_path):
    theirs, average = diffusion(), ema_pytorch.EMA(diffusion())
    with torch.no_grad():
        for parameter in average.ema_model.parameters():
            parameter.mul_(1.1)
    document = {
        "step": 5,
        "model": theirs.state_dict(),
        "opt": torch.optim.Adam(theirs.parameters()).state_dict(),
        "ema": average.state_dict(),
        "scaler": None,
        "version": "2.3.4",
    }
    torch.save(document, tmp_path / "model-1.pt")
    for options, expected in (({}, average.ema_model), ({"ema": False}, theirs)):
        sampler = fastddpm.load(tmp_path / "model-1.pt", config={"image_size": 8}, **options)
        ours = images(sampler, 1, noise="torch", progress=False)
        assert float(((ours + 1) / 2 - images(expected, 1)).abs().max()) <= DROP_IN


def test_what_is_missing_is_asked_for():
    state = diffusion().state_dict()
    with pytest.raises(CheckpointError, match="config: image_size not given"):
        fastddpm.load(state)
    bare = diffusion().model.state_dict()
    with pytest.raises(CheckpointError, match="config: image_size, objective, schedule not given") as refused:
        fastddpm.load(bare)
    assert len(str(refused.value)) < 300
    with pytest.raises(CheckpointError, match="objective='eps' given, one of pred_noise, pred_x0, pred_v"):
        fastddpm.load(state, config={"image_size": 8, "objective": "eps"})
    del state["loss_weight"]  # versions before 1.8 have another one
    with pytest.raises(CheckpointError, match="config: objective not given"):
        fastddpm.load(state, config={"image_size": 8})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"self_condition": True}, "self-conditioned"), ({"learned_variance": True}, "3 channels in, 6 out")],
)
def test_networks_that_a_sampler_cannot_call_are_refused(options, message):
    state = lucidrains.Unet(dim=8, dim_mults=(1, 2), flash_attn=False, **options).state_dict()
    given = {"image_size": 8, "schedule": NoiseSchedule.linear(9), "objective": "pred_v"}
    with pytest.raises(CheckpointError, match=rf"{message}; fastddpm\.optimize\(diffusion\)") as refused:
        fastddpm.load(state, config=given)
    assert len(str(refused.value)) < 300


def test_a_changed_copy_is_refused():
    given = {"image_size": 8, "schedule": NoiseSchedule.linear(9), "objective": "pred_v"}
    state = {**network("plain").state_dict(), "extra.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match="not a Unet of denoising-diffusion-pytorch") as refused:
        fastddpm.load(state, config=given)
    assert len(str(refused.value)) < 300


def test_convert_says_that_it_stays_with_its_library(tmp_path, monkeypatch, capsys):
    torch.save(diffusion().state_dict(), tmp_path / "d.pt")
    (tmp_path / "given.json").write_text(json.dumps({"image_size": 8}))
    words = ["convert", tmp_path / "d.pt", tmp_path / "out", "--config", tmp_path / "given.json"]
    monkeypatch.setattr(sys, "argv", ["fastddpm", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "a Unet that our UNet does not express" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
