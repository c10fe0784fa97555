"""What a module holds, found in one quick pass: chains look before each call whether it is still the same.

`torch.nn.Module.parameters` and `state_dict` take milliseconds for a network of 400 tensors, most of it for
names that nobody asks for here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

T_co = TypeVar("T_co", covariant=True)


class Holder(Protocol[T_co]):
    """What a module keeps its parts or tensors in: a dictionary, or what stands for one when scripted."""

    def values(self) -> Iterable[T_co]: ...


_holder: Callable[[nn.Module], Holder[nn.Module | None]] = attrgetter("_modules")
_dtype: Callable[[Tensor], torch.dtype] = attrgetter("dtype")
_hooks: Callable[[nn.Module], Mapping[int, object]] = attrgetter("_forward_hooks")
_pre_hooks: Callable[[nn.Module], Mapping[int, object]] = attrgetter("_forward_pre_hooks")


class Inventory:
    """The parts and tensors of modules, looked at again and again.

    A look compares what every part holds with what it held at the last one, object by object: a part put in
    the place of another, added or taken away is seen. Tensors are read when asked for.

    Args:
        modules: with all that is below them.

    Attributes:
        parts: the modules and all their submodules, each once, as they were at the last look.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)
        self.parts: list[nn.Module] = []
        self._holders: list[Holder[nn.Module | None]] = []
        self._below: list[nn.Module | None] = []
        self._children: Iterable[Iterable[nn.Module | None]] = ()
        self._tensors: Iterable[Iterable[Tensor | None]] = ()
        self._find()

    def look(self) -> Inventory:
        """Brings the parts up to date."""
        # Equal here is the same: lists compare their elements by identity first.
        is_same = list(map(_holder, self.parts)) == self._holders
        if not is_same or list(chain.from_iterable(self._children)) != self._below:
            self._find()
        return self

    def tensors(self) -> list[Tensor]:
        """The parameters and buffers of the parts; one that is shared may come twice."""
        return [tensor for tensor in chain.from_iterable(self._tensors) if tensor is not None]

    def places(self) -> int:
        """A number that changes when a tensor lies elsewhere or has another dtype."""
        tensors = self.tensors()
        return hash((*map(Tensor.data_ptr, tensors), *map(_dtype, tensors)))

    def is_hooked(self) -> bool:
        """Whether a part has hooks around its forward."""
        return any(map(_hooks, self.parts)) or any(map(_pre_hooks, self.parts))

    def hooks(self) -> tuple[int, ...]:
        """The hooks around the parts' forwards, by the numbers that torch gives each but once."""
        held = (*map(_hooks, self.parts), *map(_pre_hooks, self.parts))
        return tuple(chain.from_iterable(held))

    def _find(self) -> None:
        found: dict[int, nn.Module] = {}
        level = self._modules
        while level:
            found.update((id(part), part) for part in level)
            children = [child for part in level for child in part._modules.values() if child is not None]
            level = [child for child in children if id(child) not in found]
        self.parts = list(found.values())
        self._holders = list(map(_holder, self.parts))
        self._children = _values(self._holders)
        self._below = list(chain.from_iterable(self._children))
        self._tensors = _values([held for part in self.parts for held in (part._parameters, part._buffers)])


def _values(holders: Sequence[Holder[T_co]]) -> Iterable[Iterable[T_co]]:
    """Of dictionaries, the views of their values, which stay up to date; others are asked each time."""
    if all(isinstance(holder, dict) for holder in holders):
        return [holder.values() for holder in holders]
    return _Asked(holders)


class _Asked(Generic[T_co]):
    """The values of holders as they are when iterated: those of scripted modules are no dictionaries."""

    def __init__(self, holders: Sequence[Holder[T_co]]) -> None:
        self._holders = holders

    def __iter__(self) -> Iterator[Iterable[T_co]]:
        return (holder.values() for holder in self._holders)
