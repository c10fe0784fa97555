"""Model folders: what is written is read back, and what is malformed is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import TINY, make_unet

import fastddpm
from fastddpm import CheckpointError, NoiseSchedule, UNet, load, save_folder

OPTIONS = {"method": "ddim", "num_inference_steps": 5, "clip_sample_range": 1.0, "shape": [3, 8, 8]}


@pytest.fixture
def folder(tmp_path):
    return save_folder(tmp_path / "model", make_unet(), NoiseSchedule.cosine(200), OPTIONS)


def test_round_trip(folder):
    sampler = load(folder)
    assert isinstance(sampler.model, UNet)
    assert sampler.model.config == TINY
    assert sampler.schedule == NoiseSchedule.cosine(200)
    assert not sampler.model.training
    for name, value in make_unet().state_dict().items():
        assert torch.equal(sampler.model.state_dict()[name], value)
    assert (sampler.plan.method, len(sampler.plan), sampler.shape) == ("ddim", 5, (3, 8, 8))
    image = sampler.sample(seeds=[1], class_labels=2, progress=False)
    again = load(folder, method="ddim").sample(seeds=[1], class_labels=2, progress=False)
    assert torch.equal(image, again)


def test_options_replace_the_defaults_of_the_folder(folder):
    sampler = load(folder, method="ddpm", num_inference_steps=7, dtype=torch.bfloat16)
    assert (sampler.plan.method, len(sampler.plan)) == ("ddpm", 7)
    assert sampler.model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="num_inference_steps"):
        load(folder, num_inference_steps=201)


def test_nothing_half_written_and_nothing_left_over(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == ["config.json", "model.safetensors", "sampler.json", "schedule.json"]

    def broken(path, tensors, **metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(fastddpm.model_folder, "write_tensors", broken)
    with pytest.raises(OSError, match="no space left"):
        save_folder(folder, make_unet(seed=1), NoiseSchedule.linear(), OPTIONS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("option", "value"), [("timesteps", np.array([100, 50, 0])), ("sigma_scale", np.float32(0.5))]
)
def test_options_that_json_cannot_hold_change_nothing(folder, tmp_path, option, value):
    before = contents(folder)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(ValueError, match=f"{option}: .* given, a value that JSON can hold accepted"):
            save_folder(target, make_unet(seed=1), NoiseSchedule.linear(), {option: value})
    assert contents(folder) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("renames", range(5))
def test_a_crash_between_two_renames_leaves_no_mixture(folder, tmp_path, monkeypatch, renames):
    """The folder is the old model, the new one, or one that is refused."""
    old = contents(folder)
    new = contents(
        save_folder(tmp_path / "new", make_unet(seed=1), NoiseSchedule.linear(), {"shape": [3, 8, 8]})
    )
    done = []
    rename = Path.replace

    def crashing(self, target):
        if len(done) == renames:
            raise SystemExit("killed")
        done.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", crashing)
    if renames < 4:
        with pytest.raises(SystemExit, match="killed"):
            save_folder(folder, make_unet(seed=1), NoiseSchedule.linear(), {"shape": [3, 8, 8]})
        with pytest.raises(CheckpointError, match=r"config.json: not found"):
            load(folder)
    else:
        save_folder(folder, make_unet(seed=1), NoiseSchedule.linear(), {"shape": [3, 8, 8]})
        assert contents(folder) == new
    assert old != new
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_options_that_could_not_be_read_back_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="num_inference_steps"):
        save_folder(tmp_path / "m", make_unet(), NoiseSchedule.cosine(200), {"num_inference_steps": 201})
    assert not (tmp_path / "m").exists()


def rewrite(folder, file, **changes):
    path = folder / file
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))


MALFORMED = {
    "truncated weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        r"model.safetensors: not a complete safetensors file",
    ),
    "empty weights": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        r"model.safetensors: not a complete safetensors file",
    ),
    "a pickle in place of weights": (
        lambda f: (f / "model.safetensors").write_bytes(pickle.dumps({"a": 1}) * 100),
        r"model.safetensors: not a complete safetensors file",
    ),
    "missing weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"model.safetensors: not found",
    ),
    "missing schedule": (lambda f: (f / "schedule.json").unlink(), r"schedule.json: not found"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), r"config.json: not readable as JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), r"config.json: holds list"),
    "unknown field": (lambda f: rewrite(f, "config.json", depth=3), r"config.json: .*unknown field 'depth'"),
    "other architecture": (
        lambda f: rewrite(f, "config.json", base_channels=16),
        r"model.safetensors: \S+ has shape",
    ),
    "wrong type": (lambda f: rewrite(f, "config.json", base_channels="8"), r"config.json: base_channels"),
    "unknown schedule": (lambda f: rewrite(f, "schedule.json", name="exp"), r"schedule.json: .*exp"),
    "unknown option": (lambda f: rewrite(f, "sampler.json", speed=2), r"sampler.json: .*speed"),
    "bad option": (lambda f: rewrite(f, "sampler.json", method="eular"), r"sampler.json: method: 'eular'"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_folders_are_named(folder, case):
    spoil, message = MALFORMED[case]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_no_such_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere'?: not found; a folder with config.json"):
        load(tmp_path / "nowhere")
