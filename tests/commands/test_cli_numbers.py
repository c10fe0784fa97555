"""Every option that is a number, out of its range: one line and exit code 2, before any work."""

from __future__ import annotations

import functools
import typing

import numpy as np
import pytest
import torch
import typer
from PIL import Image

import fastddpm.data
from fastddpm import Sampler
from fastddpm.cli import app

HUGE = 10**20
INTEGERS, NUMBERS = ("0", "-1", str(HUGE)), ("0", "-1", "1e20", "nan", "inf", "-inf")
# What is in the range of an option after all.
ACCEPTED = {
    ("train", "--shift"): {"0"},
    ("train", "--warmup"): {"0"},
    ("train", "--workers"): {"0"},
    ("train", "--seed"): {"0"},
    ("train", "--max-parameters"): {str(HUGE)},
    ("train", "--ema"): {"0"},
    ("train", "--lr"): {"0", "1e20"},
    ("train", "--class-dropout"): {"0"},
    ("train", "--dropout"): {"0"},
    ("train, deblurring", "--noise"): {"0"},
    ("train, deblurring", "--gain"): {"1e20"},
    ("sample", "--batch"): {str(HUGE)},  # all at once; a job, which pads its blocks, refuses it
    ("sample", "--eta"): {"0"},
    ("sample", "--guidance"): {"0", "-1", "1e20"},
    ("super-resolve", "--seed"): {"0"},
    ("inpaint", "--seed"): {"0"},
    ("inpaint", "--class"): {"0"},
}
NEEDED = {
    "sample": ["--out", "images.png", "--class", "1"],
    "sample, a job": ["--format", "npz", "--outdir", "job"],
    "train": ["--data", "mnist", "--out", "run"],
    "train, deblurring": ["--data", "mnist", "--out", "run", "--task", "deblur"],
    "super-resolve": ["picture.png", "restored.png", "--model", "mnist_sr"],
    "inpaint": ["picture.png", "restored.png", "--mask", "mask.png"],
    "evaluate": ["images.npz", "--reference", "mnist", "--features", "digits"],
    "bench": ["--out", "report", "--json", "results.json"],
}
"""What is run, and the arguments that it needs besides. The other commands have the options of these."""
ONLY = {
    "sample, a job": {"--batch", "--shard-size", "--threads"},
    "train, deblurring": {"--factor", "--sigma", "--length", "--noise", "--gain"},
}


def numeric_options():
    """(what is run, option, value), from the annotations of the commands."""
    commands = {one.name: one.callback for one in app.app.registered_commands}
    for kind in NEEDED:
        hints = typing.get_type_hints(commands[kind.partition(",")[0]], include_extras=True)
        for name, hint in hints.items():
            values = values_for(hint)
            if values:
                declared = [word for word in hint.__metadata__[0].param_decls or () if word[0] == "-"]
                option = declared[0] if declared else f"--{name.replace('_', '-')}"
                if option in ONLY.get(kind, {option}):
                    yield from ((kind, option, value) for value in values)


def values_for(hint):
    """The values to try on an option; none on what is no number."""
    if not hasattr(hint, "__metadata__") or not isinstance(hint.__metadata__[0], typer.models.OptionInfo):
        return ()
    kinds = {hint.__origin__, *typing.get_args(hint.__origin__)}
    return INTEGERS if int in kinds else NUMBERS if float in kinds else ()


opened = functools.cache(fastddpm.data.open_dataset)


class Reached(Exception):
    """The work would begin now."""


@pytest.fixture
def begins(monkeypatch, tmp_path):
    """A folder with a picture and images, where whatever begins to work ends with Reached."""

    def reached(*arguments, **options):
        raise Reached

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fastddpm.data, "open_dataset", opened)
    digits = np.zeros((4, 28, 28, 1), np.uint8)
    np.savez("images.npz", digits)
    for name, level in (("picture.png", 0), ("mask.png", 255)):
        Image.new("L", (28, 28), level).save(name)
    for place in (
        "fastddpm.engine.loop.Loop.run",
        "fastddpm.training.trainer.Trainer.train",
        "fastddpm.jobs.job.Job._begin",
        "fastddpm.cli.evaluate.score",
        "fastddpm_bench.runner.run",
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
        assert value in ACCEPTED.get((kind, option), ())
        return
    error = capsys.readouterr().err
    assert ended.value.code == 2, error
    assert error.startswith("fastddpm: error: ")
    assert error.count("\n") == 1
    assert option in error, error
    assert value not in ACCEPTED.get((kind, option), ())


def too_large_for_torch():
    torch.empty(2**60)


def too_large_for_python():
    raise MemoryError


def too_large_for_a_card():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of ...")


def too_large_for_a_file():
    raise RuntimeError(
        "unable to mmap 16114884 bytes from file <model.safetensors>: Cannot allocate memory (12)"
    )


def too_large_for_a_library():
    try:
        raise RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer")
    except RuntimeError as error:
        raise ValueError("model: cannot be exported") from error


@pytest.mark.parametrize(
    "work",
    [
        too_large_for_torch,
        too_large_for_python,
        too_large_for_a_card,
        too_large_for_a_file,
        too_large_for_a_library,
    ],
)
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


def test_a_full_disk_is_one_line_that_names_the_file(monkeypatch, capsys, tmp_path):
    def save(path, pixels):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastddpm.cli.outputs.save_png", save)
    target = tmp_path / "images.png"
    words = ["sample", "--seeds", "0", "--steps", "1", "--method", "ddim", "--out", str(target)]
    monkeypatch.setattr("sys.argv", ["fastddpm", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert (ended.value.code, capsys.readouterr().err) == (
        2,
        f"fastddpm: error: {target}: not written, as no space is left there; more space or another place "
        "accepted\n",
    )
