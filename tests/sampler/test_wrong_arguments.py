"""What people give by mistake to everything public: an error that names the argument, in one line."""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import pytest
import torch
from public_calls import calls

import fastddpm
from fastddpm.checks import BadArgument
from fastddpm.dropin import Unrecognised
from fastddpm.signatures import checked

LONGEST = 300
PACKAGES = (
    "",
    ".plans",
    ".score",
    ".data",
    ".jobs",
    ".training",
    ".restoration",
    ".tasks",
    ".evaluation",
    ".serving",
)
# Public names that have no argument to get wrong, or are types of errors and tables.
SILENT = {
    *("CheckpointError", "EngineUnavailable", "NonFiniteSamples", "OtherSettingsError", "JobStopped"),
    *("BadArgument", "BrokenImagesError", "TrainingDiverged"),
    *("Busy", "Closed", "DeadlinePassed", "Drawing"),
    *("METHODS", "TASKS", "TASK_FILE", "load_digit_classifier", "Inpaint", "Task"),
    *("DigitClassifier", "SDE", "Score", "Drawer"),  # a network's forward, and what others implement
    *(
        "OnnxDrawer",
        "register_method",
        "register_solver",
    ),  # tests/export has the first, tests/plans/test_new_method.py the other
}


class Called(Exception):
    """A function of the caller's was called, so that it was accepted."""


def called(*arguments, **options):
    raise Called


WRONG = {
    "negative": -1,
    "fraction": 2.5,
    "nan": float("nan"),
    "text": "x",
    "bytes": b"x",
    "none": None,
    "list": [],
    "range": range(3),
    "object": object(),
    "function": called,
    "class": int,
    "tensor": torch.zeros(1, 1, 1, 1, 1, 2),
    "array": np.ones(2),
}


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    return calls(tmp_path_factory.mktemp("calls"))


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # "x" is a path too


def fault(call, argument, value) -> str | None:
    """What is wrong with what comes of a wrong argument; None where it is accepted or well refused."""
    try:
        call.function(**{**call.sound, argument: value})
    except (Called, Unrecognised):
        return None
    except (ValueError, OSError) as error:
        said = str(error)
        if len(said) > LONGEST or "\n" in said:
            return f"{len(said)} characters: {said[:80]}"
        if isinstance(error, BadArgument):
            others = set(error.argument.split(", ")) - {*call.sound, *call.says}
            return f"names {others}" if others else None
        # Of what a file holds; numpy's and torch's own say nothing about the argument.
        return None if type(error).__module__.startswith("fastddpm") else f"{type(error).__name__}: {said}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:120]
    return None


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_argument_is_named_in_one_line(every, kind):
    faults = {
        f"{call.name}({argument}=)": found
        for call in every
        for argument in call.sound
        if not (kind == "none" and argument in call.slow)
        and (found := fault(call, argument, WRONG[kind])) is not None
    }
    assert faults == {}


def test_what_is_sound_is_accepted(every):
    for call in every:
        if not call.costs:
            call.function(**call.sound)


def test_nothing_public_is_left_out(every):
    names = {part for call in every for part in call.name.split(".")}
    for package in PACKAGES:
        public = set(importlib.import_module(f"fastddpm{package}").__all__)
        assert public - names - SILENT == set(), package


def test_a_checked_function_is_what_it_was():
    @checked
    def function(path: str, *, flag: bool = False, name: NotThere = 1) -> str:  # noqa: F821
        """Says."""
        return path + str(flag)

    assert function("a", flag=np.True_, name=2) == "aTrue"
    assert (function.__name__, function.__doc__) == ("function", "Says.")
    assert list(inspect.signature(function).parameters) == ["path", "flag", "name"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        function("a", other=1)


def test_what_was_given_is_told_in_words():
    with pytest.raises(BadArgument) as caught:
        fastddpm.Sampler(int, fastddpm.NoiseSchedule.linear(10))
    assert str(caught.value) == "model: the class int given, a callable accepted"
    with pytest.raises(BadArgument) as caught:
        fastddpm.load(device=3)
    assert str(caught.value) == "device: 3 given, text or a torch device accepted"
    with pytest.raises(BadArgument) as caught:
        fastddpm.load().sample(1, progress=torch.zeros(2))
    assert str(caught.value) == "progress: Tensor of shape (2,) given, True or False accepted"
