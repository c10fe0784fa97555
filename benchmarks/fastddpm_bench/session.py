"""What `fastddpm bench` does: contests measured into a file, or a file read; a report of it; a comparison."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastddpm.checks import check_choice
from fastddpm.files import replacing
from fastddpm.precision import described
from fastddpm_bench import figures, machine, runner, subjects, tables
from fastddpm_bench.comparison import compare
from fastddpm_bench.contest import BenchSettings, Contest, ParityError
from fastddpm_bench.results import Document

FAILED = 1
INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is measured, and where.

    Attributes:
        quick: small sizes, nothing compiled.
        subjects: comma-separated; None for all.
        workload: only contests with this in their workload's name; None for all.
        device: ``cpu``, ``cuda`` or ``auto``.
        precision: of float32 on a GPU, ``highest`` or ``tf32``; None as torch is set.
        threads: of torch; None as they are.
    """

    quick: bool = False
    subjects: str | None = None
    workload: str | None = None
    device: str = "auto"
    precision: Any = None
    threads: int | None = None

    def settings(self) -> BenchSettings:
        """Where contests run, and how.

        Raises:
            ValueError: naming the option.
        """
        check_choice("device", self.device, ("auto", "cpu", "cuda"))
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "device: 'cuda' given, and there is no GPU that torch can use; cpu or auto accepted"
            )
        if self.precision is not None:
            check_choice("precision", self.precision, ("highest", "tf32"))
        is_cuda = self.device != "cpu" and torch.cuda.is_available()
        return BenchSettings(
            torch.device("cuda" if is_cuda else "cpu"), quick=self.quick, precision=self.precision
        )

    def contests(self, settings: BenchSettings) -> list[Contest]:
        """Those that were asked for.

        Raises:
            ValueError: naming the option.
        """
        names: Sequence[str] = subjects.SUBJECTS
        if self.subjects is not None:
            names = [name.strip() for name in self.subjects.split(",")]
        found = subjects.contests(settings, names)
        if self.workload is not None:
            found = [contest for contest in found if self.workload in contest.workload]
            if not found:
                raise ValueError(
                    f"workload: no contest of {', '.join(names)} has {self.workload!r} in its name"
                )
        return found


def measure(selection: Selection, path: Path, *, resume: bool) -> tuple[Document, int]:
    """Runs the contests.

    Args:
        selection: which.
        path: of the results; saved after each contest.
        resume: go on with what is there, if anything is.

    Returns:
        What was measured, and the exit code.

    Raises:
        ValueError: naming the option.
    """
    settings = selection.settings()
    planned = selection.contests(settings)
    if selection.threads is not None:
        torch.set_num_threads(selection.threads)
    here = machine.describe(settings.device)
    if settings.is_cuda:
        here["precision"] = described(selection.precision, torch.float32, settings.device)
    if resume and path.exists():
        document = Document.load(path).resumed(selection.quick, here)
    else:
        command = " ".join(["fastddpm", *sys.argv[1:]])
        document = Document(command, selection.quick, runner.now(), here)
    document.save(path)  # a path that cannot be written to is found before anything is measured
    console = Console()
    code = 0
    try:
        runner.run(planned, settings, document, path, lambda result: tables.show(result, console))
    except ParityError as failure:
        print(f"fastddpm: parity failed: {failure}", file=sys.stderr)
        code = FAILED
    except KeyboardInterrupt:
        print(f"fastddpm: {len(document.results)} contests measured until then", file=sys.stderr)
        code = INTERRUPTED
    print(path)
    return document, code


def report(document: Document, out: Path) -> None:
    """Leaves report.md and figures in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = figures.draw(document, out)
    pictures = "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn)
    with replacing(out / "report.md") as temporary:
        temporary.write_text(tables.markdown(document) + pictures)
    for path in (out / "report.md", *drawn):
        print(path)


def is_slower(new: Document, old: Document) -> bool:
    """Whether something of ours became slower; prints each change."""
    found = compare(new, old)
    if not found.same_machine:
        print("compared with another machine or another number of threads: read ratios with care")
    for line in (*found.changes, *found.missing):
        print(line)
    print(f"{len(found.regressions)} of {len(found.changes)} slower")
    return bool(found.regressions)
