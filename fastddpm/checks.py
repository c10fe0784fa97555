"""Checks of arguments, and the error of one that does not fit: `name: what was given, what is accepted`.

Each check returns the value as the type that it stands for. Needs no torch.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing import TypeGuard

    from torch import Tensor

MAX_SEED = 2**63 - 1
"""Of a seed, and of an ordinal of a sample."""
LONGEST = 240
"""Characters of an error, the paths before it aside."""
LONG_WORD = 30
"""Characters: words of more lose their middle first where an error is too long."""


class BadArgument(ValueError):
    """An argument that does not fit: ``argument: given given, accepted accepted``.

    It reads as one line of `LONGEST` characters, whatever was given: the middle of that is left out.

    Attributes:
        argument: its name; several, as in ``"sigma_min, sigma_max"``, where they do not fit one another.
        given: what was given, in words.
        accepted: what is accepted, in words.
    """

    def __init__(self, argument: str, given: str, accepted: str) -> None:
        super().__init__(argument, given, accepted)  # all three, so that it is whole from another process
        self.argument = argument
        self.given = given
        self.accepted = accepted

    def __str__(self) -> str:
        room = LONGEST - len(f"{self.argument}:  given, {self.accepted} accepted")
        return f"{self.argument}: {fitted(self.given, max(140, room))} given, {self.accepted} accepted"


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an integer, NumPy's included, and no bool."""
    # By far the most are of Python's own type, of which the abstract class need not be asked.
    return type(value) is int or (isinstance(value, numbers.Integral) and not isinstance(value, bool))


def whole(name: str, value: object, *, least: int, most: int | None = None) -> int:
    """The integer, from ``least`` to ``most``."""
    if not is_whole(value) or value < least or (most is not None and value > most):
        accepted = f"of at least {least}" if most is None else f"in {_interval(least, most)}"
        raise BadArgument(name, quoted(value), f"an integer {accepted}")
    return int(value)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite real number, NumPy's included, and no bool."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def check_number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    otherwise: str = "",
) -> float:
    """The finite number, in [low, high], where ``above`` and ``below`` are bounds that it does not reach.

    ``otherwise`` says what the caller takes besides, such as None.
    """
    if not is_number(value) or not (low <= value <= high and above < value < below):
        first = f"({above:g}" if above >= low else f"[{low:g}"
        last = f"{below:g})" if below <= high else f"{high:g}]"
        accepted = f" in {first}, {last}"
        if max(low, above) == -math.inf and min(high, below) == math.inf:
            accepted = ""
        elif min(high, below) == math.inf:
            accepted = f" above {above:g}" if above >= low else f" of at least {low:g}"
        others = f", or {otherwise}," if otherwise else ""
        raise BadArgument(name, quoted(value), f"a finite number{accepted}{others}")
    return float(value)


def check_choice(name: str, value: object, accepted: Collection[object]) -> None:
    """BadArgument unless ``value`` is one of ``accepted``, which are named."""
    kinds = tuple({type(one) for one in accepted})
    # By kind first: an array is equal to nothing in one word.
    if not isinstance(value, kinds) or value not in tuple(accepted):
        raise BadArgument(name, quoted(value), f"one of {', '.join(map(str, accepted))}")


def check_known(names: Collection[str], accepted: Collection[str], *, of: str) -> None:
    """BadArgument for those of ``names`` that are none of the options ``accepted`` of something."""
    unknown = [shortened(name) for name in names if name not in accepted]
    if unknown:
        raise BadArgument(", ".join(unknown[:3]), f"unknown to {of},", ", ".join(accepted) or "none")


def image_shape(shape: Iterable[int]) -> tuple[int, int, int]:
    """``(C, H, W)`` of an image."""
    try:
        values = tuple(shape)
    except TypeError:
        values = ()
    if len(values) != 3 or not all(is_whole(value) and value >= 1 for value in values):
        raise BadArgument("shape", quoted(values or shape), "three positive integers (C, H, W)")
    channels, height, width = map(int, values)
    return channels, height, width


