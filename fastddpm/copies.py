"""Weights that are copies of others', and are brought up to date before each chain.

They are copied anew for every chain, whatever else happened: writing to ``parameter.data``, as averaging
weights by hand does, changes values without any trace that could be asked for. A captured loop replays the
copying as part of one graph, which costs the host a launch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastddpm.weights import Inventory


@dataclasses.dataclass(frozen=True)
class Copies:
    """How copies are brought up to date.

    Attributes:
        refresh: does it, by operators of the device on tensors that stay where they are.
        places: a number that changes where those lie elsewhere.
    """

    refresh: Callable[[], None]
    places: int


def copying(targets: Sequence[Tensor], sources: Sequence[Tensor], places: int) -> Copies:
    """Copies of tensors, each of another's shape."""

    def refresh() -> None:
        with torch.inference_mode(False), torch.no_grad():
            torch._foreach_copy_(list(targets), list(sources))

    return Copies(refresh, places)


class InDtype:
    """A copy of a network in another dtype.

    Args:
        original: left as it is.
        dtype: of the copy.

    Attributes:
        module: the copy, with the weights of the last time that its `copies` were refreshed.
    """

    def __init__(self, original: nn.Module, dtype: torch.dtype) -> None:
        self.original, self.dtype = original, dtype
        self._inventory = Inventory([original])
        self.module, self._copies = self._made()

    def copies(self) -> Copies:
        """What gives the copy the original's weights and buffers.

        These are looked up anew where they lie elsewhere, and the copy is made anew where they are others.
        """
        places = self._inventory.look().places()
        if places != self._copies.places:
            ours, theirs = _tensors(self.module), _tensors(self.original)
            if list(map(_kind, ours)) == list(map(_kind, theirs)):
                self._copies = copying(ours, theirs, places)
            else:
                self.module, self._copies = self._made()
        return self._copies

    def _made(self) -> tuple[nn.Module, Copies]:
        module = copy.deepcopy(self.original).to(self.dtype).requires_grad_(False)
        places = self._inventory.look().places()
        return module, copying(_tensors(module), _tensors(self.original), places)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.shape, tensor.device, tensor.is_floating_point())
