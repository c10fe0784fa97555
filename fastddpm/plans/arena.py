"""An arena: the rows of several plans in one table, where each sample of a batch walks a plan of its own.

A sample's counter says its row of the table, and its base the row at which its plan begins. Row 0 is for
samples that walk none: it leaves the state as it is.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from fastddpm.checks import whole
from fastddpm.plans.plan import Plan, build_table
from fastddpm_kernels.table import Column

IDLE = 0
"""The row that changes nothing."""


@dataclasses.dataclass(frozen=True)
class RowKind:
    """What the rows of an arena have in common, since a step is compiled for it.

    Attributes:
        combines: what rows keep is a sum of x0, x and the model's output.
        divides: rows divide x0.
        rederives: rows take eps from x, x0 and the model's output.
    """

    combines: bool = False
    divides: bool = False
    rederives: bool = False


def idle_row(kind: RowKind) -> npt.NDArray[np.float32]:
    """x_next = x, float32 [32]: without noise, clip or anything kept, and by whatever division there is.

    0 times the model's output is added, so that an output that is not finite would show in that sample.
    """
    columns = {"from_x": 1.0, "x0_divisor": float(kind.divides)}
    if kind.rederives:  # x_next = e*eps, eps = b*x / w
        columns |= {"from_m": 1.0, "eps_divisor": 1.0}
    row: npt.NDArray[np.float32] = build_table(1, **columns)[0]
    return row


class Arena:
    """The rows of some plans, in a table of so many rows.

    Plans that nobody walks stay until their rows are needed, those that were left first go first.

    Args:
        capacity: rows of the table, 2 or more.
        time_dtype: of the network's time input, int64 or float32.
        kind: of the rows; plans that keep x0 fit where sums are kept.

    Attributes:
        table: float32 ``[capacity, 32]``; rows that belong to no plan change nothing.
        model_time: ``[capacity]``, the network's time input.
    """

    def __init__(self, capacity: int, time_dtype: Any = np.int64, kind: RowKind = RowKind()) -> None:
        capacity = whole("capacity", capacity, least=2)
        self.kind = kind
        self.table = np.tile(idle_row(kind), (capacity, 1))
        self.model_time = np.zeros(capacity, time_dtype)
        # Of each plan where it begins and how many walk it, the one that was left first in front.
        self._bases: dict[Plan, int] = {}
        self._walkers: dict[Plan, int] = {}

    def __len__(self) -> int:
        """Rows up to the last one that belongs to a plan."""
        return max((base + len(plan) for plan, base in self._bases.items()), default=IDLE + 1)

    def __contains__(self, plan: Plan) -> bool:
        return plan in self._bases

    def enter(self, plan: Plan) -> int | None:
        """The row where a plan begins, for one walker more; None while walkers of others need the room."""
        if plan not in self._bases:
            base = self._room(len(plan))
            if base is None:
                return None
            rows = plan.table.copy()
            if self.kind.combines and not plan.combines:
                rows[:, Column.KEPT_FROM_X0] = 1.0
            self.table[base : base + len(plan)] = rows
            self.model_time[base : base + len(plan)] = plan.model_time
            self._bases[plan] = base
        self._walkers[plan] = self._walkers.get(plan, 0) + 1
        return self._bases[plan]

    def leave(self, plan: Plan) -> None:
        """One walker less."""
        self._walkers[plan] -= 1
        if not self._walkers[plan]:
            self._bases[plan] = self._bases.pop(plan)

    def _room(self, length: int) -> int | None:
        """The first gap of so many rows, made where there is none by giving up plans that nobody walks."""
        unwalked = [plan for plan in self._bases if not self._walkers[plan]]
        for plan in [None, *unwalked]:
            if plan is not None:
                del self._bases[plan], self._walkers[plan]
            taken = sorted((base, base + len(other)) for other, base in self._bases.items())
            edges = [(IDLE, IDLE + 1), *taken, (len(self.table), len(self.table))]
            for (_, end), (start, _) in itertools.pairwise(edges):
                if start - end >= length:
                    return end
        return None
