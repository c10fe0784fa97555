"""Arguments held to the annotations of the function that takes them, before its body runs.

    @checked
    def load(folder: str | Path, *, ema: bool = True) -> Sampler: ...

    load(3)         # BadArgument: folder: 3 given, a path accepted

What an annotation says is checked where a mistake would show late or not at all: bools, callables, tensors,
paths, mappings, and classes. Numbers, sequences and names have ranges, lengths and lists besides, which the
checks of `fastddpm.checks` in the body know; an annotation with one of them among its alternatives is left
to the body. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, is_typeddict

import numpy as np

import fastddpm
from fastddpm.checks import BadArgument, quoted

F = TypeVar("F", bound=Callable[..., Any])
PLAIN = (bool, int, float, str, bytes, range, type(None))


@dataclasses.dataclass(frozen=True)
class Accepted:
    """The values that an annotation allows.

    Attributes:
        kinds: instances of these.
        tests: and what one of these is true of.
        words: both, for an error.
    """

    kinds: tuple[type, ...]
    tests: tuple[Callable[[object], bool], ...]
    words: str

    def check(self, name: str, value: object) -> None:
        """BadArgument for any other value."""
        if not isinstance(value, self.kinds) and not any(test(value) for test in self.tests):
            raise BadArgument(name, in_words(value), self.words)


PATHS = Accepted((str, os.PathLike), (), "a path")
TEXT = Accepted((str,), (), "text")


def checked(function: F) -> F:
    """The function with its arguments checked, under its name and signature.

    What is given as ``**options`` is for the functions that they are passed on to. The annotations are read
    at the first call. Where there is ``cond``, a name that is no argument is told to go into it.
    """
    found: list[tuple[dict[str, Accepted], list[tuple[str, Accepted | None]]]] = []
    parameters = inspect.signature(function).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    takes = frozenset(parameters) if "cond" in parameters and not takes_any else frozenset()

    @functools.wraps(function)
    def held(*args: Any, **kwargs: Any) -> Any:
        if not found:
            found.append(_of_arguments(function))
        if takes and not kwargs.keys() <= takes:
            raise unexpected(function.__name__, next(name for name in kwargs if name not in takes))
        by_name, by_place = found[0]
        for (name, accepted), value in zip(by_place, args, strict=False):
            if accepted is not None and not isinstance(value, accepted.kinds):
                accepted.check(name, value)
        for name, value in kwargs.items():
            if name in by_name and not isinstance(value, by_name[name].kinds):
                by_name[name].check(name, value)
        return function(*args, **kwargs)

    return cast("F", held)


def unexpected(function: str, name: str) -> TypeError:
    """The error for a keyword argument that is none of a function with ``cond``."""
    return TypeError(
        f"{function}() got an unexpected keyword argument {name!r}; "
        f"what the model takes by that name is given as cond={{{name!r}: ...}}"
    )


def check_fields(record: object) -> None:
    """The same for a dataclass's fields, for its ``__post_init__``.

    Raises:
        ValueError: naming the field.
    """
    for name, accepted in _of_fields(cast("Hashable", type(record))).items():
        accepted.check(name, getattr(record, name))


def in_words(value: object) -> str:
    """What was given where something else is wanted: a short value, a shape, or of what class it is."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, PLAIN) or (isinstance(value, (list, tuple, Mapping)) and len(value) == 0):
        return quoted(value)
    shape = getattr(value, "shape", None)
    if shape is not None and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(shape)}"
    return type(value).__name__


def _of_arguments(
    function: Callable[..., Any],
) -> tuple[dict[str, Accepted], list[tuple[str, Accepted | None]]]:
    """By name, and in the order of places."""
    inner = inspect.unwrap(function)
    parameters = inspect.signature(inner).parameters.values()
    named = [one for one in parameters if one.kind in NAMED]
    each = {one.name: _accepted(one.annotation, inner.__globals__) for one in named}
    by_place = [(one.name, each[one.name]) for one in named if one.kind != one.KEYWORD_ONLY]
    return {name: accepted for name, accepted in each.items() if accepted is not None}, by_place


# Kinds of parameters, and annotations that say nothing or are left to the body.
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
LEFT = (int, float, str, object, inspect.Parameter.empty)


@functools.cache
def _of_fields(kind: Any) -> dict[str, Accepted]:
    module = vars(sys.modules[kind.__module__])
    each = {field.name: _accepted(field.type, module) for field in dataclasses.fields(kind)}
    return {name: accepted for name, accepted in each.items() if accepted is not None}


class _Public(dict[str, Any]):
    """The names of the package, for annotations whose module imports them for type checking alone."""

    def __missing__(self, name: str) -> Any:
        if name == "torch":
            return importlib.import_module(name)
        if name not in fastddpm.__all__:
            raise KeyError(name)
        return getattr(fastddpm, name)


def _accepted(annotation: Any, names: dict[str, Any]) -> Accepted | None:
    """None where the body is to check."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names, _Public())
        except NameError:  # of another package, imported for type checking alone
            return None
    if get_origin(annotation) in (Union, types.UnionType):
        alternatives = set(get_args(annotation))
        if alternatives <= {str, type(None)}:  # names, mostly
            return None
        paths = [PATHS] if {str, Path} <= alternatives else []
        some = [one for one in get_args(annotation) if not (paths and one in (str, Path))]
        every = [TEXT if one is str else _accepted(one, names) for one in some]
        return None if None in every else _either([*paths, *(one for one in every if one is not None)])
    return _of_one(annotation)


def _either(alternatives: Sequence[Accepted]) -> Accepted:
    kinds = tuple(kind for one in alternatives for kind in one.kinds)
    tests = tuple(test for one in alternatives for test in one.tests)
    words = sorted(dict.fromkeys(one.words for one in alternatives), key="None".__eq__)
    return Accepted(kinds, tests, " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words))


def _of_one(annotation: Any) -> Accepted | None:
    """Of an annotation that is no union."""
    origin = get_origin(annotation) or annotation
    if annotation is None or annotation is type(None):
        return Accepted((type(None),), (), "None")
    if annotation is bool:
        return Accepted((bool, np.bool_), (), "True or False")
    if origin is Callable:
        return Accepted((), (_is_called,), "a callable")
    if is_typeddict(annotation) or origin in (Mapping, dict):
        return Accepted((Mapping,), (), "a mapping")
    # In Python 3.10 list[int] is an instance of type.
    if get_origin(annotation) is not None or not isinstance(annotation, type) or annotation in LEFT:
        return None
    name = annotation.__name__
    if annotation.__module__.partition(".")[0] == "torch":
        name = "tensor" if name == "Tensor" else f"torch {name}"
    words = f"{'an' if name[0] in 'AEIO' else 'a'} {name}"
    if getattr(annotation, "_is_protocol", False):
        members = [name for name in dir(annotation) if _is_a_member(name)]
        return Accepted((), (functools.partial(_has, members),), f"{words} ({', '.join(members)})")
    return Accepted((annotation,), (), words)


def _is_called(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def _is_a_member(name: str) -> bool:
    return name == "__call__" or not name.startswith("_")


def _has(members: Sequence[str], value: object) -> bool:
    return not isinstance(value, type) and all(hasattr(value, name) for name in members)
