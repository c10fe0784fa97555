"""A training that a scheduler ends: saved, code 75, and the same command goes on to the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from train_and_signal import MOMENTS

from fastddpm import load
from fastddpm.training import checkpoints

WORKER = Path(__file__).parents[1] / "train_and_signal.py"
GIVE_AGAIN = 75  # EX_TEMPFAIL
STEPS = {
    "while the data is opened": [],
    "in the third step": [3],
    "in the third step, and to workers": [3],
    "while a checkpoint is written": [4],
    "while the model is written": [4],
    "in a plot": [4],
    "while samples are drawn": [4],
    "after the last step": [4, 8],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which every moment's run was ended, and gone on with."""
    folder = tmp_path_factory.mktemp("signals")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        (folder / "data" / split).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / "data" / split / f"{i}.png")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(folder), str(folder / "data")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def outcomes(folder):
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.parametrize("moment", [name for name in MOMENTS if name != "none"])
def test_a_signal_at_any_moment_saves_and_the_same_command_goes_on(folder, outcomes, moment):
    ended, again = outcomes[moment]
    assert ended["code"] == GIVE_AGAIN, ended
    assert ended["said"].count("\n") == 1, ended
    assert "the same command goes on" in ended["said"]
    assert ended["steps"] == STEPS[moment]
    assert ended["hidden"] == []
    assert (again["code"], again["said"]) == (0, "")
    whole, cut = (checkpoints.read(folder / name, 8)[0] for name in ("none", moment))
    for name, tensors in whole.items():
        assert all(torch.equal(tensor, cut[name][key]) for key, tensor in tensors.items())
    for name in ("model/model.safetensors", "loss.png", "samples/step_00000008.png"):
        assert (folder / moment / name).stat().st_size > 100
    assert load(folder / moment).model.config == load(folder / "none" / "model").model.config


def test_one_while_the_command_starts_says_the_same():
    """Before its handlers are set, in the seconds in which libraries are imported."""
    script = """
import signal, sys, types

class Slow(types.ModuleType):
    @property
    def main(self):
        signal.raise_signal(signal.SIGUSR1)

sys.argv = ["fastddpm", "train"]
import fastddpm.cli
sys.modules["fastddpm.cli.app"] = Slow("app")
fastddpm.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (GIVE_AGAIN, "fastddpm: interrupted\n")
