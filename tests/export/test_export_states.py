"""Exports of networks of vectors, sound and volumes: ONNX Runtime against PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tolerances import OF_FEW_STEPS
from torch import nn

import fastddpm
from fastddpm import NoiseSchedule, Sampler
from fastddpm.cli import app as cli
from fastddpm.jobs import Job, OnnxDrawer
from fastddpm.onnx import OnnxSampler

SEEDS = [3, 2**40 + 1, 8]
SHAPES = {"vector": (6,), "sound": (2, 9), "volume": (1, 2, 3, 4)}


class Net(nn.Module):
    """Of any of these, behind a condition of one channel, for classes and a null label."""

    def __init__(self, shape, channels=0):
        super().__init__()
        torch.manual_seed(0)
        layer = [nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d][len(shape) - 1]
        size = {} if layer is nn.Linear else {"kernel_size": 3, "padding": 1}
        self.layer = layer(shape[0] + channels, shape[0], **size)
        self.label = nn.Embedding(4, 1)
        self.axes = (1,) * len(shape)

    def forward(self, x, t, class_labels):
        shift = self.label(class_labels)[:, 0] + t.to(x.dtype) / 50
        return torch.tanh(self.layer(x)) + shift.reshape(-1, *self.axes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    made = {}
    for name, shape in SHAPES.items():
        channels = 1 if name == "volume" else 0
        options = {"num_inference_steps": 5, "clip_sample_range": 1.0, "timestep_spacing": "trailing"}
        schedule = NoiseSchedule.linear(50, 1e-3, 0.2)
        sampler = Sampler(Net(shape, channels), schedule, shape=shape, null_label=3, **options)
        folder = tmp_path_factory.mktemp("export") / name
        made[name] = (
            sampler,
            fastddpm.export_onnx(sampler, folder, num_classes=3, condition_channels=channels),
        )
    return made


@pytest.mark.parametrize("loop", ["file", "steps"])
@pytest.mark.parametrize("name", SHAPES)
def test_an_export_draws_what_its_sampler_draws(exported, name, loop):
    sampler, folder = exported[name]
    shape = SHAPES[name]
    given = {"seeds": SEEDS, "class_labels": [1, 0, 2], "guidance_scale": 2.0, "progress": False}
    condition = None
    if name == "volume":
        condition = np.linspace(-1, 1, 3 * 24, dtype=np.float32).reshape(3, 1, *shape[1:])
    wanted = sampler.sample(condition=None if condition is None else torch.tensor(condition), **given)
    opened = OnnxSampler(folder, "cpu", loop=loop)
    assert opened.image_shape == shape
    drawn = opened.sample(condition=condition, max_batch=2, **given)
    assert drawn.shape == (3, *shape)
    assert np.abs(drawn - wanted.numpy()).max() <= OF_FEW_STEPS
    solved = {"method": "dpmpp_3m", "num_inference_steps": 4}
    wanted = sampler.replace(**solved).sample(
        condition=None if condition is None else torch.tensor(condition), **given
    )
    found = opened.sample(condition=condition, **solved, **given)
    assert np.abs(found - wanted.numpy()).max() <= OF_FEW_STEPS * max(1.0, float(wanted.abs().max()))
    with pytest.raises(ValueError, match=r"output: 'uint8' for states of shape .* no images, given, float"):
        opened.sample(condition=condition, output="uint8", **given)


def test_what_the_folder_says_runs(exported):
    _, folder = exported["sound"]
    about = json.loads((folder / "export.json").read_text())
    assert about["image_shape"] == [2, 9]
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout.split() == ["(4,", "2,", "9)"]


def test_a_job_writes_the_states_of_an_export(exported, tmp_path):
    sampler, folder = exported["vector"]
    job = Job(OnnxDrawer(folder, "cpu"), SEEDS, tmp_path / "a", class_labels=1, batch_size=2, shard_size=4)
    job.run(progress=False)
    wanted = sampler.sample(seeds=SEEDS, class_labels=1, progress=False).numpy()
    drawn = np.load(tmp_path / "a" / "00000.npz")["arr_0"]
    assert drawn.dtype == np.float32
    assert np.abs(drawn - wanted).max() <= OF_FEW_STEPS


def test_the_command_line_makes_no_pictures_of_them(exported, tmp_path, monkeypatch, capsys):
    _, folder = exported["vector"]
    words = ["sample", str(folder), "--backend", "onnx", "--device", "cpu", "--class", "1"]
    monkeypatch.setattr(sys, "argv", ["fastddpm", *words, "--out", str(tmp_path / "a.png")])
    with pytest.raises(SystemExit, match="2"):
        sys.exit(cli.main())
    assert "whose states of shape (6,) are no images" in capsys.readouterr().err
