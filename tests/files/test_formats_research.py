"""Checkpoints of ermongroup/ddim, pesser/pytorch_diffusion and w86763777/pytorch-ddpm.

Right are the outputs and the chains of the networks restated in `fastddpm_bench.peers` under those names.
"""

from __future__ import annotations

import contextlib
import json
import sys

import pytest
import torch
from tolerances import DROP_IN, GOLDEN_RELATIVE, NETWORK

import fastddpm
from fastddpm import CheckpointError, NoiseSchedule
from fastddpm.cli import app as cli
from fastddpm_bench.peers import ddim, pytorch_ddpm

SCHEDULE = NoiseSchedule.linear(1000)
GIVEN = {"image_size": 8, "schedule": SCHEDULE}
PEERS = {
    "ddim": (
        ddim.Network,
        [
            {},
            {"ch_mult": (1, 2, 2), "num_res_blocks": 2, "attn_levels": (1,)},
            {"channels": 1, "ch_mult": (1,), "attn_levels": ()},
            {"ch_mult": (1, 1, 2, 3), "attn_levels": (0, 2), "out_ch": 6, "bayesian": True},
        ],
    ),
    "pytorch_ddpm": (
        pytorch_ddpm.Network,
        [
            {},
            {"ch_mult": (1, 2, 2), "num_res_blocks": 2, "attn": (1,)},
            {"ch_mult": (1, 3), "attn": (), "ch": 64},
        ],
    ),
}
CASES = [(name, index) for name, (_, options) in PEERS.items() for index in range(len(options))]


def network(name, index=0):
    torch.manual_seed(index)
    kind, options = PEERS[name]
    return kind(**options[index]).eval()


def difference(one, other) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


