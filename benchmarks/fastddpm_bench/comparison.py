"""Two runs held against each other: what became slower, beyond what the rounds of both scatter.

Compared is each contestant's time over its own run's baseline, which a machine's mood moves as well; the
baseline is other people's code. Only ours can be a regression.
"""

from __future__ import annotations

import dataclasses

from fastddpm_bench.results import Document
from fastddpm_bench.statistics import Ratio, ratio_of_medians, ratio_of_ratios

# Two runs of the same code differ by a few per cent through memory layout alone, whatever the rounds say.
LEAST_CHANGE = 0.05
LEAST_ROUNDS = 5
"""Of either run: intervals of fewer cover less than they say (71 to 78 % for three)."""


@dataclasses.dataclass(frozen=True)
class Change:
    """How one contestant changed from an old run to a new one.

    Attributes:
        subject, workload, name: which.
        ours: it is this project's.
        change: new over old of its time relative to the baseline's; above 1 is slower now.
    """

    subject: str
    workload: str
    name: str
    ours: bool
    change: Ratio

    @property
    def slower(self) -> bool:
        """Ours, by more than 5 %, and the whole interval above 1."""
        return self.ours and self.change.low > 1 and self.change.value > 1 + LEAST_CHANGE

    @property
    def faster(self) -> bool:
        """The same the other way."""
        return self.ours and self.change.high < 1 and self.change.value < 1 - LEAST_CHANGE

    def __str__(self) -> str:
        verdict = "slower" if self.slower else "faster" if self.faster else "unchanged"
        r = self.change
        where = f"{self.subject}, {self.workload}: {self.name}"
        return f"{verdict:9} {r.value:.2f} ({r.low:.2f} to {r.high:.2f})  {where}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All changes, what only one of the runs has, and whether the machines are the same."""

    changes: list[Change]
    missing: list[str]
    same_machine: bool

    @property
    def regressions(self) -> list[Change]:
        """What is slower now."""
        return [change for change in self.changes if change.slower]


def compare(new: Document, old: Document) -> Comparison:
    """A new run against an old one, contest by contest."""
    before = {result.key: result for result in old.results}
    changes, missing = [], []
    for result in new.results:
        earlier = before.pop(result.key, None)
        if earlier is None:
            missing.append(f"{result.subject}, {result.workload}: only in the new run")
            continue
        if earlier.baseline.name != result.baseline.name:
            missing.append(f"{result.subject}, {result.workload}: another baseline")
            continue
        for row in result.rows:
            old_row = earlier.row(row.name)
            if old_row is None:
                missing.append(f"{result.subject}, {result.workload}: {row.name} only in the new run")
            elif min(len(row.wall), len(old_row.wall)) < LEAST_ROUNDS:
                rounds = min(len(row.wall), len(old_row.wall))
                missing.append(
                    f"{result.subject}, {result.workload}: {row.name} has {rounds} rounds in one of the "
                    f"runs, {LEAST_ROUNDS} accepted"
                )
            elif row is result.baseline:
                change = ratio_of_medians(row.wall, old_row.wall, paired=False)
                changes.append(Change(result.subject, result.workload, row.name, row.ours, change))
            else:
                relative = ratio_of_ratios(
                    (row.wall, result.baseline.wall), (old_row.wall, earlier.baseline.wall)
                )
                changes.append(Change(result.subject, result.workload, row.name, row.ours, relative))
    missing += [f"{subject}, {workload}: only in the old run" for subject, workload, _ in before]
    kinds = ("processor", "cores", "threads", "device")
    same = all(new.machine.get(kind) == old.machine.get(kind) for kind in kinds)
    return Comparison(changes, missing, same)
