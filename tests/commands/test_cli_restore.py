"""`fastddpm super-resolve`, `deblur`, `inpaint`, `colorize`: files and folders, and what they refuse."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from pictures import big_png, random_pixels
from PIL import Image

from fastddpm import NoiseSchedule, UNet, UNetConfig, load
from fastddpm.cli import app as cli
from fastddpm.model_folder import save_folder
from fastddpm.tasks import Colorize, Deblur, Inpaint, SuperResolve, write_task

SAMPLER = {"method": "ddim", "num_inference_steps": 2, "clip_sample_range": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Untrained model folders of 16x16 tiles, one for each task."""
    folder = tmp_path_factory.mktemp("models")
    tasks = {"sr": SuperResolve(factor=2), "deblur": Deblur(), "inpaint": Inpaint(), "colorize": Colorize()}
    for name, task in tasks.items():
        channels = 3 if name == "colorize" else 1
        torch.manual_seed(0)
        config = UNetConfig(
            in_channels=channels + task.channels(channels),
            out_channels=channels,
            base_channels=8,
            channel_mults=(1, 2),
            num_groups=4,
            time_dim=16,
        )
        options = {**SAMPLER, "shape": [channels, 16, 16]}
        save_folder(folder / name, UNet(config), NoiseSchedule.cosine(20), options)
        write_task(folder / name, task)
    return folder


@pytest.fixture
def run(monkeypatch, capsys, models, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fastddpm", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


@pytest.fixture
def grey(tmp_path):
    Image.fromarray(random_pixels(12, 20)).save(tmp_path / "grey.png")
    return tmp_path / "grey.png"


def test_a_file_becomes_a_file(run, models, grey, tmp_path):
    code, out, _ = run("super-resolve", grey, "large.png", "--model", models / "sr")
    assert code == 0
    assert "large.png (40x24," in out
    result = Image.open(tmp_path / "large.png")
    assert (result.size, result.mode) == ((40, 24), "L")
    assert run("super-resolve", grey, "again.png", "--model", models / "sr")[0] == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "large.png").read_bytes()
    assert run("super-resolve", grey, "other.png", "--model", models / "sr", "--seed", 1)[0] == 0
    assert np.any(np.asarray(Image.open(tmp_path / "other.png")) != np.asarray(result))


def test_samples_and_their_mean(run, models, grey, tmp_path):
    options = ("--model", models / "deblur", "--samples", 3)
    assert run("deblur", grey, "many.png", *options)[0] == 0
    assert run("deblur", grey, "mean.png", *options, "--mean")[0] == 0
    each = [np.asarray(Image.open(tmp_path / f"many_{i}.png"), np.float64) for i in range(3)]
    mean = np.asarray(Image.open(tmp_path / "mean.png"), np.float64)
    assert abs(mean - np.mean(each, axis=0)).max() <= 1
    assert abs(each[0] - each[1]).max() > 5


def test_a_folder_becomes_a_folder(run, models, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(random_pixels(5, 7, 4)).save(tmp_path / "in" / "clear.webp", lossless=True)
    Image.fromarray(random_pixels(1, 1)).save(tmp_path / "in" / "dot.bmp")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    assert run("super-resolve", "in", "out", "--model", models / "sr")[0] == 0
    found = {path.name: Image.open(path) for path in (tmp_path / "out").iterdir()}
    assert {name: (image.size, image.mode) for name, image in found.items()} == {
        "clear.png": ((14, 10), "RGBA"),
        "dot.png": ((2, 2), "L"),
    }


def test_grey_is_coloured(run, models, grey, tmp_path):
    assert run("colorize", grey, "colour.png", "--model", models / "colorize")[0] == 0
    assert Image.open(tmp_path / "colour.png").mode == "RGB"


def test_inpainting_with_and_without_a_trained_model(run, models, grey, tmp_path):
    hidden = np.zeros((12, 20), np.uint8)
    hidden[4:9, 6:15] = 255
    Image.fromarray(hidden).save(tmp_path / "mask.png")
    assert run("inpaint", grey, "trained.png", "--mask", "mask.png", "--model", models / "inpaint")[0] == 0
    assert Image.open(tmp_path / "trained.png").size == (20, 12)
    options = ("--mask", "mask.png", "--steps", 3, "--jump", 1, "--resample", 2, "--class", 3)
    code, _, err = run("inpaint", grey, "zero.png", *options)
    assert code == 0, err
    known = hidden == 0
    before, after = (np.asarray(Image.open(tmp_path / name)) for name in ("grey.png", "zero.png"))
    np.testing.assert_array_equal(before[known], after[known])


def test_bad_input_is_refused_and_nothing_written(run, models, grey, tmp_path):
    big_png(tmp_path / "big.png", 20_000, 20_000)
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(random_pixels(5, 5, 4)).save(tmp_path / "rgba.png")
    Image.fromarray(random_pixels(5, 5)).save(tmp_path / "small.png")
    (tmp_path / "two").mkdir()
    for name in ("a.png", "a.bmp", "a.left.png"):
        Image.fromarray(random_pixels(4, 4)).save(tmp_path / "two" / name)
    for name in ("o_1.png", "white.png"):
        Image.fromarray(np.full((12, 20), 255, np.uint8)).save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    sr, there = ("--model", models / "sr"), {*tmp_path.iterdir()}
    cases = [
        (("super-resolve", "big.png", "o.png", *sr), "big.png: "),
        (("super-resolve", "text.png", "o.png", *sr), "text.png: no image that can be read"),
        (("super-resolve", "none.png", "o.png", *sr), "none.png: not a file"),
        (("super-resolve", "grey.png", "o.gif", *sr), "out: 'o.gif' given, a name that ends in .png"),
        (("super-resolve", "grey.png", "no/o.png", *sr), "a file in a folder that is there accepted"),
        (("super-resolve", "grey.png", "grey.png", *sr), "the source, given, another file accepted"),
        (("super-resolve", "o_1.png", "o.png", *sr, "--samples", 2), "out: 'o_1.png', the source, given"),
        (("inpaint", "grey.png", "white.png", "--mask", "white.png"), "out: 'white.png', the mask, given"),
        (("super-resolve", "rgba.png", "o.jpg", *sr), "for a picture with alpha, which .jpg has not, given"),
        (("super-resolve", "two", "o", *sr), "a.bmp and a.png would both become"),
        (("super-resolve", "two", "o.png", *sr), "for a folder given, a folder accepted"),
        (("super-resolve", "empty", "o", *sr), "a folder without images"),
        (("super-resolve", "grey.png", "o.png", *sr, "--samples", 0), "--samples: 0 given"),
        (("super-resolve", "grey.png", "o.png", *sr, "--mean"), "--mean: one sample to take it of given"),
        (("super-resolve", "grey.png", "o.png", *sr, "--seed", -1), "--seed: -1 given"),
        (("deblur", "grey.png", "o.png", *sr), "which is for the task sr, given, one for deblur accepted"),
        (("deblur", "grey.png", "o.png", "--model", "mnist"), "has no task.json"),
        (("deblur", "grey.png", "o.png", "--model", "nowhere"), "not found"),
        (("inpaint", "grey.png", "o.png", "--mask", "small.png"), "mask: one of 5x5 given, one of 12x20"),
        (("inpaint", "grey.png", "o.png", "--mask", "text.png"), "text.png: no image"),
        (("inpaint", "grey.png", "o.png", "--mask", "grey.png", "--jump", 0), "jump: 0 given"),
    ]
    for words, message in cases:
        code, out, err = run(*words)
        assert (code, out) == (2, ""), words
        assert message in err, (words, err)
        assert err.startswith("fastddpm: error: "), err
        assert {*tmp_path.iterdir()} == there, words


def test_an_interrupted_write_leaves_nothing(run, models, grey, tmp_path, monkeypatch):
    def full(self, file, *arguments, **options):
        with open(file, "wb") as opened:
            opened.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "old.png").write_bytes(b"before")
    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = run("super-resolve", grey, "old.png", "--model", models / "sr")
    assert code == 2
    assert "no space is left" in err
    assert (tmp_path / "old.png").read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"grey.png", "old.png"}


