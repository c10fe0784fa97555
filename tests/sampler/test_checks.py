"""The checks of arguments: what each accepts, what it refuses, and the error in its three parts."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from fastddpm import checks
from fastddpm.checks import BadArgument


def refused(check, *arguments, **options):
    with pytest.raises(BadArgument) as caught:
        check(*arguments, **options)
    return caught.value


def test_an_error_has_its_parts_and_one_form():
    error = BadArgument("steps", "0", "an integer of at least 1")
    assert (error.argument, error.given, error.accepted) == ("steps", "0", "an integer of at least 1")
    assert str(error) == "steps: 0 given, an integer of at least 1 accepted"
    assert isinstance(error, ValueError)


def test_an_error_is_whole_in_another_process():
    error = pickle.loads(pickle.dumps(BadArgument("low, high", "2, 1", "low < high")))
    assert (str(error), error.argument) == ("low, high: 2, 1 given, low < high accepted", "low, high")


@pytest.mark.parametrize("value", [1, np.int64(7), np.uint8(10)])
def test_whole_numbers(value):
    found = checks.whole("n", value, least=1, most=10)
    assert (type(found), found) == (int, int(value))


@pytest.mark.parametrize("value", [0, 11, 2.0, "2", None, True, np.True_, np.float32(2), math.nan])
def test_what_is_no_whole_number(value):
    error = refused(checks.whole, "n", value, least=1, most=10)
    assert (error.argument, error.given, error.accepted) == ("n", repr(value), "an integer in [1, 10]")


def test_bounds_of_whole_numbers_in_words():
    assert refused(checks.whole, "n", -1, least=0).accepted == "an integer of at least 0"
    assert refused(checks.whole, "n", -1, least=0, most=2**63 - 1).accepted == "an integer in [0, 2**63)"
    assert checks.whole("n", 2**70, least=0) == 2**70


@pytest.mark.parametrize("value", [0, 0.5, np.float32(1), np.int8(1)])
def test_numbers(value):
    found = checks.check_number("eta", value, low=0, high=1)
    assert (type(found), found) == (float, float(value))


@pytest.mark.parametrize("value", [-1e-9, 1.5, math.nan, math.inf, -math.inf, True, "0", None, 10**400, 1j])
def test_what_is_no_number(value):
    error = refused(checks.check_number, "eta", value, low=0, high=1)
    assert (error.argument, error.given) == ("eta", checks.shortened(repr(value)))
    assert error.accepted == "a finite number in [0, 1]"


@pytest.mark.parametrize(
    ("bounds", "outside", "inside", "accepted"),
    [
        ({}, math.inf, -1e30, "a finite number"),
        ({"low": 2}, 1, 2, "a finite number of at least 2"),
        ({"above": 2}, 2, 2.1, "a finite number above 2"),
        ({"above": 0, "high": 1}, 0, 1, "a finite number in (0, 1]"),
        ({"low": 0, "below": 1}, 1, 0, "a finite number in [0, 1)"),
        ({"above": 0, "below": 1}, 0, 0.5, "a finite number in (0, 1)"),
        ({"above": 0, "otherwise": "None"}, 0, 1, "a finite number above 0, or None,"),
    ],
)
def test_bounds_of_numbers(bounds, outside, inside, accepted):
    assert checks.check_number("x", inside, **bounds) == inside
    assert refused(checks.check_number, "x", outside, **bounds).accepted == accepted


def test_names():
    checks.check_choice("loss", "l1", ("l1", "l2"))
    checks.check_choice("loss", "l1", {"l1": 1, "l2": 2})
    for value in ("l3", None, ["l1"], "l"):
        assert str(refused(checks.check_choice, "loss", value, ("l1", "l2"))) == (
            f"loss: {value!r} given, one of l1, l2 accepted"
        )


def test_options():
    checks.check_known({"a": 1}, ("a", "b"), of="the thing")
    error = refused(checks.check_known, ("a", "c", "d"), ("a", "b"), of="the thing")
    assert str(error) == "c, d: unknown to the thing, given, a, b accepted"
    assert refused(checks.check_known, ("c",), (), of="the thing").accepted == "none"


def test_shapes_of_images():
    assert checks.image_shape([np.int64(3), 8, 16]) == (3, 8, 16)
    for shape in ((8, 8), (3, 8, 8, 8), (3, 0, 8), (3, 8.0, 8), (True, 8, 8)):
        error = refused(checks.image_shape, shape)
        assert (error.argument, error.given) == ("shape", repr(shape))


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_finite_values(make):
    checks.check_values("x", make([0.0, 1e30]))
    for value in (math.nan, math.inf, -math.inf):
        error = refused(checks.check_values, "x", make([0.0, value]))
        assert str(error) == "x: NaN or infinity among the values given, finite numbers accepted"


def test_one_each():
    checks.check_count("seeds", 3, 3)
    assert str(refused(checks.check_count, "seeds", 2, 3)) == "seeds: 2 for 3 images given, one each accepted"


@pytest.mark.parametrize("seeds", [[0, 2**63 - 1], np.array([1, 2]), torch.tensor([5]), range(3)])
def test_seeds(seeds):
    found = checks.seed_list(seeds)
    assert found == [int(seed) for seed in seeds]
    assert all(type(seed) is int for seed in found)


@pytest.mark.parametrize(
    "seeds", [[], [-1], [2**63], [1.0], [True], 5, "12", None, torch.tensor(3), np.ones((2, 2), np.int64)]
)
def test_what_are_no_seeds(seeds):
    error = refused(checks.seed_list, seeds, "noise_seeds")
    assert error.argument == "noise_seeds"
    assert "[0, 2**63)" in error.accepted


def test_falling_timesteps():
    found = checks.falling("timesteps", (9, 4, 0), least=0, most=9)
    assert (found.dtype, found.tolist()) == (np.int64, [9, 4, 0])
    for values in ([], [3, 3], [3, 5], [10, 1], [3, -1], [3.0, 1.0], [[3, 1]], 3):
        error = refused(checks.falling, "timesteps", values, least=0, most=9)
        assert (error.argument, error.given) == ("timesteps", repr(values))
        assert error.accepted == "at least one integer, strictly descending, in [0, 9]"
    assert refused(checks.falling, "timesteps", [-2], least=-1).accepted.endswith("none below -1")


def test_what_was_given_in_words():
    assert [checks.shown(one) for one in (torch.ones(2, 3), None, [1])] == ["shape (2, 3)", "None", "list"]


def test_values_in_errors_are_short_and_on_one_line():
    assert checks.quoted("a") == "'a'"
    assert len(checks.quoted(list(range(10_000)))) == 80
    assert "\n" not in checks.quoted(np.zeros((3, 3)))
    assert checks.quoted(10**5000) == "int of many digits"


def test_an_array_is_no_name():
    for value in (np.ones(2), torch.ones(2), np.array(["l1", "l2"])):
        assert refused(checks.check_choice, "loss", value, ("l1", "l2")).argument == "loss"
