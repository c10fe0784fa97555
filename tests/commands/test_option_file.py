"""Options of a command in a YAML or JSON file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from networks import make_unet

from fastddpm import NoiseSchedule, save_folder
from fastddpm.cli import app, option_file


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path):
    options = {"method": "ddim", "num_inference_steps": 3, "clip_sample_range": 1.0, "shape": [3, 8, 8]}
    return save_folder(tmp_path / "model", make_unet(), NoiseSchedule.linear(20), options)


OPTIONS = {"seeds": "5-6", "class": [3, 1], "steps": 2, "method": "ddim", "guidance": 2.0, "out": "a.npz"}
YAML = """
# a picture or two
seeds: 5-6
class: [3, 1]
steps: 2
method: ddim
guidance: 2.0
out: a.npz
batch:
"""


@pytest.mark.parametrize(
    ("name", "text"), [("o.yaml", YAML), ("o.yml", YAML), ("o.json", json.dumps(OPTIONS))]
)
def test_a_file_is_what_is_typed(run, model, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert run("sample", model, "--options", name)[0] == 0
    typed = ["--seeds", "5-6", "--class", "3,1", "--steps", "2", "--method", "ddim", "--guidance", "2"]
    assert run("sample", model, *typed, "--out", "b.npz")[0] == 0
    one, other = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert one.files == other.files
    assert all(np.array_equal(one[key], other[key]) for key in one.files)


def test_what_is_typed_wins(run, model, tmp_path):
    (tmp_path / "o.yaml").write_text(YAML)
    assert run("sample", model, "--seeds=9", "--options=o.yaml", "--class", "2")[0] == 0
    written = np.load(tmp_path / "a.npz")
    assert (written["seeds"].tolist(), written["arr_1"].tolist()) == ([9], [2])


BAD = {
    "no such option": ("sped: 3", "o.yaml: sped: an option that the command does not have given"),
    "text for a number": ("steps: many", "o.yaml: steps: "),
    "out of range": ("steps: 0", "o.yaml: steps: 0 given, an integer in [1, 20] accepted"),
    "refused by a check of the command": ("class: 9", "o.yaml: class: 9 given, 0 to 3 accepted"),
    "a bool for text": ("method: no", "o.yaml: method: False given, a number or text (in quotes"),
    "text for a flag": ("merge: 3", "o.yaml: merge: 3 given, true or false accepted"),
    "a mapping": ("steps: {a: 1}", "o.yaml: steps: {'a': 1} given, a text, a number"),
    "twice in two spellings": ("shard-size: 2\nshard_size: 2", "o.yaml: shard_size: the same option twice"),
    "no mapping": ("- a", "o.yaml: a mapping of options to values accepted"),
    "no YAML": ("a: [", "o.yaml: not readable as YAML (while parsing"),
    "too deep": ("a: " + "[" * 5000, "o.yaml: not readable as YAML"),
    "an object of Python": ("a: !!python/object:os.system 3", "o.yaml: not readable as YAML"),
    "an alias": ("a: &x [1, 2]\nseeds: *x", "o.yaml: an alias (*name) given, values written out accepted"),
    "a merged alias": ("a: &x {steps: 2}\n<<: [*x, *x]", "o.yaml: an alias (*name) given"),
    "too large": ("a: " + "b" * option_file.MAX_FILE, "o.yaml: more than 1,048,576 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_file_and_the_key(run, model, tmp_path, case):
    text, said = BAD[case]
    (tmp_path / "o.yaml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("sample", model, "--options", "o.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fastddpm: error: ")
    assert said in err
    assert sorted(tmp_path.rglob("*")) == before


def test_errors_of_what_is_typed_name_the_option(run, model, tmp_path):
    (tmp_path / "o.yaml").write_text("steps: 0\n")
    assert "--steps: 21 given" in run("sample", model, "--options", "o.yaml", "--steps", "21")[2]
    for words, said in (
        (["--options"], "--options: no file given, one YAML or JSON file accepted"),
        (["--options", "a.yaml", "--options", "b.yaml"], "--options: two files given"),
        (["--options", "o.txt"], "--options: 'o.txt' given, a file ending in .yaml, .yml or .json"),
        (["--options", "none.yaml"], "none.yaml: not found"),
    ):
        code, _, err = run("sample", model, *words)
        assert (code, err.count("\n"), said in err) == (2, 1, True), err


def test_train_takes_all_its_options_from_config(run, tmp_path):
    """`--config` is the same where a command has no other of this name; flags are true or false."""
    (tmp_path / "t.yaml").write_text(
        "data: mnist\nout: run\nsteps: 1\nbatch: 4\nmults: [1, 2]\nbase-channels: 8\n"
        'mid_attention: false\nflip: true\nmixed-precision: "no"\nlr: 1e-4\nloss: l3\n'
    )
    code, _, err = run("train", "--config", "t.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "t.yaml: loss: 'l3' given, one of l2, l1, huber accepted" in err
    command = app.typer.main.get_command(app.app).commands["train"]
    context = command.make_context("train", ["--config", "t.yaml", "--loss", "l1", "--steps", "3"])
    found = {
        name: context.params[name] for name in ("steps", "batch", "mults", "mid_attention", "flip", "lr")
    }
    assert found == {"steps": 3, "batch": 4, "mults": "1,2", "mid_attention": False, "flip": True, "lr": 1e-4}
    assert context.params["mixed_precision"] == "no"
    assert str(context.params["out"]) == "run"


@pytest.mark.parametrize("words", [["-h"], ["sample", "-h"], ["train", "--help"]])
def test_help_is_short_too(run, words):
    code, out, _ = run(*words)
    assert code == 0
    assert "Usage: fastddpm" in out
    assert len(words) == 1 or "--options FILE" in out
