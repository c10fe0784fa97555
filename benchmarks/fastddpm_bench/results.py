"""What a run leaves: one JSON document, from which tables and figures are made and others are compared.

{"format": 2, "command", "quick", "started", "finished", "seconds", "complete", "machine", "limits",
 "results": [Result...], "skipped": [{"subject", "workload", "reason"}], "parity_failure": null}
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fastddpm.checks import shortened
from fastddpm.files import write_json
from fastddpm.inputs import read_json
from fastddpm_bench.limits import Limits
from fastddpm_bench.statistics import Ratio, Summary, ratio_of_medians, summary

FORMAT = 2


@dataclasses.dataclass
class Row:
    """One contestant's samples: seconds (or bytes) of one call, wall and process, round by round."""

    name: str
    ours: bool
    wall: list[float]
    process: list[float]
    difference: float | None = None


@dataclasses.dataclass
class Result:
    """One contest, measured.

    Attributes:
        subject, workload, device, per, per_name, full_steps, unit, axis: as of the contest.
        rows: the baseline first.
        left_out: reasons, by contestant.
        work: flops, bytes, and least seconds (fused, dispatched) of one call, or None.
        before, after: of `machine.state`.
        commit: of the code that was measured, as of `machine.commit`.
    """

    subject: str
    workload: str
    device: str
    per: int
    per_name: str
    full_steps: int
    unit: str
    axis: float | None
    rows: list[Row]
    left_out: dict[str, str]
    work: dict[str, float] | None
    before: dict[str, Any]
    after: dict[str, Any]
    commit: str | None

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it the same contest in another run."""
        return self.subject, self.workload, self.device

    @property
    def baseline(self) -> Row:
        """The first contestant."""
        return self.rows[0]

    def row(self, name: str) -> Row | None:
        """The contestant of that name."""
        return next((row for row in self.rows if row.name == name), None)

    def each(self, row: Row) -> Summary:
        """A contestant's median and quartiles for one of ``per``."""
        return summary([value / self.per for value in row.wall])

    def ratio(self, row: Row, other: Row | None = None) -> Ratio:
        """A contestant's wall time over another's, the baseline's if left out: below 1 is faster."""
        return ratio_of_medians(row.wall, (other or self.baseline).wall)

    def process_ratio(self, row: Row, other: Row | None = None) -> Ratio | None:
        """The same in processor time; None where it was not measured."""
        theirs = (other or self.baseline).process
        if not row.process or not theirs or not min(*row.process, *theirs) > 0:
            return None
        return ratio_of_medians(row.process, theirs)

    def of_possible(self, row: Row) -> float | None:
        """Share of the speed of light: least seconds with everything fused over the median."""
        return None if self.work is None else self.work["fused"] / summary(row.wall).median

    def figures(self, row: Row) -> dict[str, Any]:
        """Everything derived of a row, so that the file can be read without this code."""
        process = self.process_ratio(row)
        found: dict[str, Any] = {
            **dataclasses.asdict(row),
            f"{self.unit} a {self.per_name}": dataclasses.asdict(self.each(row)),
            "ratio": dataclasses.asdict(self.ratio(row)),
            "process_ratio": None if process is None else dataclasses.asdict(process),
        }
        if self.full_steps and self.unit == "s":
            found["extrapolated_seconds"] = {
                "steps": self.full_steps,
                "value": self.each(row).median * self.full_steps,
            }
        if self.work is not None:
            seconds = summary(row.wall).median
            found["flop_per_s"] = self.work["flops"] / seconds
            found["byte_per_s"] = self.work["bytes"] / seconds
            found["of_possible"] = self.of_possible(row)
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with ours against each of the others."""
        values = dataclasses.asdict(self)
        values["rows"] = [self.figures(row) for row in self.rows]
        values["ours_over_theirs"] = [
            {"ours": a.name, "theirs": b.name, **dataclasses.asdict(self.ratio(a, b))}
            for a in self.rows
            if a.ours
            for b in self.rows
            if not b.ours
        ]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        """From JSON values; what is derived is derived again."""
        names = [field.name for field in dataclasses.fields(cls)]
        fields = [field.name for field in dataclasses.fields(Row)]
        rows = [Row(**{name: row[name] for name in fields}) for row in values["rows"]]
        return cls(**{**{name: values[name] for name in names}, "rows": rows})


@dataclasses.dataclass
class Document:
    """A run: the machine, its limits, and what was measured so far.

    Attributes:
        command: that began it.
        quick: small sizes.
        started, finished: times; of the first start and the last end where a run was resumed.
        machine: of `machine.describe`.
        limits: measured at the first start.
        seconds: that the run took, interruptions not counted.
        complete: nothing is left to measure.
        results: one a contest.
        skipped: contests that cannot run here, and why.
        parity_failure: what stopped it, or None.
    """

    command: str
    quick: bool
    started: str
    machine: dict[str, Any]
    limits: Limits | None = None
    finished: str | None = None
    seconds: float = 0.0
    complete: bool = False
    results: list[Result] = dataclasses.field(default_factory=list)
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)
    parity_failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["limits"] = None if self.limits is None else self.limits.to_dict()
        fields["results"] = [result.to_dict() for result in self.results]
        return {"format": FORMAT, **fields}

    def resumed(self, quick: bool, machine: dict[str, Any]) -> Document:
        """Itself, to go on with where a run was interrupted; the code may have changed since.

        Raises:
            ValueError: it is of another machine, with other versions or threads, or of other sizes.
        """
        here, there = ({k: v for k, v in m.items() if k != "commit"} for m in (machine, self.machine))
        differing = [name for name in here if here[name] != there.get(name)]
        if differing or quick != self.quick:
            what = ", ".join(differing) or "quick"
            raise ValueError(f"resume: the results there have another {what}; the same machine accepted")
        self.complete, self.parity_failure, self.skipped = False, None, []
        return self

    def has(self, subject: str, workload: str, device: str) -> bool:
        """Whether a contest was measured."""
        return any(result.key == (subject, workload, device) for result in self.results)

    def save(self, path: Path) -> None:
        """Writes the document; the file is whole or as it was."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Document:
        """Reads a document.

        Raises:
            ValueError: it cannot be read, is not one, or of another format.
        """
        try:
            values = read_json(path)
            if values.pop("format") != FORMAT:
                raise ValueError("of another version")
            results = [Result.from_dict(result) for result in values.pop("results")]
            limits = values.pop("limits")
            parsed = None if limits is None else Limits.from_dict(limits)
            return cls(**values, results=results, limits=parsed)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = shortened(str(error), 160)
            raise ValueError(f"{path}: not a result of fastddpm bench ({reason})") from error