SMALL = ("--base-channels", 8, "--mults", "1,2", "--steps", 2, "--batch", 2, "--checkpoint-every", 2)


@pytest.mark.parametrize(("task", "channels"), [("inpaint", 3 + 3 + 1), ("colorize", 3 + 1)])
def test_a_task_is_trained_and_used(run, tmp_path, task, channels):
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.fromarray(random_pixels(16, 16, 3) // (i + 1)).save(tmp_path / "pictures" / f"{i}.png")
    code, out, err = run("train", "--data", "pictures", "--out", "run", "--task", task, *SMALL)
    assert (code, err) == (0, "")
    assert f"fastddpm {task} --model run/model" in out
    sampler = load(tmp_path / "run" / "model")
    assert (sampler.model.config.in_channels, sampler.model.config.out_channels) == (channels, 3)
    hidden = np.zeros((16, 16), np.uint8)
    hidden[2:9] = 255
    Image.fromarray(hidden).save(tmp_path / "mask.png")
    mask = ("--mask", "mask.png") if task == "inpaint" else ()
    assert run(task, "pictures/0.png", "o.png", "--model", "run/model", "--steps", 2, *mask)[0] == 0
    assert Image.open(tmp_path / "o.png").size == (16, 16)


def test_options_of_a_task_need_the_task(run, tmp_path):
    code, _, err = run("train", "--out", "run", "--factor", 4)
    assert code == 2
    assert "--factor: 4 without a task given" in err
    code, _, err = run("train", "--out", "run", "--task", "colorize", "--data", "mnist", *SMALL)
    assert code == 2
    assert "--channels: images of 1 given, 3 by the task colorize accepted" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pixels", "what"),
    [
        (random_pixels(113, 20), "20x113 pixels"),
        (np.stack([random_pixels(28, 28), random_pixels(28, 28).T, random_pixels(28, 28)], 2), "coloured"),
    ],
    ids=["large", "coloured"],
)
def test_the_digit_models_are_not_for_photographs(run, tmp_path, pixels, what):
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(np.full(pixels.shape[:2], 255, np.uint8)).save(tmp_path / "hidden.png")
    commands = [
        ("deblur", ()),
        ("inpaint", ("--mask", "hidden.png")),
        ("super-resolve", ("--model", "mnist_sr")),
    ]
    for command, options in commands:
        code, _, error = run(command, "photo.png", "out.png", *options)
        assert code == 2
        assert f"for photo.png ({what})" in " ".join(error.split())
        assert "--force" in error
        assert not (tmp_path / "out.png").exists()


def test_a_digit_model_may_be_forced(run, tmp_path):
    grey = np.repeat(random_pixels(28, 28)[..., None], 3, axis=2)  # no colour in it
    Image.fromarray(grey).save(tmp_path / "digit.png")
    assert run("deblur", "digit.png", "one.png", "--steps", 2)[0] == 0
    Image.fromarray(random_pixels(28, 120)).save(tmp_path / "wide.png")
    assert run("deblur", "wide.png", "two.png", "--steps", 2, "--force")[0] == 0
