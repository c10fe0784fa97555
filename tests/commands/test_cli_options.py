"""Errors of arguments on the command line: under the option that sets them, or whole where there is none."""

from __future__ import annotations

import typing

import pytest
import typer
from PIL import Image

from fastddpm import EngineUnavailable
from fastddpm.checks import BadArgument
from fastddpm.cli import app
from fastddpm.cli.options import Sets
from fastddpm.jobs import JobStopped

COMMANDS = typer.main.get_command(app.app).commands


@pytest.fixture
def said(monkeypatch, capsys):
    """What the command line says where a command raises an error."""

    def run(command, error):
        def fails(**options):
            raise error

        commands = typer.main.get_command(app.app)
        commands.commands[command].callback = fails
        fails.__annotations__ = typing.get_type_hints(COMMANDS[command].callback, include_extras=True)
        monkeypatch.setattr(typer.main, "get_command", lambda _: commands)
        needed = {"train": ["--out", "run"], "evaluate": ["images"]}.get(command, [])
        monkeypatch.setattr("sys.argv", ["fastddpm", command, *needed])
        with pytest.raises(SystemExit) as left:
            app.main()
        return left.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("command", "argument", "option"),
    [
        ("sample", "num_inference_steps", "--steps"),
        ("sample", "max_batch", "--batch"),
        ("sample", "class_labels, guidance_scale", "--class, --guidance"),
        ("sample", "shard_size", "--shard-size"),
        ("sample", "--seeds", "--seeds"),
        ("train", "ema_decay", "--ema"),
        ("train", "run", "--out"),
        ("train", "steps", "--steps"),
        ("evaluate", "batch_size", "--batch"),
        # No option of the command sets these.
        ("sample", "ema_decay", "ema_decay"),
        ("sample", "model", "model"),
        ("train", "num_inference_steps", "num_inference_steps"),
        ("evaluate", "folder", "folder"),
        ("sample", "seeds, alphas", "--seeds, alphas"),
    ],
)
def test_an_error_names_the_option(said, command, argument, option):
    code, err = said(command, BadArgument(argument, "0: 1, must be", "2"))
    assert (code, err) == (2, f"fastddpm: error: {option}: 0: 1, must be given, 2 accepted\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EngineUnavailable("engine: 'max' needs a card"), "--engine: 'max' needs a card"),
        (JobStopped("outdir: 'd' cannot be written"), "--outdir: 'd' cannot be written"),
        (ValueError("seeds: of no argument that it names"), "seeds: of no argument that it names"),
        (OSError("disk: gone"), "disk: gone"),
    ],
)
def test_other_errors(said, error, line):
    assert said("sample", error) == (2, f"fastddpm: error: {line}\n")


def test_every_mark_belongs_to_an_option():
    marked = 0
    for name, command in COMMANDS.items():
        hints = typing.get_type_hints(command.callback, include_extras=True)
        names = command.names()
        for option, hint in hints.items():
            for mark in getattr(hint, "__metadata__", ()):
                if isinstance(mark, Sets):
                    assert all(names[argument] == names[option] for argument in mark.arguments), (
                        name,
                        option,
                    )
                    marked += 1
    assert marked > 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["convert", "mnist", "out", "--config", "not.json"], "not.json' does not exist"),
        (["super-resolve", "a.png", "b.png", "--model", "not"], "--model: model folder 'not': not found"),
        (["inpaint", "a.png", "b.png", "--mask", "a.png", "--model", "not"], "--model: model folder 'not'"),
        (["evaluate", "pictures", "--reference", "not"], "--reference: 'not' given"),
        (["evaluate", "not"], "FOLDER: 'not' given"),
        (
            ["train", "--out", "run", "--data", "pictures"],
            "or leave them out with --skip-broken.",
        ),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_what_is_not_there_or_broken_is_named_by_its_option(words, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("pictures/0.png", "a.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "pictures" / "1.png").write_bytes(b"nothing")
    monkeypatch.setattr("sys.argv", ["fastddpm", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert said in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "pictures"]
