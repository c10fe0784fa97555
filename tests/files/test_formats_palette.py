"""Checkpoints of the Palette repository: the outputs and chains of its Network restated, with either UNet."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import DROP_IN, NETWORK

import fastddpm
from fastddpm import CheckpointError, NoiseSchedule
from fastddpm.cli import app as cli
from fastddpm_bench.peers import sr3
from fastddpm_bench.peers.palette import GammaUNet, Network

PUBLISHED = {"mults": (1, 2, 2), "attention": (2,), "heads": -16, "updown": True}
NETWORKS = {
    "as published": PUBLISHED,
    "attention on two levels, new order": {**PUBLISHED, "attention": (0, 1), "new_order": True, "blocks": 2},
    "convolutions, heads of two sizes, time added": {"attention": (0, 1), "heads": 2, "scale_shift": False},
}
TOLD = {
    "as published": {"num_head_channels": 16},
    "attention on two levels, new order": {"num_head_channels": 16, "use_new_attention_order": True},
    "convolutions, heads of two sizes, time added": {"num_heads": 2},
}
TRAINED, TEST = np.linspace(1e-6, 0.01, 30), np.linspace(1e-3, 0.3, 12)
GIVEN = {"image_size": 8, "schedule": TEST.tolist()}
SR3 = {"in_channel": 6, "out_channel": 3, "inner_channel": 8, "channel_mults": [1, 2], "res_blocks": 1}


def moved(network):
    """With norms that do something, and outputs that are not all alike."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return Network(network.eval(), TRAINED)


def network(name="as published", **options):
    torch.manual_seed(0)
    return moved(GammaUNet(**{**NETWORKS[name], **options}))


def sr3_network():
    torch.manual_seed(0)
    return moved(sr3.Network("sr3", norm_groups=4, **{**SR3, "image_size": 16, "attn_res": (8,)}))


def document(module="guided_diffusion", **unet):
    """The content of a JSON file of theirs, without what is about training."""
    options = {
        "in_channel": 6,
        "out_channel": 3,
        "inner_channel": 32,
        "channel_mults": [1, 2, 2],
        "attn_res": [4],
        "num_head_channels": 16,
        "res_blocks": 1,
        "dropout": 0.2,
        "image_size": 8,
    }
    if module == "sr3":
        options = {**SR3, "norm_groups": 4, "image_size": 8, "attn_res": [4]}
    schedules = {
        "train": {"schedule": "linear", "n_timestep": 30},  # by the defaults of their code
        "test": {"schedule": "linear", "n_timestep": 12, "linear_start": 1e-3, "linear_end": 0.3},
    }
    arguments = {"module_name": module, "unet": {**options, **unet}, "beta_schedule": schedules}
    listed = [{"name": ["models.network", "Network"], "args": arguments}]
    return {"name": "colorization", "model": {"which_model": {}, "which_networks": listed}}


def difference(one, other) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_network(name):
    theirs = network(name)
    model = fastddpm.load(theirs.state_dict(), config={**GIVEN, **TOLD[name]}).model
    x, gammas = torch.randn(3, 6, 16, 24), torch.tensor([0.9999, 0.4, 1e-4])
    expected = theirs.denoise_fn(x, gammas[:, None])
    assert difference(model(x, gammas), expected) <= NETWORK
    assert difference(model(x, gammas.sqrt()), expected) > 100 * NETWORK


@torch.no_grad()
@pytest.mark.parametrize("module", ["guided_diffusion", "sr3"])
def test_chains_are_those_of_the_repository(module):
    """With the schedule of its tests, which is not that of the gammas in the file; by its JSON or options."""
    theirs = network() if module == "guided_diffusion" else sr3_network()
    told = {"num_head_channels": 16} if module == "guided_diffusion" else {"num_groups": 4}
    state = theirs.state_dict()
    y_cond = torch.rand(2, 3, 8, 8) * 2 - 1
    for config, betas in (
        (document(module), TEST),
        ({**document(module), "schedule_phase": "train"}, TRAINED),
        ({**GIVEN, **told}, TEST),
    ):
        sampler = fastddpm.load(state, config=config)
        assert sampler.method.time_input == "alphas_cumprod"
        theirs.set_new_noise_schedule(betas)
        torch.manual_seed(5)
        expected = theirs.restoration(y_cond, torch.randn(2, 3, 8, 8))
        torch.manual_seed(5)
        images = sampler.sample(2, condition=y_cond, noise="torch", progress=False)
        assert (images - expected).abs().max() <= DROP_IN


def test_a_network_of_sr3_alone_is_that_of_the_sr3_repository():
    """Without the gammas beside it nothing says whose it is but a configuration."""
    bare = sr3_network().denoise_fn.state_dict()
    assert fastddpm.load(bare, config={**GIVEN, "num_groups": 4}).method.time_input == "noise_level"
    assert fastddpm.load(bare, config=document("sr3")).method.time_input == "alphas_cumprod"