def state_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape of one state, of any rank: ``(C, H, W)`` of an image, ``(D,)`` of a vector."""
    try:
        values = tuple(shape)
    except TypeError:
        values = ()
    if not values or not all(is_whole(value) and value >= 1 for value in values):
        raise BadArgument(
            "shape", quoted(values or shape), "one or more positive integers, as (C, H, W) of an image,"
        )
    return tuple(map(int, values))


def check_values(name: str, values: Tensor | npt.NDArray[np.generic]) -> None:
    """BadArgument for NaN or infinity in a tensor or array."""
    if not bool((np.isfinite(values) if isinstance(values, np.ndarray) else values.isfinite()).all()):
        raise BadArgument(name, "NaN or infinity among the values", "finite numbers")


def check_count(name: str, given: int, count: int, *, of: str = "images", accepted: str = "one each") -> None:
    """BadArgument unless as many are given as there are images, or others ``of`` a kind."""
    if given != count:
        raise BadArgument(name, f"{given} for {count} {of}", accepted)


def seed_list(values: Any, name: str = "seeds") -> list[int]:
    """Seeds as a list: at least one integer in [0, 2**63); a tensor or array of them has one dimension."""
    accepted = "a flat list of at least one integer in [0, 2**63)"
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        raise BadArgument(name, quoted(values), accepted)
    if getattr(values, "ndim", 1) != 1 or len(values) == 0:
        raise BadArgument(name, shown(values) if hasattr(values, "shape") else quoted(values), accepted)
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    for value in listed:
        if not is_whole(value) or not 0 <= value <= MAX_SEED:
            raise BadArgument(name, quoted(value), "integers in [0, 2**63)")
    return [int(value) for value in listed]


def falling(
    name: str, values: npt.ArrayLike, *, least: int, most: int = MAX_SEED, strictly: bool = True
) -> npt.NDArray[np.int64]:
    """Integers from ``most`` down to ``least``, at least one, each below the one before it, or, where not
    ``strictly``, not above it."""
    listed = np.asarray(values)
    whole_numbers = listed.ndim == 1 and len(listed) > 0 and listed.dtype.kind in "iu"
    below = np.less if strictly else np.less_equal
    falls = whole_numbers and np.all(below(listed[1:], listed[:-1]))
    if not falls or listed[0] > most or listed[-1] < least:
        span = f"none below {least}" if most == MAX_SEED else f"in {_interval(least, most)}"
        how = "strictly descending" if strictly else "descending"
        raise BadArgument(name, quoted(values), f"at least one integer, {how}, {span}")
    return listed.astype(np.int64)


def shown(value: object) -> str:
    """What was given for a tensor: its shape, or what it is instead."""
    if value is None:
        return "None"
    return f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__


def _interval(least: int, most: int) -> str:
    power = (most + 1).bit_length() - 1
    return f"[{least}, 2**{power})" if power >= 32 and most + 1 == 2**power else f"[{least}, {most}]"


def quoted(value: object) -> str:
    """A value as it is typed, on one line, cut to be part of an error."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python does not write out an integer of more than 4,300 digits
        return f"{type(value).__name__} of many digits"


def shortened(text: str, most: int = 80) -> str:
    """Text on one line, cut to be part of an error."""
    line = _printable(" ".join(text[: 4 * most].split()))
    return line if len(line) <= most and len(text) <= 4 * most else f"{line[: most - 3]}..."


def fitted(text: str, most: int) -> str:
    """Words on one line, of which the longest, such as paths, lose their middle; then the line does: where it
    ends is said what is wrong with the value before."""
    if len(text) > 8 * most:
        text = text[: 4 * most] + text[-4 * most :]
    line = text if text.isprintable() else _printable(" ".join(text.split()))
    while len(line) > most:
        longest = max(line.split(" "), key=len)
        if len(longest) <= LONG_WORD:
            return f"{line[: most // 2]}...{line[3 - (most - most // 2) :]}"
        kept = max(LONG_WORD, len(longest) - len(line) + most) - 3
        line = line.replace(longest, f"{longest[: kept // 3]}...{longest[kept // 3 - kept :]}")
    return line


def _printable(text: str) -> str:
    """Text with what moves the cursor or has no shape written as Python escapes it."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
