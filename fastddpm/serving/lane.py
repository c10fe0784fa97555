"""A lane: slots whose chains share their steps, on loops of a few batch sizes.

The host knows from the plans when a chain ends, so nothing is read from the device between two steps. What
changes in the slots goes there in one parcel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastddpm.copies import Copies
from fastddpm.engine import Loop
from fastddpm.plans.arena import IDLE, Arena
from fastddpm.serving.drawing import Chain, Kind

MakeLoop = Callable[[Kind, int, Chain], Loop]


def buckets(most: int) -> list[int]:
    """Batch sizes: powers of 2, and the largest."""
    sizes = [size for size in (2**power for power in range(most.bit_length())) if size < most]
    return [*sizes, most]


class Lane:
    """Chains of one kind, each at its own row of its own plan.

    Args:
        kind: of all of them.
        most: slots at most.
        rows: of the arena.
        make: gives the loop for a number of slots, and a chain as an example.
        copies: as of `fastddpm.engine.Loop.load`.
    """

    def __init__(self, kind: Kind, most: int, rows: int, make: MakeLoop, copies: Copies | None) -> None:
        self.kind, self._most, self._make, self._copies = kind, most, make, copies
        self._arena = Arena(rows, kind.time_dtype, kind.rows)
        self._slots: list[Chain | None] = []
        self._loop: Loop | None = None
        # Chains that have a slot to come, and loops whose tables hold the arena as it is.
        self._begun: list[Chain] = []
        self._current: list[Loop] = []
        self._is_changed = False

    @property
    def chains(self) -> list[Chain]:
        """Those that are here."""
        return [chain for chain in self._slots if chain is not None] + self._begun

    @property
    def slots(self) -> int:
        """The batch size of the steps."""
        return len(self._slots)

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
            self._slots[self._slots.index(chain)] = None
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
        place = self._slots.index(chain)
        values: Tensor = getattr(self._loop.buffers, name)
        return values[place : place + 1]

    def _arrange(self) -> None:
        """Gives every chain a slot, in a loop of as few as are enough, and tells the device."""
        chains = self.chains
        size = next(size for size in buckets(self._most) if size >= max(1, len(chains)))
        places = list(range(len(chains)))
        before, self._is_changed = self._loop, False
        moved: list[tuple[int, int]] = []
        if before is None or size != len(self._slots):
            moved = [
                (self._slots.index(chain), place)
                for place, chain in enumerate(chains)
                if chain in self._slots
            ]
            self._slots = [*chains, *[None] * (size - len(chains))]
            self._loop = self._make(self.kind, size, chains[0])
        else:
            free = [place for place, chain in enumerate(self._slots) if chain is None]
            for chain, place in zip(self._begun, free, strict=False):
                self._slots[place] = chain
        places = [self._slots.index(chain) for chain in self._begun]
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
        here = [(place, chain) for place, chain in enumerate(self._slots) if chain is not None]
        count = len(self._slots)
        counter, base = [[IDLE, 0] for _ in range(count)], [0] * count
        advance, seeds, guidance = [0] * count, [0] * count, [1.0] * count
        for place, chain in here:
            counter[place] = [chain.base + chain.drawing.done_steps, 0]
            base[place], advance[place], seeds[place] = chain.base, 1, chain.drawing.seed
            if chain.batch.guidance is not None:
                guidance[place] = float(chain.batch.guidance[0])
        values = {
            "counter": torch.tensor(counter),
            "base": torch.tensor(base),
            "advance": torch.tensor(advance),
            "seeds": torch.tensor(seeds),
            "guidance": torch.tensor(guidance),
        }
        for name, *_ in self.kind.conditions:
            example = next(chain.batch.cond[name] for _, chain in here) if here else None
            if example is not None:
                values[f"cond {name}"] = self._stacked(
                    [None if chain is None else chain.batch.cond[name] for chain in self._slots], example
                )
        return values

    def _conditions(self) -> Tensor | None:
        """The condition images of all slots."""
        if self.kind.condition is None:
            return None
        given = [None if chain is None else chain.batch.condition for chain in self._slots]
        example = next((one for one in given if one is not None), None)
        return None if example is None else self._stacked(given, example)

    def _stacked(self, given: Sequence[Tensor | None], example: Tensor) -> Tensor:
        """What the slots are given, side by side; first one half of each, where they are guided."""
        nothing = torch.zeros_like(example)
        each = [nothing if one is None else one for one in given]
        return torch.cat(
            [half for part in range(len(example)) for half in (one[part : part + 1] for one in each)]
        )


def carry(before: Loop, after: Loop, moved: Sequence[tuple[int, int]]) -> None:
    """Brings the states of some samples from one loop into another: (place there, place here) of each."""
    device = before.buffers.x.device
    there, here = (torch.tensor(places, device=device) for places in zip(*moved, strict=True))
    for name, dim in (("x", 0), ("x0", 0), ("kept", 1)):
        source, target = getattr(before.buffers, name), getattr(after.buffers, name)
        if source is not None:
            target.index_copy_(dim, here, source.index_select(dim, there))
