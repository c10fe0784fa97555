"""What training scripts save: the network under their keys and prefixes, and the average where asked for.

The right weights are those of the network that was wrapped, and its output is what it gave before.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import TINY, make_unet
from safetensors.torch import save_file
from torch import nn

import fastddpm
from fastddpm import CheckpointError, NoiseSchedule
from fastddpm.cli import app as cli
from fastddpm.formats.registry import FORMATS
from fastddpm.formats.wrapped import networks
from fastddpm_bench.peers import abarankab as peers_abarankab
from fastddpm_bench.peers import sr3 as peers_sr3

GIVEN = {
    "num_groups": 4,
    "activation": "silu",
    "image_size": 8,
    "null_class": True,
    "schedule": NoiseSchedule.linear(20),
}
PREFIXES = (
    "module.",
    "_orig_mod.",
    "_forward_module.",
    "_fsdp_wrapped_module.",
    "model.",
    "net.",
    "unet.",
    "denoise_fn.",
    "diffusion.",
)


@pytest.fixture(scope="module")
def net():
    return make_unet()


@pytest.fixture(scope="module")
def state(net):
    return net.state_dict()


@pytest.fixture(scope="module")
def average(state):
    return {name: value + 0.25 for name, value in state.items()}


def loaded(source, **options):
    return fastddpm.load(source, config=dict(GIVEN), **options).model.state_dict()


def is_same(got, expected) -> bool:
    return got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


def under(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


# ------------------------------------------------------------------ prefixes


ORDERS = [order for length in (1, 2, 3) for order in itertools.permutations(PREFIXES, length)]


def test_prefixes_in_every_order_and_nesting(state):
    assert len(ORDERS) == 9 + 72 + 504
    for order in ORDERS:
        (found,) = networks({"state_dict": under(state, "".join(order))}, FORMATS)
        assert is_same(found.state, state), order
        assert (found.format, found.is_average) == ("fastddpm", False)


@pytest.mark.parametrize(
    "prefix", ["".join(order) for order in ORDERS[:9]] + ["unet.module._orig_mod.net.module."]
)
def test_prefixes_of_what_is_loaded(state, prefix):
    assert is_same(loaded(under(state, prefix)), state)


@pytest.mark.parametrize(
    "inner", ["_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"]
)
def test_wrappers_in_the_middle_of_names(state, inner):
    def wrapped(name):
        parts = name.split(".")
        return ".".join([*parts[:2], inner, *parts[2:]]) if parts[0] in ("down", "up") else name

    changed = {f"model.{wrapped(name)}": value for name, value in state.items()}
    assert changed.keys() != under(state, "model.").keys()
    assert is_same(loaded(changed), state)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "attribute": lambda net: nn.ModuleDict({"denoiser": net}),
}


@pytest.mark.parametrize("order", list(itertools.permutations(WRAPPERS, 2)), ids="-".join)
def test_state_dicts_of_real_wrappers(net, state, tmp_path, order):
    wrapped = net
    for name in order:
        wrapped = WRAPPERS[name](wrapped)
    torch.save(wrapped.state_dict(), tmp_path / "net.pth")
    assert is_same(loaded(tmp_path / "net.pth"), state)
    save_file(
        {name: value.clone() for name, value in wrapped.state_dict().items()}, tmp_path / "net.safetensors"
    )
    assert is_same(loaded(tmp_path / "net.safetensors"), state)


def test_two_names_that_become_one_are_kept_apart(state, average):
    both = {**under(state, "model."), **under(average, "model._orig_mod.")}
    with pytest.raises(CheckpointError, match=r"several networks: model, model\._orig_mod;"):
        loaded(both)
    assert is_same(fastddpm.load(both, config={**GIVEN, "weights": "model"}).model.state_dict(), state)


# ------------------------------------------------------------------ keys


def optimizer(net):
    trained = make_unet()
    optimizer = torch.optim.Adam(trained.parameters())
    for parameter in trained.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


KEYS = (
    "model",
    "state_dict",
    "model_state_dict",
    "net",
    "unet",
    "network",
    "generator",
    "model_0",
    "weights",
)
AVERAGES = (
    "ema",
    "ema_model",
    "model_ema",
    "ema_state_dict",
    "netEMA",
    "ema_0.9999",
    "averaged_model",
    "swa_model",
)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_files_of_trainers(net, state, tmp_path, key, prefix):
    document = {
        "epoch": 3,
        key: OrderedDict(under(state, prefix)),
        "optimizer": optimizer(net),
        "scheduler": {"last_epoch": 3, "base_lrs": [1e-4]},
        "rng": torch.get_rng_state(),
        "loss": 0.1,
        7: "a number as a key",
    }
    torch.save(document, tmp_path / "ckpt.pt")
    assert is_same(loaded(tmp_path / "ckpt.pt"), state)
    assert is_same(loaded({"checkpoint": [document]}), state)


@pytest.mark.parametrize("key", AVERAGES)
@pytest.mark.parametrize("inner", [(), ("shadow",), ("model",), ("module", "state_dict")])
def test_averages_beside_the_network(net, state, average, tmp_path, key, inner):
    nested = under(average, "module.")
    for name in reversed(inner):
        nested = {name: nested, "decay": 0.99}
    torch.save({"model": state, key: nested, "optimizer": optimizer(net), "step": 5}, tmp_path / "ckpt.pt")
    assert is_same(loaded(tmp_path / "ckpt.pt"), average)
    assert is_same(loaded(tmp_path / "ckpt.pt", ema=False), state)
    assert is_same(loaded({key: nested}, ema=False), average)  # there is nothing else


def test_lightning(net, state, average, tmp_path):
    weights = {**under(state, "model."), **under(average, "ema_model."), "loss.scale.weight": torch.ones(3)}
    document = {
        "state_dict": weights,
        "global_step": 9,
        "pytorch-lightning_version": "2.4",
        "optimizer_states": [optimizer(net)],
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.1)}},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "hyper_parameters": {"lr": 1e-4, "args": argparse.Namespace(dim=64, root=Path("data"))},
    }
    torch.save(document, tmp_path / "last.ckpt")
    assert is_same(loaded(tmp_path / "last.ckpt"), average)
    assert is_same(loaded(tmp_path / "last.ckpt", ema=False), state)


def test_averages_of_ema_pytorch(net, state):
    ema = pytest.importorskip("ema_pytorch").EMA(make_unet())
    for parameter in ema.ema_model.parameters():
        parameter.data += 0.5
    expected = {name: value.clone() for name, value in ema.ema_model.state_dict().items()}
    for document in ({"model": state, "ema": ema.state_dict()}, {"ema": ema.state_dict()}, ema.state_dict()):
        assert is_same(loaded(document), expected)
        assert is_same(loaded(document, ema=False), state)


def test_averages_that_are_lists(net, state):
    diffusers = pytest.importorskip("diffusers.training_utils")
    average = diffusers.EMAModel(net.parameters())
    average.shadow_params = [value + 0.5 for value in average.shadow_params]
    expected = dict(zip(dict(net.named_parameters()), average.shadow_params, strict=True))
    document = {"model": state, "ema": average.state_dict()}
    assert is_same(loaded(document), expected)
    assert is_same(loaded(document, ema=False), state)
    document["ema"]["shadow_params"] = document["ema"]["shadow_params"][1:]
    with pytest.raises(CheckpointError, match=r"an average of \d+ tensors in it.*ema=False"):
        loaded(document)


def test_an_average_of_parameters_takes_buffers_from_the_network():
    theirs = peers_abarankab.Network(img_channels=1, base_channels=8, norm="bn").eval()
    buffers = {name for name, _ in theirs.named_buffers()}
    assert buffers
    state = theirs.state_dict()
    average = {name: value + 0.01 for name, value in state.items() if name not in buffers}
    given = {"activation": "silu", "time_scale": 1.0, "image_size": 8, "schedule": NoiseSchedule.linear(9)}
    model = fastddpm.load({"model": state, "ema": {"shadow": average}}, config=given).model
    theirs.load_state_dict({**state, **average})
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        assert float((model(x, t) - theirs(x, t)).abs().max()) <= 1e-5


def test_a_list_holds_the_network_and_then_its_average(net, state, average):
    saved = [under(state, "module."), optimizer(net), 3, 100, average]
    assert is_same(loaded(saved), average)
    assert is_same(loaded(saved, ema=False), state)
    assert is_same(loaded(saved[:4]), state)


# ------------------------------------------------------------------ whole diffusion objects


def whole_objects():
    betas = peers_abarankab.linear_betas(9)
    theirs = peers_abarankab.Diffusion(peers_abarankab.Network(1, 8), (8, 8), 1, betas)
    for parameter in theirs.ema_model.parameters():
        parameter.data += 0.01
    given = {"activation": "silu", "time_scale": 1.0, "num_groups": 4, "image_size": 8}
    yield "abarankab", theirs, theirs.ema_model, given
    sr3 = peers_sr3.Diffusion(peers_sr3.Network("ddpm", 1, 1, 8, norm_groups=4), 8, 1, conditional=False)
    sr3.set_betas(betas)
    yield "sr3", sr3, sr3.denoise_fn, {"num_groups": 4, "image_size": 8}


@pytest.mark.parametrize(
    "prefix", ["", "module.", "diffusion.", "netG.module._orig_mod.", "model.", "net.unet."]
)
@pytest.mark.parametrize("case", list(whole_objects()), ids=lambda case: case[0])
def test_the_betas_of_the_object_around_the_network(case, prefix):
    _, whole, network, given = case
    sampler = fastddpm.load({"state_dict": under(whole.state_dict(), prefix)}, config=given)
    assert np.allclose(sampler.schedule.betas, whole.betas.double().numpy(), rtol=1e-6)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 7])
    with torch.no_grad():
        assert float((sampler.model(x, t) - network.eval()(x, t)).abs().max()) <= 1e-5


# ------------------------------------------------------------------ choosing


def test_several_networks_are_listed(net, state, average, tmp_path, monkeypatch, capsys):
    rates = {"ema_0.99": average, "ema_0.9999": {name: value + 1 for name, value in state.items()}}
    with pytest.raises(CheckpointError) as refused:
        loaded({"model": state, **rates})
    message = str(refused.value)
    assert "several networks: ema_0.99, ema_0.9999" in message
    assert message.startswith("config: weights not given")
    assert len(message) < 300
    assert is_same(loaded({"model": state, **rates}, ema=False), state)
    for key, weights in rates.items():
        given = {**GIVEN, "weights": key}
        assert is_same(fastddpm.load({"model": state, **rates}, config=given).model.state_dict(), weights)
    with pytest.raises(
        CheckpointError, match=r"config: weights='ema' given, one of model, ema_0.99, ema_0.9999"
    ):
        fastddpm.load({"model": state, **rates}, config={**GIVEN, "weights": "ema"})
    many = {f"a_rather_long_name_of_a_network_{i}": under(state, "a.") for i in range(30)}
    many = {key: {name: value + i for name, value in many[key].items()} for i, key in enumerate(many)}
    with pytest.raises(CheckpointError) as refused:
        loaded(many)
    assert len(str(refused.value)) < 300
    with pytest.raises(CheckpointError, match="more than 32 networks"):
        loaded(
            {
                **many,
                "more": list(many.values())[:3],
                "other": {"x": many},
                "b": [dict(s) for s in many.values()],
            }
        )


def test_the_same_network_twice_is_one(state):
    copy = {name: value.clone() for name, value in state.items()}
    assert is_same(loaded({"model": state, "last": copy, "best": state}), state)
    copy["conv_in.bias"] += 1
    with pytest.raises(CheckpointError, match=r"several networks: model, last"):
        loaded({"model": state, "last": copy, "best": state})


def test_convert_takes_the_average_or_the_network(net, state, average, tmp_path, monkeypatch, capsys):
    torch.save(
        {"model": under(state, "module."), "ema": {"shadow": average}, "step": 5}, tmp_path / "ckpt.pt"
    )
    given = {**GIVEN, "schedule": NoiseSchedule.linear(20).to_dict()}
    (tmp_path / "given.json").write_text(json.dumps(given))
    for words, expected in (((), average), (("--no-ema",), state)):
        folder = tmp_path / f"out{len(words)}"
        command = [
            "fastddpm",
            "convert",
            tmp_path / "ckpt.pt",
            folder,
            "--config",
            tmp_path / "given.json",
            *words,
        ]
        monkeypatch.setattr(sys, "argv", [str(word) for word in command])
        with contextlib.suppress(SystemExit):
            cli.main()
        capsys.readouterr()
        assert is_same(fastddpm.load(folder).model.state_dict(), expected)


# ------------------------------------------------------------------ folders


def test_folders_of_accelerate(net, state, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    ema_pytorch = pytest.importorskip("ema_pytorch")
    accelerator = accelerate.Accelerator(cpu=True)
    trained = make_unet()
    accelerator.prepare(trained, torch.optim.Adam(trained.parameters()))
    accelerator.save_state(tmp_path / "plain")
    assert is_same(loaded(tmp_path / "plain"), state)
    accelerator.save_state(tmp_path / "bin", safe_serialization=False)
    assert is_same(loaded(tmp_path / "bin"), state)
    ema = ema_pytorch.EMA(trained, include_online_model=False)
    for parameter in ema.ema_model.parameters():
        parameter.data += 0.5
    accelerator.register_for_checkpointing(ema)
    accelerator.save_state(tmp_path / "ema")
    assert is_same(loaded(tmp_path / "ema"), ema.ema_model.state_dict())
    assert is_same(loaded(tmp_path / "ema", ema=False), state)


@pytest.mark.parametrize("safe", [True, False])
def test_sharded_models_of_accelerate(net, state, tmp_path, safe):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.save_model(net, tmp_path / "model", max_shard_size="20KB", safe_serialization=safe)
    assert len(list((tmp_path / "model").iterdir())) > 3
    assert is_same(loaded(tmp_path / "model"), state)


class LitEma(nn.Module):
    """Of CompVis's latent-diffusion, ldm/modules/ema.py, as far as what it saves."""

    def __init__(self, model):
        super().__init__()
        self.register_buffer("decay", torch.tensor(0.9999))
        self.register_buffer("num_updates", torch.tensor(7, dtype=torch.int))
        for name, parameter in model.named_parameters():
            self.register_buffer(name.replace(".", ""), parameter.detach() + 0.5)


