"""A cache of the Hub with models of other libraries, as their users have put them there, and with damage."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_cases import add
from huggingface_hub import errors
from networks import make_unet

import fastddpm
from fastddpm import CheckpointError, NoiseSchedule
from fastddpm.cli import app
from fastddpm_bench.peers.guided_unet import UNetModel

COMMIT = "c" * 40
SCHEDULE = NoiseSchedule.linear(20).to_dict()
GUIDED = {"image_size": 8, "num_heads": 2, "rescale_timesteps": False, "schedule": SCHEDULE}


def guided(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return UNetModel().state_dict()


def kept(tmp_path: Path, **more) -> dict:
    return {"cache_dir": tmp_path / "hub", "local_files_only": True, **more}


def same(sampler, other):
    theirs = other.model.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in sampler.model.state_dict().items())


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def test_the_file_of_a_training_script_beside_its_optimiser(source, tmp_path):
    torch.save(guided(0), source / "ema_0.9999_250000.pt")
    for name in ("opt250000.pt", "250000_opt.pth", "optimizer.bin", "README.md"):
        torch.save({"x": torch.zeros(1)}, source / name)
    add(tmp_path / "hub", "lab/guided", source, COMMIT, "refs/pr/1")
    given = kept(tmp_path, config=GUIDED)
    sampler = fastddpm.load("lab/guided@refs/pr/1", **given)
    assert same(sampler, fastddpm.load(source / "ema_0.9999_250000.pt", config=GUIDED))
    assert same(fastddpm.load("lab/guided/ema_0.9999_250000.pt", revision=COMMIT, **given), sampler)
    with pytest.raises(
        CheckpointError, match=r"lab/guided@main: .*of what it has .*, refs/pr/1, or a way to"
    ):
        fastddpm.load("lab/guided@main", **given)


def test_several_files_and_the_command_for_one(source, tmp_path, monkeypatch, capsys):
    (source / "ckpt").mkdir()
    for i in range(2):
        torch.save({"state_dict": guided(i)}, source / "ckpt" / f"epoch={i}.ckpt")
    (tmp_path / "guided.json").write_text(json.dumps(GUIDED))
    add(tmp_path / "hub", "lab/two", source, COMMIT)
    given = kept(tmp_path, config=GUIDED)
    said = r"several models in it \(ckpt/epoch=0\.ckpt, ckpt/epoch=1\.ckpt\); one .*/epoch=0\.ckpt"
    for name in ("lab/two", "lab/two/ckpt"):
        with pytest.raises(CheckpointError, match=f"{name}: {said}"):
            fastddpm.load(name, **given)
    with pytest.raises(
        CheckpointError, match=r"no such file .* of weights there: ckpt/epoch=0\.ckpt, ckpt/ep"
    ):
        fastddpm.load("lab/two/ckpt/epoch=2.ckpt", **given)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["sample", "lab/two/ckpt/epoch=1.ckpt", "--config", tmp_path / "guided.json", "--steps", "2"]
    monkeypatch.setattr(
        sys, "argv", ["fastddpm", *map(str, words), "--seeds", "1", "--out", str(tmp_path / "a.png")]
    )
    with pytest.raises(SystemExit) as end:
        app.main()
    assert (end.value.code, capsys.readouterr().err) == (0, "")


def test_what_a_trainer_of_lucidrains_saved(source, tmp_path):
    lucidrains = pytest.importorskip("denoising_diffusion_pytorch")
    torch.manual_seed(0)
    network = lucidrains.Unet(dim=8, dim_mults=(1, 2), flash_attn=False)
    diffusion = lucidrains.GaussianDiffusion(network, image_size=8, timesteps=30)
    torch.save(
        {"step": 1, "model": diffusion.state_dict(), "opt": {}, "version": "2"}, source / "model-10.pt"
    )
    add(tmp_path / "hub", "lab/flowers", source, COMMIT)
    sampler = fastddpm.load("lab/flowers", **kept(tmp_path, config={"image_size": 8}))
    assert same(sampler, fastddpm.load(source / "model-10.pt", config={"image_size": 8}))


@pytest.fixture
def ours(source, tmp_path):
    """A model folder of two in a repository, and its snapshot in the cache."""
    options = {"method": "ddim", "num_inference_steps": 2, "shape": [3, 8, 8]}
    fastddpm.save_folder(source / "a", make_unet(), NoiseSchedule.linear(20), options)
    shutil.copytree(source / "a", source / "b")
    add(tmp_path / "hub", "lab/ours", source, COMMIT)
    return tmp_path / "hub" / "models--lab--ours" / "snapshots" / COMMIT


def test_weights_that_the_cache_has_not(ours, tmp_path):
    (ours / "a" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lab/ours/a: no weights .* or a way to the Hub, accepted"):
        fastddpm.load("lab/ours/a", **kept(tmp_path))
    assert fastddpm.load("lab/ours", **kept(tmp_path)).shape == (3, 8, 8)  # one model is left


def test_a_link_to_what_is_gone(ours, tmp_path):
    os.unlink(os.path.realpath(ours / "a" / "model.safetensors"))
    with pytest.raises(
        CheckpointError, match=r"a/model\.safetensors in the cache is a link to a file that is gone"
    ):
        fastddpm.load("lab/ours/a", **kept(tmp_path))


def test_files_that_were_not_fetched_and_are_not_needed(ours, tmp_path, monkeypatch):
    """huggingface_hub refuses a snapshot without files that it knows of: diffusers fetches but its own."""
    download = huggingface_hub.snapshot_download

    def incomplete(*given, **options):
        raise errors.IncompleteSnapshotError("a/policy_preprocessor.json", download(*given, **options))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", incomplete)
    assert fastddpm.load("lab/ours/a", **kept(tmp_path)).shape == (3, 8, 8)


def test_names_that_are_no_place_in_a_repository():
    from fastddpm.formats.repository import places

    names = ["../x.pt", "a/../../x.pt", "[ab].pt", "a\nb.pt", "/etc/x.pt", "a/x.pt"]
    assert places(names, "") == ["a/x.pt"]
