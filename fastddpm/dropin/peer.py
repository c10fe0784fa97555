"""What drop-ins of objects that hold a network and its buffers have in common."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument
from fastddpm.dropin.settings import Report

Peer: TypeAlias = Any
"""An object of a library without types, known by what it holds."""


class DropIn(ABC):
    """An object in the place of another: what it does not have itself is read from the original.

    Attributes:
        original: the object given to `fastddpm.optimize`, untouched.
    """

    original: Peer

    def __init__(self, original: Peer) -> None:
        self.original = original

    def __getattr__(self, name: str) -> Any:
        # Only what is not found otherwise comes here; copy and pickle ask before `original` is there.
        if name.startswith("__") or "original" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.original, name)

    @abstractmethod
    def report(self) -> Report:
        """What became of the original: network, engine, noise, what is fused and what is not."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}:\n{self.report()}"


def holds(
    obj: object, *, tensors: Sequence[str] = (), modules: Sequence[str] = (), anything: Sequence[str] = ()
) -> bool:
    """Whether an object has tensors, modules and other attributes of these names. Never raises.

    A class of such objects holds none of them: its attributes are not the values.
    """
    if isinstance(obj, type):
        return False
    kinds: list[tuple[str, type]] = [(name, Tensor) for name in tensors]
    kinds += [(name, nn.Module) for name in modules]
    kinds += [(name, object) for name in anything]
    try:
        return all(hasattr(obj, name) and isinstance(getattr(obj, name), kind) for name, kind in kinds)
    except Exception:  # a property of an unknown object may raise anything
        return False


def parameters_of(function: Callable[..., object]) -> tuple[str, ...]:
    """The names of a function's parameters."""
    return tuple(inspect.signature(function).parameters)


def check_device(device: torch.device | str | int, network: torch.device) -> None:
    """ValueError unless ``device``, as a peer's caller gives it, is where the network is."""
    given = torch.device(device)
    if given.type != network.type or (given.index is not None and given.index != (network.index or 0)):
        raise BadArgument("device", repr(str(given)), f"{str(network)!r}, where the network is")