@pytest.mark.parametrize("outer", ["model", ""])
def test_averages_whose_names_have_no_dots(net, state, tmp_path, outer):
    """Around the network as it is, or around what holds it as ``diffusion_model``."""
    holder = nn.Module()
    holder.diffusion_model = net
    module = nn.Module()
    module.model = holder
    module.model_ema = LitEma(holder if outer else net)
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, tmp_path / "last.ckpt")
    average = {
        name: value + 0.5 if name in dict(net.named_parameters()) else value for name, value in state.items()
    }
    assert is_same(loaded(tmp_path / "last.ckpt"), average)
    assert is_same(loaded(tmp_path / "last.ckpt", ema=False), state)


def test_folders_of_a_training_script_of_diffusers(tmp_path):
    from fastddpm.formats.writing import save_pipeline

    config = fastddpm.UNetConfig(in_channels=3, base_channels=8, channel_mults=(1, 2), num_groups=4)
    nets = {"unet": make_unet(config), "unet_ema": make_unet(config, seed=1)}
    for name, net in nets.items():
        save_pipeline(tmp_path / name, net, NoiseSchedule.linear(20), {"shape": [3, 8, 8]})
        (tmp_path / name / "unet").rename(tmp_path / "part")
        for path in (tmp_path / name).rglob("*"):
            if path.is_file():
                path.unlink()
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "part").rename(tmp_path / "run" / name)
    given = {"schedule": NoiseSchedule.linear(20)}
    assert is_same(
        fastddpm.load(tmp_path / "run", config=given).model.state_dict(), nets["unet_ema"].state_dict()
    )
    raw = fastddpm.load(tmp_path / "run", config=given, ema=False)
    assert is_same(raw.model.state_dict(), nets["unet"].state_dict())


