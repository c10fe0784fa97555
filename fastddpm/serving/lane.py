"""A lane: slots whose chains share their steps, on loops of a few batch sizes.

The host knows from the plans when a chain ends, so nothing is read from the device between two steps. What
changes in the slots goes there in one parcel. A chain that is left out keeps its state (`parked`), and goes
on from it in any other slot, wherever in the arena its plan is then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from weakref import WeakSet

import torch
from torch import Tensor

from fastddpm.copies import Copies
from fastddpm.engine import Loop
from fastddpm.plans.arena import IDLE, Arena
from fastddpm.serving.drawing import Chain, Kind
from fastddpm.serving.parked import Parked

MakeLoop = Callable[[Kind, int, Chain, bool], Loop]


class Lane:
    """Chains of one kind, each at its own row of its own plan.

    Args:
        kind: of all of them.
        rows: of the arena.
        make: gives the loop for a number of slots, with guided chains in some or not, and a chain as an
            example.
        copies: as of `fastddpm.engine.Loop.load`.

    Attributes:
        slots: the batch size of the steps.
        is_new: whether the loop has not run yet, so that its next step prepares the network too.
    """

    def __init__(self, kind: Kind, rows: int, make: MakeLoop, copies: Copies | None) -> None:
        self.kind, self._make, self._copies = kind, make, copies
        self._arena = Arena(rows, kind.time_dtype, kind.rows)
        self.slots, self.is_new = 0, True
        # Of each chain its slot, and of a guided one the slot of its half without the condition.
        self._places: dict[Chain, list[int]] = {}
        self._parked = Parked()
        self._is_mixed = False
        self._loop: Loop | None = None
        self._asked: tuple[list[Chain], int] | None = None
        # Loops that have run, and those whose tables hold the arena as it is.
        self._ran = WeakSet[Loop]()
        self._current = WeakSet[Loop]()

    @property
    def chains(self) -> list[Chain]:
        """Those that share the steps."""
        return list(self._places)

    def leave(self, chain: Chain) -> None:
        """Lets a chain go, wherever it is; the others go on."""
        if chain in self._places:
            del self._places[chain]
            self._arena.leave(chain.plan)
            self._asked = None
        elif chain in self._parked:
            self._parked.drop(chain)

    def stride(self, most: int) -> int:
        """Steps until something is to be done for one of the chains, ``most`` at most."""
        return min([most, *(chain.next_stop() for chain in self._places)])

    def run(self, steps: int) -> None:
        """Runs so many steps of those that share them."""
        assert self._loop is not None
        self._loop.run(steps)
        if self.is_new:
            self._ran.add(self._loop)
            self.is_new = False
        for chain in self._places:
            chain.drawing.done_steps += steps

    def image(self, chain: Chain) -> Tensor:
        """The state of a chain, ``(1, C, H, W)``, a tensor of its own."""
        return self._of(chain, "x").clone()

    def x0(self, chain: Chain) -> Tensor:
        """The last predicted x0 of a chain, ``(1, C, H, W)``, a tensor of its own; where it is kept."""
        return self._of(chain, "x0").clone()

    def _of(self, chain: Chain, name: str) -> Tensor:
        assert self._loop is not None
        place = self._places[chain][0]
        values: Tensor = getattr(self._loop.buffers, name)
        return values[place : place + 1]

    def arrange(self, chains: Sequence[Chain], size: int) -> None:
        """Has chains share the steps from here on, and sets aside all others.

        Args:
            chains: the first of them for certain; others as far as there is room for the rows of their plans.
            size: slots; as many as they need, or more.
        """
        if self._asked == (chains, size):
            return
        self._asked = list(chains), size
        before, there = self._loop, self._places
        chains = self._entered(chains)
        mixed = any(chain.slots > 1 for chain in chains)
        if before is None or (size, mixed) != (self.slots, self._is_mixed):
            self._loop = self._make(self.kind, size, chains[0], mixed)
            self.slots, self._is_mixed = size, mixed
        loop = self._loop
        assert loop is not None
        self.is_new = loop not in self._ran
        staying = {one: places for one, places in there.items() if one in chains and loop is before}
        if before is not None:
            self._parked.put({one: places[0] for one, places in there.items() if one not in staying}, before)
        self._places = {**staying, **self._seats([one for one in chains if one not in staying], staying)}
        back = {one: self._places[one][0] for one in chains if one in self._parked}
        begun = [self._places[one][0] for one in chains if one not in staying and one not in back]
        self._tell(loop, begun, list(back.values()))
        self._parked.take(back, loop)
        for chain in chains:
            chain.has_begun = True

    def _entered(self, chains: Sequence[Chain]) -> list[Chain]:
        """Those of the chains whose plans are in the arena now, each told where.

        What nobody walks there is given up in the order in which it was left: of the chains that go on, the
        last to be drawn first.
        """
        for chain in [one for one in self._places if one not in chains]:
            self._arena.leave(chain.plan)
        for chain in reversed([one for one in chains if one in self._places]):
            self._arena.leave(chain.plan)
        entered = []
        for chain in chains:
            known = chain.plan in self._arena
            base = self._arena.enter(chain.plan)
            if base is not None:
                chain.base = base
                entered.append(chain)
                if not known:
                    self._current.clear()
        return entered

    def _seats(self, chains: Sequence[Chain], staying: Mapping[Chain, list[int]]) -> dict[Chain, list[int]]:
        """Slots for chains, of those that are free."""
        taken = {place for places in staying.values() for place in places}
        free = (place for place in range(self.slots) if place not in taken)
        return {chain: [next(free) for _ in range(chain.slots)] for chain in chains}

    def _tell(self, loop: Loop, begun: Sequence[int], back: Collection[int]) -> None:
        """Tells the device of the slots: of those in which chains begin, or go on."""
        if loop not in self._current:
            filled = slice(len(self._arena))
            table, told = (torch.tensor(rows[filled]) for rows in (self._arena.table, self._arena.model_time))
            loop.hold_arena(table, told, learned_range=self.kind.learned_range, copies=self._copies)
            self._current.add(loop)
        loop.admit(self._values(), begun, self._conditions(), anew=list(back))

    def _values(self) -> dict[str, Tensor]:
        """The small values of all slots; one without a chain rests at the row that changes nothing."""
        count = self.slots
        counter, base = [[IDLE, 0] for _ in range(count)], [0] * count
        advance, seeds = [0] * count, [0] * count
        for chain, (place, *_) in self._places.items():
            counter[place] = [chain.base + chain.drawing.done_steps, 0]
            base[place], advance[place], seeds[place] = chain.base, 1, chain.drawing.seed
        numbers = {"counter": counter, "base": base, "advance": advance, "seeds": seeds}
        values = {name: torch.tensor(each) for name, each in numbers.items()}
        if self._is_mixed:
            values |= self._halves()
        for name, *_ in self.kind.conditions:
            values[f"cond {name}"] = self._spread({one: one.batch.cond[name] for one in self._places})
        return values

    def _halves(self) -> dict[str, Tensor]:
        """Where the network runs the halves of guided chains, and their scales."""
        source, without, guidance = list(range(self.slots)), list(range(self.slots)), [1.0] * self.slots
        for chain, places in self._places.items():
            if chain.batch.guidance is not None:
                place, other = places
                source[other], without[place] = place, other
                guidance[place] = float(chain.batch.guidance[0])
        halves = torch.tensor([*without, *range(self.slots)])
        return {"source": torch.tensor(source), "halves": halves, "guidance": torch.tensor(guidance)}

    def _conditions(self) -> Tensor | None:
        """The condition images of all slots."""
        given = {one: one.batch.condition for one in self._places if one.batch.condition is not None}
        return self._spread(given) if given else None

    def _spread(self, given: Mapping[Chain, Tensor]) -> Tensor:
        """What the chains are given, ``(1, ...)`` or, first without the condition, ``(2, ...)``, by slots."""
        example = next(iter(given.values()))
        spread = example.new_zeros((self.slots, *example.shape[1:]))
        for chain, value in given.items():
            # One by one: a list of places would be an index that the host sends and waits for.
            for place, row in zip(self._places[chain], value.flip(0), strict=False):
                spread[place] = row
        return spread
