"""The names of a function's parameters, which objects are recognised by."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable


def parameters_of(function: Callable[..., object]) -> tuple[frozenset[str], bool]:
    """Names of a function's parameters, without self and the starred ones; and whether there are starred.

    Chains ask before each call, and `inspect` takes a tenth of a millisecond.
    """
    if inspect.ismethod(function):
        return _parameters_of(function.__func__, is_method=True)
    return _parameters_of(function, is_method=False)


@functools.lru_cache(maxsize=256)
def _parameters_of(function: Callable[..., object], *, is_method: bool) -> tuple[frozenset[str], bool]:
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    called: Callable[..., object] = types.MethodType(function, object()) if is_method else function
    parameters = inspect.signature(called).parameters.values()
    named = frozenset(p.name for p in parameters if p.kind not in starred and p.name != "self")
    return named, any(p.kind in starred for p in parameters)
