"""Objects within objects: wrappers that are seen through, and holders of which the part to give is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from fastddpm.dropin.peer import Peer
from fastddpm.wrappers import AVERAGE, SAME

MAX_DEPTH = 3
"""Attributes of attributes of a holder that are looked at."""
MAX_WRAPPERS = 8
"""Around one another."""
MAX_LOOKED_AT = 512
"""Objects within a holder that are looked at."""
Recognises = Callable[[object], bool]


def seen_through(obj: object, recognises: Recognises) -> tuple[str, Peer] | None:
    """The object inside wrappers of one module and its attribute, such as ``.module``; None if not known.

    Args:
        obj: a wrapper, in any number of others: DataParallel, DistributedDataParallel, a compiled module,
            Fabric's; or an EMA of ema_pytorch, whose average is taken.
        recognises: whether an object is known.
    """
    path = ""
    for _ in range(MAX_WRAPPERS):
        name, inside = _inside(obj)
        if inside is None:
            return None
        path += f".{name}"
        if recognises(inside):
            return path, inside
        obj = inside
    return None


def held(obj: object, recognises: Recognises) -> list[str]:
    """The attributes of an object, such as ``.ema.ema_model``, where something known is held. Never raises.

    Only what stands in its dictionaries is looked at: no property of an unknown object is run.
    """
    found: list[str] = []
    seen = {id(obj)}
    level = [("", obj)]
    for _ in range(MAX_DEPTH):
        below = []
        for path, holder in level:
            for name, value in _attributes(holder):
                if id(value) in seen or len(seen) > MAX_LOOKED_AT:
                    continue
                seen.add(id(value))
                further = ("", value) if recognises(value) else seen_through(value, recognises)
                if further is not None:
                    found.append(f"{path}.{name}{further[0]}")
                else:
                    below.append((f"{path}.{name}", value))
        level = below
    return found


def _inside(obj: object) -> tuple[str, nn.Module | None]:
    parts = vars(obj).get("_modules") if isinstance(obj, nn.Module) else None
    for name in (*SAME, AVERAGE):
        part = (parts or {}).get(name)
        if isinstance(part, nn.Module):
            return name, part
    return "", None


def _attributes(obj: object) -> Iterator[tuple[str, object]]:
    """Modules and other objects with attributes of their own that an object holds."""
    try:
        own = dict(vars(obj))
    except Exception:  # no dictionary, or one that is not for reading
        return
    parts = own.pop("_modules", None)
    for name, value in {**own, **(parts if isinstance(parts, dict) else {})}.items():
        if isinstance(name, str) and not isinstance(value, (type, str, int, float, Tensor)):
            yield name, value