@torch.no_grad()
def test_inpainting_keeps_what_is_known():
    """By the lines of docs/formats.md: what the mask leaves is known to the network at every step."""
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", text, re.S) if "Inpainting" in one]
    names = {}
    exec(block, names)
    theirs = network()
    sampler = fastddpm.load(theirs.state_dict(), config=document())
    torch.manual_seed(6)
    picture, mask = torch.rand(2, 3, 8, 8) * 2 - 1, torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:6, 3:] = 1
    torch.manual_seed(5)
    images = names["inpainted"](sampler, picture, mask, noise="torch", progress=False)
    theirs.set_new_noise_schedule(TEST)
    torch.manual_seed(5)
    y_cond = torch.lerp(picture, torch.randn_like(picture), mask)
    y_t = torch.lerp(picture, torch.randn_like(picture), mask)
    assert (images - theirs.restoration(y_cond, y_t, picture, mask)).abs().max() <= DROP_IN


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["fastddpm", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_convert(tmp_path, monkeypatch, capsys):
    """From a file with comments, as theirs are, to a folder; a pipeline of diffusers is told timesteps."""
    theirs = network()
    parallel = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save(parallel, tmp_path / "200_Network.pth")
    text = json.dumps(document(), indent=2).replace('"dropout"', '// as published\n"dropout"')
    (tmp_path / "colorization.json").write_text(text)
    words = ("--config", tmp_path / "colorization.json")
    assert run(monkeypatch, "convert", tmp_path / "200_Network.pth", tmp_path / "out", *words) in (None, 0)
    sampler = fastddpm.load(tmp_path / "out")
    assert sampler.method.time_input == "alphas_cumprod"
    assert (sampler.shape, sampler.model.config.dropout) == ((3, 8, 8), 0.2)
    np.testing.assert_allclose(sampler.schedule.betas, TEST)
    x, gammas = torch.randn(2, 6, 8, 8), torch.tensor([0.9, 0.1])
    with torch.no_grad():
        assert difference(sampler.model(x, gammas), theirs.denoise_fn(x, gammas[:, None])) <= NETWORK
    capsys.readouterr()
    words = (tmp_path / "200_Network.pth", tmp_path / "pipeline", "--to", "diffusers", *words)
    assert run(monkeypatch, "convert", *words) == 2
    assert "UNet2DModel" in capsys.readouterr().err
    assert not (tmp_path / "pipeline").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "config: image_size, schedule, num_heads not given, and a state dict of Palette does not say"),
        ({**GIVEN, "heads": 2}, "config: 'heads' given; known are"),
        (document("sr3"), "config: module_name='sr3' given, the tensors show 'guided_diffusion'"),
        (document(inner_channel=64), "config: base_channels=64 given, the tensors show 32"),
        (document(res_blocks=2), "config: num_res_blocks=2 given, the tensors show 1"),
        ({"model": {"which_networks": []}}, r"config: not a configuration of the Palette repository \(Ind"),
        ({**document(), "schedule_phase": "val"}, "config: not a configuration of the Palette repository"),
        (document(dropout="much"), "config: dropout: 'much' given, a finite number accepted"),
    ],
)
def test_what_does_not_fit_is_named(config, words):
    with pytest.raises(CheckpointError, match=words) as refused:
        fastddpm.load(network().state_dict(), config=config)
    assert len(str(refused.value)) < 300


def test_networks_that_our_unet_has_not():
    state = network("convolutions, heads of two sizes, time added").state_dict()
    pooled = {name: value for name, value in state.items() if ".op." not in name}
    with pytest.raises(CheckpointError, match="of Palette with conv_resample=False, which is not read here"):
        fastddpm.load(pooled, config={**GIVEN, "num_heads": 2})
    larger = network(channels=3, outputs=6).state_dict()
    with pytest.raises(CheckpointError, match="3 channels in and 6 out, at most as many accepted"):
        fastddpm.load(larger, config={**GIVEN, "num_head_channels": 16})
    with pytest.raises(CheckpointError, match="module_name='guided_diffusion' given, the tensors show 'sr3'"):
        fastddpm.load(sr3_network().state_dict(), config=document())


def test_a_network_of_both_names_is_refused():
    state = network().state_dict()
    other = {"denoise_fn.time_embed.0.weight": state["denoise_fn.cond_embed.0.weight"]}
    with pytest.raises(CheckpointError):
        fastddpm.load({**state, **other}, config={**GIVEN, "num_head_channels": 16})


def test_schedules_by_their_defaults():
    sampler = fastddpm.load(network().state_dict(), config={**document(), "schedule_phase": "train"})
    assert sampler.schedule == NoiseSchedule.linear(30, 1e-6, 1e-2)
