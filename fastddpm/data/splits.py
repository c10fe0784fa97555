"""Names of splits as files and folders spell them."""

from __future__ import annotations

import re

from fastddpm.checks import check_choice

SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


def checked_split(split: str) -> str:
    """``split``, or a ValueError: "train", "validation" and "test" are accepted."""
    check_choice("split", split, SPELLINGS)
    return split


def split_of_folder(name: str) -> str | None:
    """The split that a folder of this name holds, or None: "val" -> "validation"."""
    return next((split for split, names in SPELLINGS.items() if name.lower() in names), None)


def split_of_file(name: str) -> str | None:
    """The split that a file of this name holds, or None: "train-00000-of-00002.parquet" -> "train"."""
    return split_of_folder(re.split(r"[-_.]", name, maxsplit=1)[0])
