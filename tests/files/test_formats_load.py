"""`load` on other libraries' checkpoints: the network, schedule and defaults of each, or what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import goldens
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tolerances import GOLDEN_RELATIVE, NETWORK

from fastddpm import CheckpointError, NoiseSchedule, UNet, load
from fastddpm.inputs import without_comments
from fastddpm.unet import abarankab, sr3
from fastddpm_bench.peers import abarankab as peers_abarankab
from fastddpm_bench.peers import sr3 as peers_sr3

GIVEN = {"activation": "silu", "num_groups": 8, "time_scale": 1.0, "image_size": 16}


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    assert value.shape == expected.shape
    return ((value - expected).abs().max() / expected.abs().max()).item()


def state_of(golden) -> dict[str, torch.Tensor]:
    return {k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")}


# ------------------------------------------------------------------ abarankab/DDPM


@pytest.fixture(params=["linear", "cosine"])
def stored(request):
    return goldens.abarankab(request.param)[0]


@pytest.mark.parametrize("as_file", [False, True])
def test_abarankab_samples_as_the_repository_does(stored, tmp_path, as_file):
    source = state_of(stored)
    if as_file:
        torch.save(source, tmp_path / "run-1000-model.pth")
        source = tmp_path / "run-1000-model.pth"
    sampler = load(source, config=GIVEN)
    assert np.array_equal(sampler.schedule.betas.astype(np.float32), stored["state.betas"].numpy())
    torch.manual_seed(123)
    images = sampler.sample(3, class_labels=stored["io.y"], noise="torch", progress=False)
    assert relative(images, stored["io.sample_seed123_ema"]) <= GOLDEN_RELATIVE


def test_abarankab_schedules_are_recognised_to_float64(stored):
    betas = load(state_of(stored), config=GIVEN).schedule.betas
    assert abs(betas - stored["io.betas64"].numpy()).max() < 1e-12


@torch.no_grad()
def test_abarankab_without_ema_and_bare(stored):
    x, t, y = stored["io.x"], stored["io.t"], stored["io.y"]
    model = load(state_of(stored), config=GIVEN, ema=False).model
    assert relative(model(x, t, y), stored["io.eps"]) <= GOLDEN_RELATIVE
    averaged = load(state_of(stored), config=GIVEN).model
    assert relative(averaged(x, t, y), stored["io.eps_ema"]) <= GOLDEN_RELATIVE
    bare = {k.removeprefix("model."): v for k, v in state_of(stored).items() if k.startswith("model.")}
    with pytest.raises(CheckpointError, match=r"config: schedule not given.*a NoiseSchedule, its betas"):
        load(bare, config=GIVEN)
    sampler = load(bare, config={**GIVEN, "schedule": NoiseSchedule.linear(30)})
    assert sampler.schedule == NoiseSchedule.linear(30)
    assert relative(sampler.model(x, t, y), stored["io.eps"]) <= GOLDEN_RELATIVE


@pytest.mark.parametrize("name", GIVEN)
def test_abarankab_asks_for_what_tensors_do_not_show(stored, name):
    given = {k: v for k, v in GIVEN.items() if k != name}
    with pytest.raises(CheckpointError, match=rf'config: {name} not given.*config={{"{name}": ...}}'):
        load(state_of(stored), config=given)


def test_abarankab_names_of_their_arguments(stored):
    theirs = {"activation": "silu", "num_groups": 8, "time_emb_scale": 1.0, "img_size": [16, 16]}
    assert (
        load(state_of(stored), config=theirs).model.config
        == load(state_of(stored), config=GIVEN).model.config
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_channels": 32}, r"config: base_channels=32 given, the tensors show 16"),
        ({"num_groups": 5}, r"config: num_groups: 5 given"),
        ({"activation": "tanh"}, r"config: activation: 'tanh' given"),
        ({"widht": 3}, r"config: 'widht' given; known are activation"),
        ({"image_size": 15}, r"config: initial_pad not given.*15x15"),
        ({"image_size": "16"}, r"config: image_size='16' given"),
        ({"schedule": "linear"}, r"config: schedule='linear' given, not a schedule"),
        ({"schedule": {"name": "exp"}}, r"config: schedule=.*exp"),
    ],
)
def test_abarankab_contradictions_are_named(stored, change, message):
    with pytest.raises(CheckpointError, match=message):
        load(state_of(stored), config={**GIVEN, **change})


def test_what_is_loaded_is_a_copy(stored):
    state = state_of(stored)
    before = {name: value.clone() for name, value in state.items()}
    with torch.no_grad():
        for parameter in load(state, config=GIVEN).model.parameters():
            parameter.zero_()
    assert all(torch.equal(state[name], value) for name, value in before.items())


LIVE = {
    "three channels, padded": {"img_channels": 3, "base_channels": 8, "initial_pad": 2},
    "relu, three levels": {"activation": torch.relu, "channel_mults": (1, 2, 3), "num_res_blocks": 1},
    "mish, scaled time": {"activation": torch.nn.functional.mish, "time_emb_scale": 0.5},
    "classes, attention": {"num_classes": 7, "attention_resolutions": (0, 1)},
    "batch norm": {"norm": "bn"},
    "instance norm": {"norm": "in"},
    "no norm": {"norm": None},
}


@torch.no_grad()
@pytest.mark.parametrize("case", LIVE)
def test_abarankab_live_networks(case):
    torch.manual_seed(1)
    theirs = peers_abarankab.Network(**{"img_channels": 1, "base_channels": 8, **LIVE[case]}).eval()
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            value += 0.1 * torch.rand_like(value)  # variances stay positive
            assert torch.equal(theirs.state_dict()[name], value)
    unet = abarankab.from_module(theirs)
    assert unet is not None
    x, t = torch.randn(3, unet.config.in_channels, 20, 20), torch.tensor([5, 0, 901])
    y = torch.tensor([0, 6, 3]) if theirs.num_classes else None
    assert relative(unet(x, t, y), theirs(x, t, y)) <= NETWORK
    back = abarankab.their_state_dict(unet)
    assert set(back) == set(theirs.state_dict())
    assert all(torch.equal(back[name], value) for name, value in theirs.state_dict().items())
    assert unet.conv_in.weight.data_ptr() == theirs.init_conv.weight.data_ptr()


def test_another_activation_is_not_taken_for_theirs():
    theirs = peers_abarankab.Network(img_channels=1, base_channels=8, activation=torch.tanh)
    assert abarankab.from_module(theirs) is None
    theirs.activation = torch.nn.functional.silu
    # What it says of itself is not what its blocks do.
    assert abarankab.from_module(theirs) is None


# ------------------------------------------------------------------ the SR3 repository


@pytest.fixture(params=["sr3", "ddpm"])
def kind(request):
    return request.param


def configuration(kind, stored, path: Path, **changes) -> Path:
    """Their JSON, with its comments, for a stored network."""
    options = stored["config"]["unet"]
    document = {
        "phase": "train",
        "path": {"log": "https://example.org//logs"},
        "model": {
            "which_model_G": kind,
            "unet": {
                "in_channel": options["in_channel"],
                "out_channel": options["out_channel"],
                "inner_channel": options["inner_channel"],
                "norm_groups": options["norm_groups"],
                "channel_multiplier": options["channel_mults"],
                "attn_res": options["attn_res"],
                "res_blocks": options["res_blocks"],
                "dropout": 0.2,
            },
            "beta_schedule": {
                "train": {"schedule": "quad", "n_timestep": 40, "linear_start": 1e-4, "linear_end": 0.3},
                "val": stored["config"]["schedule"],
            },
            "diffusion": {"image_size": 16, "channels": 1, "conditional": True},
        },
        **changes,
    }
    lines = json.dumps(document, indent=2).splitlines()
    path.write_text("\n".join(f'{line} // note: a {{comment}}, "quoted"' for line in lines))
    return path


@pytest.fixture
def golden(kind):
    tensors, config = goldens.stored(f"sr3repo_{kind}_public")
    return {**tensors, "config": config}


def super_resolved(sampler, golden):
    torch.manual_seed(123)
    return sampler.sample(3, condition=golden["io.cond"], noise="torch", progress=False)


def test_sr3_with_its_configuration(kind, golden, tmp_path):
    torch.save(state_of(golden), tmp_path / "I640000_E37_gen.pth")
    config = configuration(kind, golden, tmp_path / "sr.json")
    for name in ("I640000_E37_gen.pth", "I640000_E37"):
        sampler = load(tmp_path / name, config=config)
        images = super_resolved(sampler, golden)
        assert relative(images, golden["io.sample_seed123_all"]) <= GOLDEN_RELATIVE
    assert sampler.options["time_input"] == ("noise_level" if kind == "sr3" else "timestep")
    faster = sampler.replace(method="ddim", num_inference_steps=5)
    assert faster.sample(1, condition=golden["io.cond"][:1], progress=False).isfinite().all()


def test_sr3_schedules_of_both_phases(kind, golden, tmp_path):
    document = json.loads(without_comments(configuration(kind, golden, tmp_path / "c.json").read_text()))
    options = golden["config"]["schedule"]
    expected = NoiseSchedule.linear(options["n_timestep"], options["linear_start"], options["linear_end"])
    assert load(state_of(golden), config=document).schedule == expected
    train = load(state_of(golden), config={**document, "schedule_phase": "train"}).schedule
    assert train == NoiseSchedule.quad(40, 1e-4, 0.3)


def test_sr3_without_its_configuration(golden):
    given = {"num_groups": 8, "image_size": 16}
    images = super_resolved(load(state_of(golden), config=given), golden)
    # The betas stored are float32: their rounding is passed on by 24 steps.
    assert relative(images, golden["io.sample_seed123_all"]) <= GOLDEN_RELATIVE
    bare = {k.removeprefix("denoise_fn."): v for k, v in state_of(golden).items() if "denoise_fn" in k}
    with pytest.raises(CheckpointError, match=r"config: num_groups, image_size, schedule not given"):
        load(bare)
    sampler = load(bare, config={**given, "schedule": golden["config"]["schedule"]})
    assert relative(super_resolved(sampler, golden), golden["io.sample_seed123_all"]) <= GOLDEN_RELATIVE


def test_sr3_configurations_that_contradict_the_tensors(kind, golden, tmp_path):
    document = json.loads(without_comments(configuration(kind, golden, tmp_path / "c.json").read_text()))
    document["model"]["unet"]["inner_channel"] = 64
    with pytest.raises(CheckpointError, match="base_channels=64 given, the tensors show 16"):
        load(state_of(golden), config=document)
    document["model"]["which_model_G"] = "other"
    with pytest.raises(CheckpointError, match="which_model_G='other' given"):
        load(state_of(golden), config=document)
    with pytest.raises(CheckpointError, match="not a configuration of the SR3 repository"):
        load(state_of(golden), config={"model": {"unet": {}}})


@pytest.mark.parametrize("schedule", ["linear", "quad", "const", "jsd", "warmup10", "cosine"])
def test_sr3_schedules_by_name(schedule):
    from fastddpm.formats.loaded import schedule_of

    given = {"schedule": schedule, "n_timestep": 50, "linear_start": 1e-4, "linear_end": 0.02}
    expected = peers_sr3.betas_of(schedule, 50, 1e-4, 0.02)
    assert abs(schedule_of(given).betas - expected).max() <= 1e-12


@torch.no_grad()
@pytest.mark.parametrize("mults", [(1, 2), (1, 2, 2)])
def test_sr3_live_networks(kind, mults):
    torch.manual_seed(0)
    options = {"channel_mults": mults, "attn_res": (16,), "res_blocks": 2, "dropout": 0.2}
    theirs = peers_sr3.Network(kind, 6, 3, 16, norm_groups=4, **options).train()
    unet = sr3.from_module(theirs)
    assert unet is not None
    assert theirs.training
    theirs.eval()
    x = torch.randn(2, 6, 16, 24)
    level = torch.tensor([[0.3], [0.9]]) if kind == "sr3" else torch.tensor([3, 1999])
    assert relative(unet(x, level.flatten()), theirs(x, level)) <= NETWORK
    assert unet.conv_in.weight.data_ptr() == theirs.downs[0].weight.data_ptr()
    theirs.final_conv.block[1] = torch.nn.Tanh()
    assert sr3.from_module(theirs) is None


def test_comments_go_and_strings_stay():
    text = '{"a": "http://x//y", // "b": 1\n "c": "q\\"//", "d": 2} // end'
    assert json.loads(without_comments(text)) == {"a": "http://x//y", "c": 'q"//', "d": 2}


# ------------------------------------------------------------------ all


def test_our_own_tensors_without_a_folder(tmp_path):
    from networks import TINY, make_unet

    unet = make_unet()
    given = {
        "num_groups": 4,
        "activation": "silu",
        "image_size": 8,
        "null_class": True,
        "schedule": NoiseSchedule.cosine(20).to_dict(),
    }
    save_file(unet.state_dict(), tmp_path / "weights.safetensors")
    for source in (unet.state_dict(), tmp_path / "weights.safetensors"):
        sampler = load(source, config=given)
        assert sampler.model.config == TINY
        assert sampler.schedule == NoiseSchedule.cosine(20)
    with pytest.raises(CheckpointError, match="num_groups, activation, image_size, schedule not given"):
        load(unet.state_dict())


def test_files_that_are_no_state_dicts(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"a.pth: "):
        load(tmp_path / "a.pth")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "b.pth")
    with pytest.raises(
        CheckpointError, match=r"b.pth: a state dict of tensors accepted.*'epoch', 'state_dict'"
    ):
        load(tmp_path / "b.pth")
    torch.save(UNet, tmp_path / "c.pth")  # a class: code
    with pytest.raises(CheckpointError, match=r"c.pth: holds more than tensors"):
        load(tmp_path / "c.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "d.pth")
    with pytest.raises(CheckpointError, match="of none of abarankab, sr3, diffusers, fastddpm"):
        load(tmp_path / "d.pth")
    for wrong in ("sr3", "diffusers", "abarankab", "fastddpm"):
        with pytest.raises(CheckpointError):
            load(tmp_path / "d.pth", format=wrong)
    with pytest.raises(ValueError, match="format"):
        load(tmp_path / "d.pth", format="onnx")


def test_tensors_missing_or_of_another_shape(kind, golden):
    given = {"num_groups": 8, "image_size": 16}
    name = "denoise_fn.ups.1.res_block.block1.block.3.weight"
    state = state_of(golden)
    del state[name]
    with pytest.raises(CheckpointError, match=r"up\.1\.conv1\.weight has shape none"):
        load(state, config=given)
    with pytest.raises(CheckpointError, match=r"up\.1\.conv1\.weight has shape \(3, 3\)"):
        load({**state_of(golden), name: torch.zeros(3, 3)}, config=given)
    with pytest.raises(CheckpointError, match=r"denoise_fn|extra has shape"):
        load({**state_of(golden), "denoise_fn.extra": torch.zeros(3)}, config=given)
