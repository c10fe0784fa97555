"""The lanes of a scheduler: whose turn it is, and what they need from its sampler."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from fastddpm.engine import Loop, executors
from fastddpm.engine.ahead import rows_at_once
from fastddpm.runner import Runner
from fastddpm.serving.drawing import Chain, Kind
from fastddpm.serving.lane import Lane, MakeLoop
from fastddpm.serving.pace import Pace
from fastddpm.serving.seating import seated

CAPTURED_STRIDE = 8
"""Steps that a captured engine runs between two looks at who waits."""
PACES = 64
"""Kinds whose pace is remembered."""


class Lanes:
    """Lanes of several kinds, a step of one of them at a time.

    Args:
        most: images that share a step at most.
        limit: lanes at most.
        rows: of a lane's table.
    """

    def __init__(self, most: int, limit: int, rows: int) -> None:
        self._most, self._limit, self._rows = most, limit, rows
        self._lanes: dict[Kind, Lane] = {}
        self._paces: OrderedDict[Kind, Pace] = OrderedDict()

    def choose(self, chains: Sequence[Chain], runner: Runner) -> tuple[Lane, list[Chain], int]:
        """Whose step is next: a lane, chains of its kind, and their batch size.

        That of the first who has a lane or may have a new one. Behind somebody who waits until a lane is
        empty nobody begins, so that one will be.

        Args:
            chains: all there are, one or more, the first to be drawn in front.
            runner: of the sampler; makes loops.
        """
        here = {chain.kind for chain in chains if chain.has_begun}
        self._lanes = {kind: lane for kind, lane in self._lanes.items() if kind in here}
        ready, is_held, lane = list[Chain](), False, None
        for chain in chains:
            if chain.kind not in self._lanes and len(self._lanes) >= self._limit:
                is_held = True
            elif chain.has_begun or not is_held:
                lane = lane or self._lane(chain.kind, runner)
                if chain.kind == lane.kind:
                    ready.append(chain)
        assert lane is not None
        return lane, *seated(ready, self._most, self._pace(lane.kind))

    def leave(self, chain: Chain) -> None:
        """Lets a chain go, wherever it is."""
        if chain.kind in self._lanes:
            self._lanes[chain.kind].leave(chain)

    def clear(self) -> None:
        """Gives all lanes up."""
        self._lanes.clear()

    def remove(self, lane: Lane) -> None:
        """Gives a lane up with all that is in it."""
        self._lanes.pop(lane.kind, None)

    def note(self, kind: Kind, slots: int, seconds: float) -> None:
        """A step of a kind in so many slots took so long."""
        self._pace(kind).note(slots, seconds)

    def _lane(self, kind: Kind, runner: Runner) -> Lane:
        if kind not in self._lanes:
            self._lanes[kind] = Lane(kind, self._rows, self._maker(runner), runner.copies)
        return self._lanes[kind]

    def _pace(self, kind: Kind) -> Pace:
        pace = self._paces.setdefault(kind, Pace())
        self._paces.move_to_end(kind)
        if len(self._paces) > PACES:
            self._paces.popitem(last=False)
        return pace

    def _maker(self, runner: Runner) -> MakeLoop:
        """What makes a lane's loops."""

        def make(kind: Kind, slots: int, example: Chain, mixed: bool) -> Loop:
            shape = (slots, *kind.shape)
            ring = rows_at_once(shape) if executors.is_uncompiled(runner.engine, runner.device) else 0
            return runner.loops.get(
                runner.model,
                kind.case(slots, ring, mixed=mixed),
                device=runner.device,
                dtype=runner.dtype,
                n_steps=CAPTURED_STRIDE,
                capacity=self._rows,
                time_dtype=torch.float32 if kind.tells_levels else torch.int64,
                cond={name: _widened(value, slots) for name, value in example.batch.cond.items()},
                condition=None if kind.condition is None else _widened(example.batch.condition, slots),
            )

        return make


def _widened(value: Tensor | None, slots: int) -> Tensor:
    """A tensor of the shape that so many slots are given, of which one is given this."""
    assert value is not None
    return value[:1].expand(slots, *value.shape[1:])
