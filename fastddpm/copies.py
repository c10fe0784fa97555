"""Weights that are copies of others', and are brought up to date before each chain.

They are copied anew for every chain, whatever else happened: writing to ``parameter.data``, as averaging
weights by hand does, changes values without any trace that could be asked for. A captured loop replays the
copying as part of one graph, which costs the host a launch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


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
        with torch.no_grad():
            torch._foreach_copy_(list(targets), list(sources))

    return Copies(refresh, places)
