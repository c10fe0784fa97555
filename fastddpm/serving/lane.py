"""A lane: slots whose chains share their steps, on loops of a few batch sizes.

The host knows from the plans when a chain ends, so nothing is read from the device between two steps. What
changes in the slots goes there in one parcel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fastddpm.copies import Copies
from fastddpm.engine import Loop
from fastddpm.plans.arena import IDLE, Arena
from fastddpm.serving.drawing import Chain, Kind

MakeLoop = Callable[[Kind, int, Chain, bool], Loop]


def buckets(most: int) -> list[int]:
    """Batch sizes: powers of 2, the number of chains, and twice that, which as many with guidance need."""
    powers = (2**power for power in range((2 * most).bit_length()))
    return sorted({*powers, most, 2 * most})


class Lane:
    """Chains of one kind, each at its own row of its own plan.

    Args:
        kind: of all of them.
        most: chains at most, each in one slot, or in two with guidance.
        rows: of the arena.
        make: gives the loop for a number of slots, with guided chains in some or not, and a chain as an
            example.
        copies: as of `fastddpm.engine.Loop.load`.

    Attributes:
        slots: the batch size of the steps.
    """

    def __init__(self, kind: Kind, most: int, rows: int, make: MakeLoop, copies: Copies | None) -> None:
        self.kind, self._most, self._make, self._copies = kind, most, make, copies
        self._arena = Arena(rows, kind.time_dtype, kind.rows)
        self.slots = 0
        # Of each chain its slot, and of a guided one the slot of its half without the condition.
        self._places: dict[Chain, list[int]] = {}
        self._is_mixed = False
        self._loop: Loop | None = None
        # Chains that have a slot to come, and loops whose tables hold the arena as it is.
        self._begun: list[Chain] = []
        self._current: list[Loop] = []
        self._is_changed = False

    @property
    def chains(self) -> list[Chain]:
        """Those that are here."""
        return [*self._places, *self._begun]

    @property
    def filled(self) -> int:
        """Slots in use."""
        return sum(chain.slots for chain in self.chains)

    def enter(self, chain: Chain) -> bool:
        """Takes a chain in, from its first step on; False while there is no slot, or no room for its rows."""
        if len(self.chains) >= self._most:
            return False
        known = chain.plan in self._arena
        base = self._arena.enter(chain.plan)
        if base is None:
            return False
        if not known:
            self._current.clear()
        chain.base = base
        self._begun.append(chain)
        self._is_changed = True
        return True

    def leave(self, chain: Chain) -> None:
        """Lets a chain go, wherever it is; the others go on."""
        if chain in self._begun:
            self._begun.remove(chain)
        else:
            del self._places[chain]
        self._arena.leave(chain.plan)
        self._is_changed = True

    def stride(self, most: int) -> int:
        """Steps until something is to be done for one of the chains, ``most`` at most."""
        return min([most, *(chain.next_stop() for chain in self.chains)])

    def run(self, steps: int) -> None:
        """Runs so many steps of all chains."""
        if self._is_changed:
            self._arrange()
        assert self._loop is not None
        self._loop.run(steps)
        for chain in self.chains:
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

    def _arrange(self) -> None:
        """Gives every chain its slots, in a loop of as few as are enough, and tells the device."""
        chains, before, moved = self.chains, self._loop, list[tuple[int, int]]()
        size = next(size for size in buckets(self._most) if size >= max(1, self.filled))
        mixed = any(chain.slots > 1 for chain in chains)
        self._is_changed = False
        if before is None or (size, mixed) != (self.slots, self._is_mixed):
            there, free = self._places, iter(range(size))
            self.slots, self._is_mixed = size, mixed
            self._places = {chain: [next(free) for _ in range(chain.slots)] for chain in chains}
            moved = [(there[chain][0], self._places[chain][0]) for chain in there]
            self._loop = self._make(self.kind, size, chains[0], mixed)
        else:
            taken = {place for places in self._places.values() for place in places}
            free = (place for place in range(size) if place not in taken)
            for chain in self._begun:
                self._places[chain] = [next(free) for _ in range(chain.slots)]
        places = [self._places[chain][0] for chain in self._begun]
        self._begun = []
        loop = self._loop
        assert loop is not None
        if loop not in self._current:
            filled = slice(len(self._arena))
            table, told = (torch.tensor(rows[filled]) for rows in (self._arena.table, self._arena.model_time))
            loop.hold_arena(table, told, learned_range=self.kind.learned_range, copies=self._copies)
            self._current.append(loop)
        loop.admit(self._values(), places, self._conditions(), anew=[there for _, there in moved])
        if before is not None and moved:
            carry(before, loop, moved)

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
            places = self._places[chain]
            spread[places] = value.flip(0)[: len(places)]
        return spread


def carry(before: Loop, after: Loop, moved: Sequence[tuple[int, int]]) -> None:
    """Brings the states of some samples from one loop into another: (place there, place here) of each."""
    device = before.buffers.x.device
    there, here = (torch.tensor(places, device=device) for places in zip(*moved, strict=True))
    for name, dim in (("x", 0), ("x0", 0), ("kept", 1)):
        source, target = getattr(before.buffers, name), getattr(after.buffers, name)
        if source is not None:
            target.index_copy_(dim, here, source.index_select(dim, there))
