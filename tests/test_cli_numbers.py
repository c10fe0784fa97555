"""Every option that is a number, out of its range: one line and exit code 2, before any work."""

from __future__ import annotations

import typing

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from fastddpm import Sampler
from fastddpm.cli import app

HUGE = 10**20
INTEGERS, NUMBERS = ("0", "-1", str(HUGE)), ("0", "-1", "1e20", "nan", "inf", "-inf")
# What is in the range of an option after all.
ACCEPTED = {
    ("train", "--shift"): {"0"},
    ("train", "--warmup"): {"0"},
    ("train", "--seed"): {"0"},
    ("train", "--ema"): {"0"},
    ("train", "--lr"): {"0", "1e20"},
    ("train", "--class-dropout"): {"0"},
    ("train", "--dropout"): {"0"},
    ("sample", "--eta"): {"0"},
    ("sample", "--guidance"): {"0", "-1", "1e20"},
}
NEEDED = {
    "sample": ["--out", "images.png"],
    "sample, a job": ["--format", "npz", "--outdir", "job"],
    "train": ["--data", "mnist", "--out", "run"],
    "train, deblurring": ["--data", "mnist", "--out", "run", "--task", "deblur"],
    "super-resolve": ["picture.png", "restored.png", "--model", "mnist_sr"],
    "deblur": ["picture.png", "restored.png"],
    "inpaint": ["picture.png", "restored.png", "--mask", "picture.png"],
    "evaluate": ["images.npz", "--reference", "mnist", "--features", "digits"],
    "bench": ["--out", "results.json"],
}
"""What is run, and the arguments that it needs besides."""


def numeric_options():
    """(what is run, option, value), from the annotations of the commands."""
    commands = {one.name: one.callback for one in app.app.registered_commands}
    for kind in NEEDED:
        for name, hint in typing.get_type_hints(commands[kind.partition(",")[0]], include_extras=True).items():
            kinds = {int, float} & {hint.__origin__, *typing.get_args(hint.__origin__)} if is_option(hint) else ()
            option = next(iter(hint.__metadata__[0].param_decls or ()), "") if kinds else ""
            for value in (INTEGERS if int in kinds else NUMBERS) if kinds else ():
                yield kind, option or f"--{name.replace('_', '-')}", value


def is_option(hint):
    return hasattr(hint, "__metadata__") and isinstance(hint.__metadata__[0], typer.models.OptionInfo)


class Reached(Exception):
    """The work would begin now."""


@pytest.fixture
def begins(monkeypatch, tmp_path):
    """A folder with a picture and images, where whatever begins to work ends with Reached."""

    def reached(*arguments, **options):
        raise Reached

    monkeypatch.chdir(tmp_path)
    digits = np.zeros((4, 28, 28, 1), np.uint8)
    np.savez("images.npz", digits)
    Image.fromarray(digits[0, ..., 0]).save("picture.png")
    for place in (
        "fastddpm.engine.loop.Loop.run",
        "fastddpm.training.trainer.Trainer.train",
        "fastddpm.jobs.job.Job._begin",
        "fastddpm.cli.evaluate.score",
        "fastddpm.bench.runner.run",
    ):
        monkeypatch.setattr(place, reached)


@pytest.mark.parametrize(("kind", "option", "value"), list(numeric_options()))
def test_a_number_out_of_range_is_one_line(kind, option, value, begins, monkeypatch, capsys):
    arguments = [kind.partition(",")[0], *NEEDED[kind], f"{option}={value}"]
    monkeypatch.setattr("sys.argv", ["fastddpm", *arguments])
    try:
        with pytest.raises(SystemExit) as ended:
            app.main()
    except Reached:
        assert value in ACCEPTED[kind.partition(",")[0], option]
        return
    error = capsys.readouterr().err
    assert ended.value.code == 2, error
    assert error.startswith("fastddpm: error: ")
    assert error.count("\n") == 1
    assert option in error, error
    assert value not in ACCEPTED.get((kind.partition(",")[0], option), ())


def too_large_for_torch():
    torch.empty(2**60)


def too_large_for_python():
    raise MemoryError


def too_large_for_a_card():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of ...")


@pytest.mark.parametrize("work", [too_large_for_torch, too_large_for_python, too_large_for_a_card])
def test_out_of_memory_is_one_line_with_advice(work, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Sampler, "sample", lambda self, **request: work())
    monkeypatch.setattr("sys.argv", ["fastddpm", "sample", "--out", str(tmp_path / "images.png")])
    with pytest.raises(SystemExit) as ended:
        app.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("fastddpm: error: out of memory (")
    assert error.endswith("a smaller --batch, size or model accepted\n")
    assert error.count("\n") == 1
