"""`fastddpm convert` and `fastddpm sample` on checkpoints of other libraries, run as a person runs them."""

from __future__ import annotations

import json
import sys

import goldens
import numpy as np
import pytest
import torch
from networks import make_unet

from fastddpm import NoiseSchedule, UNetConfig, load, save_folder
from fastddpm.cli import app as cli
from fastddpm.formats import writing

GIVEN = {"activation": "silu", "num_groups": 8, "time_scale": 1.0, "image_size": 16}


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command: (exit code, standard output, standard error)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fastddpm", *map(str, words)])
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def pth(tmp_path):
    golden = goldens.abarankab("linear")[0]
    path = tmp_path / "run.pth"
    torch.save({k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")}, path)
    (tmp_path / "given.json").write_text(json.dumps(GIVEN))
    return path


def test_abarankab_becomes_a_folder(run, pth, tmp_path):
    config = tmp_path / "given.json"
    code, out, err = run("convert", pth, tmp_path / "model", "--config", config)
    assert (code, err) == (0, "")
    assert f"{pth} -> {tmp_path / 'model'}: fastddpm folder, " in out
    ours, theirs = load(tmp_path / "model"), load(pth, config=GIVEN)
    state = theirs.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.model.state_dict().items())
    assert ours.schedule == theirs.schedule
    assert {k: v for k, v in ours.options.items() if k != "shape"} == {
        k: v for k, v in theirs.options.items() if k != "shape"
    }
    assert ours.shape == (1, 16, 16)
    run("convert", pth, tmp_path / "raw", "--config", config, "--no-ema")
    assert not torch.equal(load(tmp_path / "raw").model.conv_in.weight, state["conv_in.weight"])


def test_sample_reads_it_too(run, pth, tmp_path):
    run("convert", pth, tmp_path / "model", "--config", tmp_path / "given.json")
    words = ("--seeds", "1-3", "--class", "2", "--out")
    code, _, err = run("sample", tmp_path / "model", *words, tmp_path / "a.npz")
    assert (code, err) == (0, "")
    code, _, err = run("sample", pth, "--config", tmp_path / "given.json", *words, tmp_path / "b.npz")
    assert (code, err) == (0, "")
    assert np.array_equal(np.load(tmp_path / "a.npz")["arr_0"], np.load(tmp_path / "b.npz")["arr_0"])


def test_what_is_missing_is_one_line(run, pth, tmp_path):
    for words in (("convert", pth, tmp_path / "model"), ("sample", pth)):
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert err.startswith("fastddpm: error: --config: ")
        assert "activation, time_scale, image_size, num_groups not given" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "model").exists()
    code, _, err = run("convert", pth, tmp_path / "m", "--config", tmp_path / "none.json")
    assert (code, "none.json' does not exist" in err) == (2, True)
    code, _, err = run("convert", pth, tmp_path / "m", "--to", "onnx", "--config", tmp_path / "given.json")
    assert (code, err.startswith("fastddpm: error: --to")) == (2, True)
    code, _, err = run("convert", pth, tmp_path / "m", "--format", "keras")
    assert (code, err.startswith("fastddpm: error: --format")) == (2, True)


def test_classes_by_bias_do_not_become_a_pipeline(run, pth, tmp_path):
    words = ("convert", pth, tmp_path / "p", "--to", "diffusers", "--config", tmp_path / "given.json")
    code, _, err = run(*words)
    assert code == 2
    assert "class_conditioning: 'bias', which diffusers' UNet2DModel has not, given" in err
    assert not (tmp_path / "p").exists()


def test_to_diffusers_and_back(run, tmp_path):
    config = UNetConfig(in_channels=3, base_channels=8, channel_mults=(1, 2), num_groups=4, time_dim=24)
    options = {"clip_sample_range": 1.0, "shape": [3, 8, 8]}
    save_folder(tmp_path / "ours", make_unet(config), NoiseSchedule.linear(20, 1e-3, 0.2), options)
    code, out, _ = run("convert", tmp_path / "ours", tmp_path / "pipe", "--to", "diffusers")
    assert (code, "diffusers folder" in out) == (0, True)
    assert run("convert", tmp_path / "pipe", tmp_path / "back")[0] == 0
    seeds = {"seeds": [3, 4], "progress": False}
    assert torch.equal(load(tmp_path / "back").sample(**seeds), load(tmp_path / "ours").sample(**seeds))
    assert run("sample", tmp_path / "pipe", "--seeds", "3", "--out", tmp_path / "x.png")[0] == 0


def test_a_full_disk_leaves_what_was_there(run, tmp_path, monkeypatch):
    config = UNetConfig(in_channels=3, base_channels=8, channel_mults=(1, 2), num_groups=4)
    save_folder(tmp_path / "ours", make_unet(config), NoiseSchedule.linear(20), {"shape": [3, 8, 8]})
    run("convert", tmp_path / "ours", tmp_path / "pipe", "--to", "diffusers")
    before = {p: p.read_bytes() for p in (tmp_path / "pipe").rglob("*") if p.is_file()}
    assert len(before) == 4

    def broken(path, tensors, **metadata):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(writing, "write_tensors", broken)
    save_folder(tmp_path / "ours", make_unet(config, seed=1), NoiseSchedule.cosine(20), {"shape": [3, 8, 8]})
    code, _, err = run("convert", tmp_path / "ours", tmp_path / "pipe", "--to", "diffusers")
    assert (code, "no space left" in err) == (2, True)
    assert {p: p.read_bytes() for p in (tmp_path / "pipe").rglob("*") if p.is_file()} == before


def test_super_resolution_converts_and_needs_its_condition(run, tmp_path):
    golden = goldens.sr3("sr3")[0]
    path = tmp_path / "I1_E1_gen.pth"
    torch.save({k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")}, path)
    (tmp_path / "c.json").write_text('{"num_groups": 8, "image_size": 16} // 8 groups')
    assert run("convert", path, tmp_path / "sr", "--config", tmp_path / "c.json")[0] == 0
    code, _, err = run("sample", tmp_path / "sr")
    assert code == 2
    assert "a super-resolution network, which needs an image of 1 channels as its condition" in err
    torch.manual_seed(123)
    images = load(tmp_path / "sr").sample(3, condition=golden["io.cond"], noise="torch", progress=False)
    assert (images - golden["io.sample_seed123_all"]).abs().max() <= 1e-5
    code, _, err = run("convert", path, tmp_path / "p", "--to", "diffusers", "--config", tmp_path / "c.json")
    assert (code, "which diffusers' UNet2DModel has not" in err) == (2, True)
