"""`fastddpm --version` and `--help`: what the whole application says, without loading it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastddpm.cli import app, overview

HEAVY = ("torch", "numpy", "triton", "PIL", "onnxruntime", "safetensors")


def said(*words, **environment):
    """(exit code, output, errors) in a process of its own in which what is heavy cannot be imported."""
    code = (
        f"import os, sys; sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
        f"os.environ.update({environment!r}); sys.argv = {['fastddpm', *words]!r}\n"
        "from fastddpm.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["-h"], [], ["--version"]])
def test_words_that_need_no_command_load_nothing(words, monkeypatch, capsys):
    code, out, err = said(*words, COLUMNS="80", TERM="dumb")
    assert (code, err) == (0, "")
    monkeypatch.setattr(sys, "argv", ["fastddpm", *words])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == 0
    assert out == capsys.readouterr().out
    assert len(out.splitlines()) > (0 if words == ["--version"] else 20)


def test_every_command_is_in_it():
    assert [*overview.SUMMARIES] == [*app.COMMANDS]


@pytest.mark.parametrize("words", [["sample", "--help"], ["--versions"], ["--help", "sample"]])
def test_other_words_are_the_applications(words):
    assert "import of torch halted" in said(*words)[2] or "import of numpy halted" in said(*words)[2]


def test_completions_are_the_applications():
    """A shell asks for them with the words in the environment and none on the command line."""
    assert (
        "halted"
        in said(_FASTDDPM_COMPLETE="complete_bash", COMP_WORDS="fastddpm sample --", COMP_CWORD="2")[2]
    )
