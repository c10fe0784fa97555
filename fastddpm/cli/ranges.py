"""Ranges of seeds and classes, and names of classes, as people type them. Needs no torch."""

from __future__ import annotations

import re
from collections import Counter

from fastddpm.checks import BadArgument
from fastddpm.class_names import Names, listed

LONGEST_RANGE = 10_000_000


def parse_ranges(text: str, name: str) -> list[int]:
    """``0-9,20`` -> [0, ..., 9, 20].

    Raises:
        ValueError: anything but non-negative integers and rising ranges.
    """
    values: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise BadArgument(name, repr(text), "integers and rising ranges such as 0-9,20, none below 0,")
        if last - first >= LONGEST_RANGE:
            raise BadArgument(name, repr(text), f"ranges of at most {LONGEST_RANGE:,}")
        values.extend(range(first, last + 1))
    return values


def parse_seeds(text: str) -> list[int]:
    """Seeds, each once: an image and its file are a seed's."""
    seeds = parse_ranges(text, "--seeds")
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed, count in Counter(seeds).items() if count > 1)
        raise BadArgument("--seeds", f"{text!r} with {twice} more than once", "every seed once")
    return seeds


def choose_labels(
    n_classes: int | None, classes: str | None, seeds: list[int], names: Names | None = None
) -> list[int] | None:
    """A label per seed: the given classes, or all of them, in turn by seed; None without classes."""
    if n_classes is None:
        if classes is not None:
            raise BadArgument("--class", f"{classes} with a model without classes", "no value")
        return None
    choices = list(range(n_classes)) if classes is None else parse_classes(classes, names)
    if max(choices) >= n_classes:
        raise BadArgument("--class", str(classes), _classes(n_classes, names))
    return [choices[seed % len(choices)] for seed in seeds]


def parse_classes(text: str, names: Names | None) -> list[int]:
    """``cat,dog`` or ``0-4,7`` -> labels.

    What a class is called is that class, a number too; other numbers are labels. A name with a comma in it
    is given alone.

    Raises:
        ValueError: neither a name, which are listed, nor numbers and rising ranges.
    """
    if names is None:
        return parse_ranges(text, "--class")
    label_of = {name: label for label, name in enumerate(names)}
    chosen: list[int] = []
    for part in [text] if text in label_of else text.split(","):
        name = part if part in label_of else part.strip()
        if name in label_of:
            chosen.append(label_of[name])
            continue
        try:
            numbers = parse_ranges(part, "--class")
        except BadArgument:
            accepted = _classes(len(names), names)
            raise BadArgument("--class", f"{part!r}, the name of no class,", accepted) from None
        chosen += [label_of.get(str(number), number) for number in numbers]
    return chosen


def parse_class(text: str, names: Names | None) -> int:
    """One of :func:`parse_classes`."""
    chosen = parse_classes(text, names)
    if len(chosen) != 1:
        raise BadArgument("--class", f"{text!r}, {len(chosen)} classes,", "one")
    return chosen[0]


def _classes(n_classes: int, names: Names | None) -> str:
    numbers = f"0 to {n_classes - 1}"
    return numbers if names is None else f"{listed(names)}, or {numbers},"
