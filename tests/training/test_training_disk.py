"""`fastddpm train` on a full disk and in folders that cannot be written: what is left, what is said."""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def limited(size):
    """No file of this process grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def train(run, pictures, one_drawn, monkeypatch):
    """The command: its exit code, its output and what it says of an error."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # those files would be cut, too
    return lambda folder, *words: run("train", "--data", pictures, "--out", folder, *SMALL, *words)


def check_one_line(ended, *parts):
    code, out, err = ended
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    for part in ("fastddpm: error: --out: ", *parts):
        assert part in err


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


def test_a_full_disk_leaves_the_last_checkpoint_and_the_same_command_goes_on(train, small_disk):
    run = small_disk / "run"
    # Room for one checkpoint beside this, not for two.
    (small_disk / "ballast").write_bytes(bytes(12_400_000))
    check_one_line(train(run), str(run), "No space left on device", "step 2 is saved", "make space there")
    check_whole(run, [2])
    weights = (run / "checkpoints" / "step_00000002" / "ema.safetensors").read_bytes()
    check_one_line(train(run), "step 2 is saved", "goes on from there")
    check_whole(run, [2])
    assert (run / "checkpoints" / "step_00000002" / "ema.safetensors").read_bytes() == weights

    (small_disk / "ballast").unlink()
    code, _, err = train(run)
    assert (code, err) == (0, "")
    check_whole(run, checkpoints.steps(run))
    assert checkpoints.steps(run)[-2:] == [6, 8]
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").open()] == [2, 4, 6, 8]
    assert load(run / "model").model.config.base_channels == 16


def test_files_that_may_not_grow_are_a_full_disk_too(train, pictures, tmp_path):
    """The same without a right to mount: the operating system refuses files of more than 100 kB.

    In a process of its own, which ends in silence afterwards.
    """
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "fastddpm", "train", "--data", pictures, "--out", run, *SMALL],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    ended = done.returncode, done.stdout, done.stderr
    check_one_line(ended, str(run), "File too large", "nothing is saved yet", "make space", "begins anew")
    check_whole(run, [])
    assert train(run, "--steps", "2")[0] == 0
    check_whole(run, [2])


def test_a_model_folder_that_does_not_fit_is_written_by_the_same_command(train, tmp_path):
    """All steps are done and saved then: the command has only the model left to write."""
    run = tmp_path / "run"
    words = ["--steps", "2"]
    assert train(run, *words)[0] == 0
    expected = (run / "model" / "model.safetensors").read_bytes()
    for path in (run / "model").iterdir():
        path.unlink()
    with limited(100_000):
        ended = train(run, *words)
    check_one_line(ended, "File too large", "step 2 is saved", "goes on from there")
    assert list((run / "model").iterdir()) == []
    assert train(run, *words)[0] == 0
    assert (run / "model" / "model.safetensors").read_bytes() == expected


def test_a_folder_that_cannot_be_written(train, readonly_folder):
    for run in (readonly_folder / "run", readonly_folder):
        check_one_line(train(run), f"'{run}' given, {ACCEPTED}")
    assert list(readonly_folder.iterdir()) == []


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_no_folder(train, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    run = file / below if below else file
    check_one_line(train(run), f"'{run}' given, {ACCEPTED}")
    assert file.read_text() == "mine"