@torch.no_grad()
@pytest.mark.parametrize(("name", "index"), CASES)
def test_outputs_are_those_of_the_network(name, index):
    theirs = network(name, index)
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    sampler = fastddpm.load(theirs.state_dict(), config=dict(GIVEN))
    model = sampler.model
    assert model.config.num_res_blocks == PEERS[name][1][index].get("num_res_blocks", 1)
    x = torch.randn(3, model.config.in_channels, 16, 24)
    for t in (torch.tensor([0, 1, 2]), torch.tensor([500, 998, 999])):
        assert difference(model(x, t), theirs(x, t)) <= NETWORK
    assert all(torch.equal(before[key], value) for key, value in theirs.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("name", PEERS)
def test_chains_are_those_of_the_repository(name):
    theirs = network(name)
    if name == "pytorch_ddpm":  # one entry of its table a timestep
        theirs = pytorch_ddpm.Network(T=20).eval()
    schedule = NoiseSchedule.linear(20, 1e-3, 0.3)
    sampler = fastddpm.load(theirs.state_dict(), config={"image_size": 8, "schedule": schedule})
    torch.manual_seed(5)
    images = sampler.sample(2, noise="torch", progress=False)
    torch.manual_seed(5)
    x, betas = torch.randn(2, 3, 8, 8), torch.from_numpy(schedule.betas.copy())
    expected = (
        ddim.ddpm_steps(theirs, betas.float(), x) if name == "ddim" else pytorch_ddpm.sample(theirs, betas, x)
    )
    assert difference(images, expected) <= DROP_IN


@pytest.mark.parametrize("name", PEERS)
def test_the_files_that_their_scripts_write(name, tmp_path):
    """And by `fastddpm convert`."""
    theirs = network(name)
    state = theirs.state_dict()
    parallel = {f"module.{key}": value for key, value in state.items()}
    average = {key: value + 0.01 for key, value in state.items() if "timembedding.0" not in key}
    optimizer = torch.optim.Adam(theirs.parameters()).state_dict()
    files = {
        "bare": (state, state),
        "list": ([parallel, optimizer, 3, 100], state),
        "list with average": ([parallel, optimizer, 3, 100, average], average),
        "dict": ({"model": parallel, "ema": average, "step": 3}, average),
        "net_model": (
            {"net_model": state, "ema_model": average, "x_T": torch.randn(2, 3, 8, 8), "step": 3},
            average,
        ),
    }
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    for what, (document, weights) in files.items():
        torch.save(document, tmp_path / "model.ckpt")
        model = fastddpm.load(tmp_path / "model.ckpt", config=dict(GIVEN)).model
        theirs.load_state_dict({**state, **weights})
        with torch.no_grad():
            assert difference(model(x, t), theirs(x, t)) <= GOLDEN_RELATIVE, what


@torch.no_grad()
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("to", ["fastddpm", "diffusers"])
def test_convert(name, to, tmp_path, monkeypatch, capsys):
    theirs = network(name)
    torch.save([theirs.state_dict(), {}, 3, 100], tmp_path / "ckpt.pth")
    given = {**GIVEN, "schedule": SCHEDULE.to_dict()}
    (tmp_path / "given.json").write_text(json.dumps(given))
    words = [
        "convert",
        tmp_path / "ckpt.pth",
        tmp_path / "out",
        "--to",
        to,
        "--config",
        tmp_path / "given.json",
    ]
    monkeypatch.setattr(sys, "argv", ["fastddpm", *map(str, words)])
    with contextlib.suppress(SystemExit):
        cli.main()
    assert f"{to} folder" in capsys.readouterr().out
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    assert difference(fastddpm.load(tmp_path / "out").model(x, t), theirs(x, t)) <= NETWORK
    if to == "diffusers":
        pytest.importorskip("diffusers")
        from diffusers import UNet2DModel

        unet = UNet2DModel.from_pretrained(tmp_path / "out", subfolder="unet")
        assert difference(unet(x, t).sample, theirs(x, t)) <= NETWORK


@pytest.mark.parametrize("name", PEERS)
def test_what_tensors_do_not_show_is_asked_for(name):
    state = network(name).state_dict()
    with pytest.raises(CheckpointError, match="config: image_size, schedule not given") as refused:
        fastddpm.load(state)
    assert len(str(refused.value)) < 300
    with pytest.raises(CheckpointError, match="config: 'activation' given; known are"):
        fastddpm.load(state, config={**GIVEN, "activation": "relu"})
    short = {
        key: value
        for key, value in state.items()
        if "conv2.weight" not in key and "block2.3.weight" not in key
    }
    with pytest.raises(CheckpointError, match=r"conv2\.weight has shape none"):
        fastddpm.load(short, config=dict(GIVEN))


def test_networks_without_convolutions_between_levels_are_refused():
    """``resamp_with_conv: False`` takes means instead, which our network has not."""
    state = {key: value for key, value in network("ddim").state_dict().items() if "sample.conv" not in key}
    with pytest.raises(CheckpointError, match="state dict: "):
        fastddpm.load(state, config=dict(GIVEN))


def test_a_table_of_other_times_is_refused():
    state = network("pytorch_ddpm").state_dict()
    with pytest.raises(CheckpointError, match=r"schedule: 20 timesteps given, the 1000 of"):
        fastddpm.load(state, config={"image_size": 8, "schedule": NoiseSchedule.linear(20)})
    name = "time_embedding.timembedding.0.weight"
    with pytest.raises(CheckpointError, match="not the sines and cosines of its code"):
        fastddpm.load({**state, name: state[name] + 0.1}, config=dict(GIVEN))


FOREIGN = {
    "Palette with conv_resample=False": {
        "cond_embed.0.weight": (8, 8),
        "input_blocks.0.0.weight": (8, 6, 3, 3),
        "gammas": (10,),
    },
    "guided-diffusion with conv_resample=False": {
        "time_embed.0.weight": (32, 8),
        "input_blocks.0.0.weight": (8, 3, 3, 3),
    },
    "score_sde_pytorch": {
        "all_modules.0.weight": (8, 8),
        "all_modules.2.weight": (8, 3, 3, 3),
        "sigmas": (9,),
    },
    "EDM": {"model.map_layer0.weight": (8, 8), "model.map_layer1.weight": (8, 8)},
    "classifier-free guidance": {"null_classes_emb": (8,), "classes_emb.weight": (3, 8)},
    "UNet2DConditionModel": {"down_blocks.0.attentions.0.proj_in.weight": (8, 8)},
}


@pytest.mark.parametrize("owner", FOREIGN)
@pytest.mark.parametrize("prefix", ["", "module.", "denoise_fn.module.", "_orig_mod.model."])
def test_networks_that_are_not_read_are_named_with_what_to_do(owner, prefix, tmp_path):
    state = {f"{prefix}{name}": torch.zeros(shape) for name, shape in FOREIGN[owner].items()}
    torch.save({"model": state, "step": 3}, tmp_path / "net.pt")
    for source in (state, tmp_path / "net.pt", [state, 3]):
        with pytest.raises(
            CheckpointError, match=rf"of .*{owner}.*, which is not read here; .*take"
        ) as refused:
            fastddpm.load(source, config=dict(GIVEN))
        assert len(str(refused.value).replace(str(tmp_path), "")) < 300


@pytest.mark.parametrize("module", [b"torch_utils.persistence", b"training.networks"])
def test_pickles_of_edm_are_named(module, tmp_path):
    content = b"\x80\x02c" + module + b"\n_reconstruct_persistent_obj\n)R."
    (tmp_path / "edm-cifar10.pkl").write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"a pickle of EDM or StyleGAN, which holds code; fastddpm\.score"
    ):
        fastddpm.load(tmp_path / "edm-cifar10.pkl")
