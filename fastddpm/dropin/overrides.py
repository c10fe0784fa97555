"""Methods of a step that a subclass or an instance has in the place of the published class's.

The steps taken here are those of the published class, so that an object which computes others is refused by
the name of the method. A class that someone copied, and changed, has one method of each name and cannot be
told from the published one.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence

from fastddpm.checks import BadArgument, shortened
from fastddpm.dropin.peer import Peer

_LIBRARIES = (
    "fastddpm",
    "diffusers",
    "denoising_diffusion_pytorch",
    "guided_diffusion",
    "improved_diffusion",
)
"""Packages whose own subclasses are known here."""
_SUBCLASSES = ("SpacedDiffusion", "LearnedGaussianDiffusion")
"""Of these, those that are copied into other packages."""
_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_published(obj: Peer, methods: Sequence[str], argument: str = "obj") -> None:
    """BadArgument where an object has a step of its own, or part of one.

    Args:
        obj: a scheduler, pipeline or diffusion object.
        methods: those that make its steps.
        argument: what it is called in the error.

    Raises:
        ValueError: naming the method. One set on an instance that takes ``(*args, **kwargs)`` alone, as those
            that count or log do, is a UserWarning instead.
    """
    kind = type(obj)
    own = vars(obj) if hasattr(obj, "__dict__") else {}
    # `object` has none of these methods.
    if all(map(_is_published, kind.__mro__[:-1])):
        methods = [name for name in methods if name in own]
    for name in methods:
        owners = [one for one in kind.__mro__ if name in vars(one)]
        if owners[1:] and not _is_published(owners[0]):
            given = f"{shortened(kind.__name__)}, whose {name} takes the place of {owners[1].__name__}'s,"
            raise BadArgument(argument, given, "an object of the published class, whose steps are repeated,")
        if name not in own or not owners:
            continue
        if not _is_starred(own[name]):
            given = f"{shortened(kind.__name__)} with a {name} of its own set on it,"
            raise BadArgument(argument, given, "one without it, since the published steps are repeated,")
        warnings.warn(
            f"{argument}: the {name} set on this {kind.__name__} is not called: the steps repeated here are "
            "those of the published class",
            UserWarning,
            stacklevel=4,
        )


def _is_published(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES or kind.__name__ in _SUBCLASSES


def _is_starred(function: object) -> bool:
    """Whether a function takes whatever it is given; False where that cannot be told."""
    try:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return bool(parameters) and all(one.kind in _STARRED for one in parameters)
