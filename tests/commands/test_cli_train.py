"""`fastddpm train`: from pictures in a folder to samples, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time

import datasets
import numpy as np
import pytest
from PIL import Image

from fastddpm import load

pytestmark = pytest.mark.usefixtures("one_drawn")

SMALL = ["--base-channels", "8", "--mults", "1,2", "--steps", "6", "--batch", "4", "--checkpoint-every", "3"]


@pytest.fixture
def pictures(tmp_path):
    """Two classes of coloured noise, eight pictures of 8x8 each."""
    random = np.random.default_rng(0)
    for name in ("blue", "red"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def test_pictures_become_a_model_that_samples(run, pictures, tmp_path):
    folder = tmp_path / "run"
    code, out, err = run("train", "--data", pictures, "--out", folder, *SMALL)
    assert (code, err) == (0, "")
    assert f"fastddpm sample {folder / 'model'}" in out
    model = load(folder / "model")
    assert model.plan.prediction_type == "v_prediction"  # as docs/training.md measured to be the best
    assert model.schedule.to_dict()["name"] == "cosine"
    assert model.class_names == ("blue", "red")
    assert model.model.config.num_classes == 2
    assert run("sample", folder / "model", "--steps", "2", "--out", tmp_path / "s.png")[0] == 0
    # The same command has nothing left to do; another is refused.
    log = (folder / "log.jsonl").read_text()
    assert run("train", "--data", pictures, "--out", folder, *SMALL, "--prediction", "v_prediction")[0] == 0
    assert (folder / "log.jsonl").read_text() == log
    code, _, err = run("train", "--data", pictures, "--out", folder, *SMALL, "--prediction", "epsilon")
    assert code == 2
    assert "began with 'v_prediction'" in err


def test_the_digits_train_with_a_validation_loss(run, tmp_path):
    assert (
        run("train", "--out", tmp_path, *SMALL, "--checkpoint-every", "6", "--loss", "l1", "--shift", "1")[0]
        == 0
    )
    (last,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert last["step"] == 6
    assert 0 < last["validation_loss"] < 5


def test_ctrl_c_saves_and_the_same_command_goes_on(popen, pictures, tmp_path):
    words = ["train", "--data", str(pictures), "--out", str(tmp_path / "run"), *SMALL]
    words[words.index("--steps") + 1] = "100000"
    command = [sys.executable, "-m", "fastddpm", *words]
    process = popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.time() + 120
    while not list((tmp_path / "run").glob("checkpoints/step_*")) and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same command goes on from there" in err
    assert "Traceback" not in err


BAD = {
    "no steps": (["--steps", "0"], "--steps: 0 given"),
    "batch that does not divide": (["--accumulate", "3"], "--batch: 4 given, a multiple of 3"),
    "unknown loss": (["--loss", "l3"], "--loss: 'l3' given, one of"),
    "unknown schedule": (["--schedule", "exp"], "--schedule: 'exp' given, one of linear"),
    "levels that do not fit": (["--mults", "1,1,1,1,1"], "multiples of 16 by a network"),
    "no such data": (["--data", "/nowhere"], "--data: '/nowhere', which is not there, given"),
    "decay of 1": (["--ema", "1"], "--ema: 1.0 given, a finite number in [0, 1"),
    "four channels": (["--channels", "4"], "--channels: 4 given, 1 (grey), 3 (RGB)"),
    "fp16 on a CPU": (
        ["--mixed-precision", "fp16"],
        "--mixed-precision: 'fp16' on a CPU given, 'no' or 'bf16' accepted",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(run, pictures, tmp_path, case):
    words, message = BAD[case]
    code, out, err = run("train", "--data", pictures, "--out", tmp_path / "run", *SMALL, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run").exists()


def test_bad_data_is_one_line_and_writes_nothing(run, pictures, tmp_path, capsys):
    def refused(data, *parts):
        code, out, err = run("train", "--data", data, "--out", tmp_path / "run", *SMALL)
        assert (code, out, err.count("\n")) == (2, "", 1)
        for part in parts:
            assert part in err
        assert not (tmp_path / "run").exists()

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", str(tmp_path / "empty"), "no images in this folder", "at least one")
    Image.new("RGB", (8, 6)).save(pictures / "red" / "wide.png")
    refused(pictures, "images of 2 sizes", "6x8 (1, such as red/wide.png)", "one size, or size=")
    cells = [{"bytes": (pictures / "red" / "0.png").read_bytes(), "path": None}] * 3
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"image": cells, "label": [0, -1, 1]}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    capsys.readouterr()  # its progress
    refused(tmp_path / "rows.parquet", "-1 in row 1 of 'label'", "integers in [0, 2)")


def test_a_run_folder_of_something_else_is_one_line(run, pictures, tmp_path):
    words = ["train", "--data", pictures, "--out", tmp_path / "run", *SMALL]
    assert run(*words)[0] == 0
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    newest = tmp_path / "run" / "checkpoints" / "step_00000006"
    cases = [
        (["--base-channels", "16"], "--base-channels: 16 for the run in", "began with 8"),
        (["--mults", "1,1"], "--mults: [1, 1] for the run in", "began with [1, 2]"),
        (["--flip"], "--data: '16 images, first samples", "began with '16 images"),
    ]
    for changes, *parts in cases:
        code, out, err = run(*words, *changes)
        assert (code, out, err.count("\n")) == (2, "", 1)
        for part in (*parts, "the same, or another folder, accepted"):
            assert part in err
    assert {path: path.read_bytes() for path in before} == before
    for content in (before[newest / "model.safetensors"][:-40], b""):
        (newest / "model.safetensors").write_bytes(content)
        code, out, err = run(*words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{newest.name}/model.safetensors: not readable" in err  # the path before it may be cut
        assert f"step 3 is intact: remove {newest} to go on from there" in err
    shutil.rmtree(newest)
    assert run(*words)[0] == 0
    assert (newest / "model.safetensors").read_bytes() == before[newest / "model.safetensors"]


def test_a_checkpoint_that_does_not_fit_is_one_line(run, pictures, tmp_path):
    """train.json agrees, the tensors do not: a file was copied from another run."""
    for channels, folder in (("8", "one"), ("16", "other")):
        words = ["train", "--data", pictures, "--out", tmp_path / folder, *SMALL, "--base-channels", channels]
        assert run(*words)[0] == 0
    name = "checkpoints/step_00000006/ema.safetensors"
    (tmp_path / "other" / name).write_bytes((tmp_path / "one" / name).read_bytes())
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{name}: not readable (it is not as it was written)" in err
    (tmp_path / "other" / name).with_name("sha256.json").unlink()  # which older checkpoints have not
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "checkpoint of step 6 in " in err
    assert "other: does not fit" in err


def test_broken_pictures_are_named_and_skipped_when_asked(run, pictures, tmp_path):
    (pictures / "red" / "3.png").write_bytes(b"no picture")
    words = ["train", "--data", pictures, "--out", tmp_path / "run", *SMALL]
    code, _, err = run(*words)
    assert code == 2
    assert "3.png" in err
    assert not (tmp_path / "run").exists()
    code, out, _ = run(*words, "--skip-broken")
    assert code == 0
    assert "15 images" in out
