"""The names of a model's classes: checked, listed in errors, and taken for the labels that they name.

A name in a list of labels is text, ``"cat"``; a number is a label, whatever the classes are called. Needs no
torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastddpm.checks import BadArgument, quoted, shortened

MAX_NAMES = 2**16
"""Classes that have names: as many as a data set may have."""
LONGEST_NAME = 255
"""Characters of a name: that of any folder fits."""
LONGEST_LIST = 300
"""Characters of all names in an error; what is beyond is counted."""

Names = tuple[str, ...]


def class_names(names: Sequence[str] | None, num_classes: int | None = None) -> Names | None:
    """The names of classes 0, 1, ..., as a model keeps them; None for none.

    Args:
        names: at most `MAX_NAMES`, each once, of 1 to `LONGEST_NAME` printable characters.
        num_classes: how many the model has, where that is known.

    Raises:
        BadArgument: (a ValueError) anything else, or another number of them.
    """
    if names is None:
        return None
    if not isinstance(names, (list, tuple)) or not 0 < len(names) <= MAX_NAMES:
        given = f"{len(names)} names" if isinstance(names, (list, tuple)) else quoted(names)
        raise BadArgument("class_names", given, f"a list of 1 to {MAX_NAMES:,} names, or None,")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise BadArgument(
                "class_names", quoted(name), f"text of 1 to {LONGEST_NAME} printable characters each"
            )
        if name in seen:
            raise BadArgument("class_names", f"{quoted(name)} for two classes", "a name of its own for each")
        seen.add(name)
    if num_classes is not None and len(names) != num_classes:
        raise BadArgument("class_names", f"{len(names)} for {num_classes} classes", "one each")
    return tuple(names)


def numbered(labels: Any, names: Names | None) -> Any:
    """``class_labels`` with the number of its class for every name; what holds no text stays as it is.

    Raises:
        BadArgument: (a ValueError) a name that no class has; the names are listed.
    """
    if isinstance(labels, str):
        return _number(labels, names)
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "U":
        labels = labels.tolist()
    if isinstance(labels, (list, tuple)) and any(isinstance(one, str) for one in labels):
        return [_number(one, names) if isinstance(one, str) else one for one in labels]
    return labels


def listed(names: Names) -> str:
    """All names in `LONGEST_LIST` characters: the first of them where they are too many."""
    return ", ".join(_fitting(names))


def _fitting(names: Names) -> Iterator[str]:
    room = LONGEST_LIST - len(f", and {MAX_NAMES} more")
    for i, name in enumerate(names):
        word = shortened(name, 60)
        room -= len(word) + 2
        if room < 0:
            yield f"and {len(names) - i} more"
            return
        yield word


def _number(name: str, names: Names | None) -> int:
    if names is None:
        raise BadArgument("class_labels", f"{quoted(name)} to a model without class names", "integers")
    if name not in names:
        raise BadArgument(
            "class_labels", f"{quoted(name)}, the name of no class,", f"{listed(names)}, or numbers,"
        )
    return names.index(name)
