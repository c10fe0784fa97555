"""Checkpoints of improved-diffusion and guided-diffusion: the outputs and chains of their code, restated."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from tolerances import DROP_IN, NETWORK

import fastddpm
from fastddpm import CheckpointError, NoiseSchedule
from fastddpm.cli import app as cli
from fastddpm_bench.peers.guided_diffusion import GaussianDiffusion, ModelMeanType, ModelVarType
from fastddpm_bench.peers.guided_unet import UNetModel

SCHEDULE = NoiseSchedule.linear(1000)
GIVEN = {"image_size": 8, "schedule": SCHEDULE, "num_heads": 2}
NETWORKS = {
    "plain": {},
    "fixed variance, time added": {"outputs": 3, "scale_shift": False},
    "deep, attention on two levels": {"mults": (1, 2, 2), "blocks": 2, "attention": (1, 2), "heads": 4},
    "heads of 16 channels": {"mults": (1, 2, 3), "attention": (0, 2), "heads": -16},
    "heads of several sizes": {"mults": (1, 2, 3), "attention": (0, 1, 2)},
    "the same, new order": {"mults": (1, 3), "attention": (0,), "new_order": True, "updown": True},
    "new order, classes": {"new_order": True, "classes": 5},
    "blocks that change the size": {"updown": True},
    "the same, deep, as published, classes": {
        "updown": True,
        "mults": (1, 2, 3),
        "blocks": 2,
        "attention": (1, 2),
        "heads": -16,
        "new_order": True,
        "classes": 5,
    },
    "the same, time added, attention on all": {
        "updown": True,
        "scale_shift": False,
        "attention": (0, 1),
        "heads": -16,
    },
}
TOLD = {
    "deep, attention on two levels": {"num_heads": 4},
    "heads of 16 channels": {"num_heads": None, "num_head_channels": 16},
    "the same, new order": {"use_new_attention_order": True},
    "new order, classes": {"use_new_attention_order": True},
    "the same, deep, as published, classes": {
        "use_new_attention_order": True,
        "num_heads": None,
        "num_head_channels": 16,
    },
    "the same, time added, attention on all": {"num_heads": None, "num_head_channels": 16},
}


def network(name="plain", **options):
    torch.manual_seed(0)
    model = UNetModel(**{**NETWORKS[name], **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms that do something, and outputs that are not all alike
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model


def difference(one, other) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_network(name):
    theirs = network(name)
    model = fastddpm.load(theirs.state_dict(), config={**GIVEN, **TOLD.get(name, {})}).model
    x = torch.randn(3, 3, 16, 24)
    labels = torch.tensor([0, 4, 2]) if "classes" in name else None
    for t in (torch.tensor([0, 1, 2]), torch.tensor([500, 998, 999])):
        assert difference(model(x, t, labels), theirs(x, t, labels)) <= NETWORK


@torch.no_grad()
@pytest.mark.parametrize("learned", [True, False])
def test_chains_are_those_of_the_repository(learned):
    theirs = network(outputs=6 if learned else 3)
    schedule = NoiseSchedule.linear(20, 1e-3, 0.3)
    told = {**GIVEN, "schedule": schedule, "rescale_timesteps": False}
    sampler = fastddpm.load(theirs.state_dict(), config=told)
    assert sampler.method.variance_type == ("learned_range" if learned else "fixed_large")
    diffusion = GaussianDiffusion(
        betas=schedule.betas,
        model_mean_type=ModelMeanType.EPSILON,
        model_var_type=ModelVarType.LEARNED_RANGE if learned else ModelVarType.FIXED_LARGE,
    )
    torch.manual_seed(5)
    expected = diffusion.p_sample_loop(theirs, (2, 3, 8, 8), device="cpu")
    torch.manual_seed(5)
    images = sampler.sample(2, noise="torch", progress=False)
    assert (images - expected).abs().max() <= DROP_IN


@torch.no_grad()
def test_rescaled_timesteps():
    """With 4000 steps improved-diffusion tells its networks t * 1000 / 4000."""
    theirs, schedule = network(), NoiseSchedule.cosine(4000)
    told = {**GIVEN, "schedule": schedule}
    with pytest.raises(CheckpointError, match=r"rescale_timesteps not given, for 4000 timesteps; True"):
        fastddpm.load(theirs.state_dict(), config=told)
    model = fastddpm.load(theirs.state_dict(), config={**told, "rescale_timesteps": True}).model
    x = torch.randn(2, 3, 8, 8)
    t = torch.tensor([3, 3999])
    assert difference(model(x, t), theirs(x, t * 0.25)) <= NETWORK
    assert difference(model(x, t), theirs(x, t.float())) > 100 * NETWORK


def test_files_and_wrappers(tmp_path):
    theirs, average = network(), network()
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.9)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([7])
    torch.save(average.state_dict(), tmp_path / "ema_0.9999_250000.pt")
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"model": state, "ema": average.state_dict()}, tmp_path / "both.pt")
    for name, ema, right in (
        ("ema_0.9999_250000.pt", True, average),
        ("both.pt", True, average),
        ("both.pt", False, theirs),
    ):
        model = fastddpm.load(tmp_path / name, config=dict(GIVEN), ema=ema).model
        with torch.no_grad():
            assert difference(model(x, t), right(x, t)) <= NETWORK


def test_convert(tmp_path, monkeypatch):
    theirs = network()
    torch.save(theirs.state_dict(), tmp_path / "net.pt")
    told = {"image_size": 8, "schedule": SCHEDULE.betas.tolist(), "num_heads": 2}
    (tmp_path / "c.json").write_text(json.dumps(told))
    words = ["fastddpm", "convert", *map(str, (tmp_path / "net.pt", tmp_path / "out"))]
    monkeypatch.setattr(sys, "argv", [*words, "--config", str(tmp_path / "c.json")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (None, 0)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([7])
    sampler = fastddpm.load(tmp_path / "out")
    with torch.no_grad():
        assert difference(sampler.model(x, t), theirs(x, t)) <= NETWORK
    np.testing.assert_allclose(sampler.schedule.betas, SCHEDULE.betas)


@pytest.mark.parametrize(
    ("options", "told", "words"),
    [
        ({}, {"num_heads": None}, "num_heads not given, and a state dict of guided-diffusion does not say"),
        ({}, {"num_heads": 5}, "num_heads=5 given, a divisor of the 64 channels accepted"),
        ({}, {"num_heads": "x"}, "num_heads='x' given, an integer of at least 1 accepted"),
        ({}, {"num_head_channels": 60}, "num_head_channels=60 given, a divisor of the 64 channels"),
        ({}, {"use_scale_shift_norm": False}, "use_scale_shift_norm=False given, the tensors show True"),
        ({}, {"use_new_attention_order": 1}, "use_new_attention_order=1 given, True or False accepted"),
        ({}, {"heads": 2}, "'heads' given; known are"),
        ({"channels": 6, "outputs": 3}, {}, "6 channels in and 3 out, as of an upsampler; build the network"),
    ],
)
def test_what_is_refused(options, told, words):
    state = network(**options).state_dict()
    with pytest.raises((CheckpointError, ValueError), match=words) as refused:
        fastddpm.load(state, config={**GIVEN, **told})
    assert len(str(refused.value)) < 300


def test_sizes_changed_by_pooling_are_refused_by_name():
    """``conv_resample=False``: nothing of it is among the tensors, so the levels cannot be told."""
    state = {name: value for name, value in network().state_dict().items() if ".op." not in name}
    with pytest.raises(CheckpointError, match=r"of guided-diffusion.*, which is not read here; .*optimize"):
        fastddpm.load(state, config=dict(GIVEN))