# ------------------------------------------------------------------ safety


class Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


class Setting:
    """A class of the training script's, with a state that is set by code of its own."""

    def __init__(self) -> None:
        self.value = 3

    def __setstate__(self, state):
        raise RuntimeError("this is code")


def test_objects_among_the_tensors_are_not_made(state, tmp_path):
    marker = tmp_path / "marker"
    document = {"model": state, "a": Exploit(marker), "b": Setting(), "c": np.float64(0.5), "d": np.ones(3)}
    torch.save(document, tmp_path / "ckpt.pt")
    assert is_same(loaded(tmp_path / "ckpt.pt"), state)
    assert not marker.exists()
    with pytest.raises(RuntimeError, match="this is code"):
        torch.load(tmp_path / "ckpt.pt", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("name", ["os.system", "posix.system", "sys.exit", "nt.system"])
def test_what_torch_blocks_stays_blocked(tmp_path, name):
    module, function = name.split(".")

    class Call:
        def __reduce__(self):
            return (eval, ("1",))

    torch.save({"model": {"a.weight": torch.ones(2)}, "call": Call()}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            for builtin in (b"c__builtin__\neval\n", b"cbuiltins\neval\n"):
                content = content.replace(builtin, f"c{module}\n{function}\n".encode())
            new.writestr(entry.filename, content)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        loaded(tmp_path / "b.pth")


def test_whole_modules_are_refused_with_what_to_save(net, tmp_path):
    torch.save(net, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"holds more than tensors.*torch\.save\(network\.state_dict"):
        loaded(tmp_path / "net.pth")
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps({"model": Setting()}))
    with pytest.raises(CheckpointError, match=r"raw\.pkl: "):
        loaded(tmp_path / "raw.pkl")


def test_documents_without_end(state):
    loop: list = []
    loop.extend([loop] * 64)
    deep: dict = {}
    for _ in range(2000):
        deep = {"a": deep}
    assert is_same(loaded({"loop": loop, "deep": deep, "model": state}), state)
    for nothing in (loop, deep, [], {}, {"a": 3}, [1, 2]):
        with pytest.raises(CheckpointError, match="a state dict of tensors accepted; it has the entries"):
            loaded(nothing)


def test_what_is_loaded_from_a_nested_document_is_a_copy(state):
    document = {"model": under({name: value.clone() for name, value in state.items()}, "module.")}
    with torch.no_grad():
        for parameter in fastddpm.load(document, config=dict(GIVEN)).model.parameters():
            parameter.zero_()
    assert is_same({name.removeprefix("module."): value for name, value in document["model"].items()}, state)


def test_the_name_in_the_file_is_the_one_in_the_error(state):
    broken = {name: value.clone() for name, value in under(state, "model._orig_mod.").items()}
    broken["model._orig_mod.conv_out.bias"][0] = float("nan")
    with pytest.raises(CheckpointError, match=r"model\._orig_mod\.conv_out\.bias holds NaN"):
        loaded({"state_dict": broken})
    assert TINY.num_groups == GIVEN["num_groups"]


@pytest.mark.parametrize("kept", [("model.safetensors",), ("model.safetensors", "schedule.json")])
def test_what_is_left_of_a_model_folder_is_no_folder_of_accelerate(net, tmp_path, kept):
    folder = fastddpm.save_folder(tmp_path / "m", net, NoiseSchedule.linear(20), {"shape": [3, 8, 8]})
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: not found"):
        fastddpm.load(folder)


def test_a_folder_with_a_configuration_is_none_of_accelerate(state, tmp_path):
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "model.safetensors")
    assert is_same(loaded(tmp_path), state)
    (tmp_path / "config.json").write_text('{"architectures": ["Another"]}')
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        fastddpm.load(tmp_path, config={"image_size": 8})
