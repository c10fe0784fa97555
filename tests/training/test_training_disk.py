"""`fastddpm train` on a full disk and in folders that cannot be written: what is left, what is said."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastddpm import load
from fastddpm.training import checkpoints

DISK = 2**24

# Checkpoints of 2.9 MB, every 2 steps, the last two and the best kept; a model of 0.7 MB.
SMALL = ["--base-channels", "16", "--mults", "1,2", "--batch", "4", "--steps", "8", "--checkpoint-every", "2"]
ACCEPTED = "a folder that can be made and written accepted"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i}.png")
    return folder


def train(pictures, run, *words, limit=None):
    """The command in a process of its own, no file of which grows beyond ``limit`` bytes."""

    def limited():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "fastddpm", "train", "--data", pictures, "--out", run, *SMALL, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limited,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )


def check_one_line(done, *parts):
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    for part in ("fastddpm: error: --out: ", *parts):
        assert part in done.stderr


def check_whole(run: Path, steps: list[int]):
    """Nothing half written: every checkpoint is readable, every line of the log too, no temporary is left."""
    assert checkpoints.steps(run) == steps
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [f"step_{i:08d}" for i in steps]
    for step in steps:
        tensors, _ = checkpoints.read(run, step)
        assert all(value.isfinite().all() for part in tensors.values() for value in part.values())
    for line in (run / "log.jsonl").read_text().splitlines():
        assert json.loads(line)["loss"] > 0
    for picture in run.rglob("*.png"):
        Image.open(picture).load()
    assert list(run.rglob(".*")) == []


def test_a_full_disk_leaves_the_last_checkpoint_and_the_same_command_goes_on(pictures, small_disk):
    run = small_disk / "run"
    # Room for one checkpoint beside this, not for two.
    (small_disk / "ballast").write_bytes(bytes(12_400_000))
    done = train(pictures, run)
    check_one_line(done, str(run), "No space left on device", "step 2 is saved", "make space there")
    check_whole(run, [2])
    weights = (run / "checkpoints" / "step_00000002" / "ema.safetensors").read_bytes()
    again = train(pictures, run)
    check_one_line(again, "step 2 is saved", "goes on from there")
    check_whole(run, [2])
    assert (run / "checkpoints" / "step_00000002" / "ema.safetensors").read_bytes() == weights

    (small_disk / "ballast").unlink()
    done = train(pictures, run)
    assert (done.returncode, done.stderr) == (0, "")
    check_whole(run, checkpoints.steps(run))
    assert checkpoints.steps(run)[-2:] == [6, 8]
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").open()] == [2, 4, 6, 8]
    assert load(run / "model").model.config.base_channels == 16


def test_files_that_may_not_grow_are_a_full_disk_too(pictures, tmp_path):
    """The same without a right to mount: the operating system refuses files of more than 100 kB."""
    run = tmp_path / "run"
    done = train(pictures, run, limit=100_000)
    check_one_line(done, str(run), "File too large", "nothing is saved yet", "make space", "begins anew")
    check_whole(run, [])
    assert train(pictures, run, "--steps", "2").returncode == 0
    check_whole(run, [2])


def test_a_model_folder_that_does_not_fit_is_written_by_the_same_command(pictures, tmp_path):
    """All steps are done and saved then: the command has only the model left to write."""
    run = tmp_path / "run"
    words = ["--steps", "2"]
    assert train(pictures, run, *words).returncode == 0
    expected = (run / "model" / "model.safetensors").read_bytes()
    for path in (run / "model").iterdir():
        path.unlink()
    done = train(pictures, run, *words, limit=100_000)
    check_one_line(done, "File too large", "step 2 is saved", "goes on from there")
    assert list((run / "model").iterdir()) == []
    assert train(pictures, run, *words).returncode == 0
    assert (run / "model" / "model.safetensors").read_bytes() == expected


def test_a_folder_that_cannot_be_written(pictures, readonly_folder):
    for run in (readonly_folder / "run", readonly_folder):
        check_one_line(train(pictures, run), f"'{run}' given, {ACCEPTED}")
    assert list(readonly_folder.iterdir()) == []


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_no_folder(pictures, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    run = file / below if below else file
    check_one_line(train(pictures, run), f"'{run}' given, {ACCEPTED}")
    assert file.read_text() == "mine"
