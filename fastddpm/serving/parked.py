"""States of chains that were left out of a batch on their way, until they are taken up again.

They are rows of a few tensors of the device, copied to and from the buffers of loops by index: in stream
order, and without a look at the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fastddpm.engine import Loop
from fastddpm.serving.drawing import Chain
from fastddpm.transfer import to_device

STATES = {"x": 0, "x0": 0, "kept": 1}
"""What a chain has in a loop's buffers, and the dimension of the samples."""


class Parked:
    """The states of some chains of one kind.

    There is room for as many as were here at once, in powers of 2.
    """

    def __init__(self) -> None:
        self._rows: dict[Chain, int] = {}
        self._free: list[int] = []
        self._states: dict[str, Tensor] = {}

    def __contains__(self, chain: Chain) -> bool:
        return chain in self._rows

    def put(self, places: Mapping[Chain, int], loop: Loop) -> None:
        """Keeps the states of chains, each from its place in a loop."""
        if not places:
            return
        self._make_room(len(places), loop)
        self._rows |= {chain: self._free.pop() for chain in places}
        there, here = _indices(places.values(), loop), _indices(map(self._rows.__getitem__, places), loop)
        for name, dim in STATES.items():
            if name in self._states:
                held = getattr(loop.buffers, name).index_select(dim, there)
                self._states[name].index_copy_(dim, here, held)

    def take(self, places: Mapping[Chain, int], loop: Loop) -> None:
        """Brings the states of chains to their places in a loop, and keeps them no more."""
        if not places:
            return
        rows = [self._rows[chain] for chain in places]
        there, here = _indices(rows, loop), _indices(places.values(), loop)
        for name, dim in STATES.items():
            if name in self._states:
                held = self._states[name].index_select(dim, there)
                getattr(loop.buffers, name).index_copy_(dim, here, held)
        for chain in places:
            self.drop(chain)

    def drop(self, chain: Chain) -> None:
        """Keeps the state of a chain no more."""
        self._free.append(self._rows.pop(chain))

    def _make_room(self, more: int, loop: Loop) -> None:
        """Rows for so many chains more, with those that are here where they were."""
        before = len(self._rows) + len(self._free)
        needed = len(self._rows) + more
        if needed <= before:
            return
        count = 2 ** (needed - 1).bit_length()
        self._free += range(before, count)
        for name, dim in STATES.items():
            example = getattr(loop.buffers, name)
            if example is not None:
                shape = list(example.shape)
                shape[dim] = count
                grown = example.new_zeros(shape)
                if before:
                    grown.narrow(dim, 0, before).copy_(self._states[name])
                self._states[name] = grown


def _indices(places: Iterable[int], loop: Loop) -> Tensor:
    return to_device(torch.tensor(list(places)), loop.device)
