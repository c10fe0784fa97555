"""`fastddpm bench`: measure, or make reports of what was measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastddpm.checks import check_choice

if TYPE_CHECKING:
    from fastddpm.bench.results import Document

INTERRUPTED = 130
FAILED = 1


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, nothing compiled.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="F", help="Results; OUT/results.json, if left out.")
    ] = None,
    compare_with: Annotated[
        Path | None,
        typer.Option("--compare", metavar="F", help="Earlier results; exit code 1 if ours became slower."),
    ] = None,
    subjects: Annotated[
        str | None, typer.Option(help="Comma-separated; all, if left out. See docs/benchmarks.md.")
    ] = None,
    workload: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only contests with this in their workload's name.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with an interrupted run; what F has is kept."),
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU where there is one.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="Of float32 on a GPU: highest or tf32; as torch is set, if left out.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Of torch; as it is, if left out.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.md, results.json and figures.")] = Path(
        "bench-report"
    ),
    rendered: Annotated[
        Path | None,
        typer.Option("--from", metavar="F", help="Measure nothing: report on these results again."),
    ] = None,
) -> None:
    """Measure this machine: ours against what people would otherwise use, at the same weights and images.

    Exit code 1 if contestants do not compute the same, or with --compare if ours became slower.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("matplotlib: not installed; pip install 'fastddpm[bench]'")
    from fastddpm.bench.results import Document

    earlier = None if compare_with is None else Document.load(compare_with)
    code = 0
    if rendered is not None:
        document = Document.load(rendered)
    else:
        path = json_file or out / "results.json"
        found = Document.load(path) if resume and path.exists() else None
        chosen: dict[str, Any] = {"device": device, "precision": precision, "threads": threads}
        document, code = _measure(quick, subjects, workload, path, found, **chosen)
    _report(document, out)
    if earlier is not None and _is_slower(document, earlier):
        code = code or FAILED
    if code:
        raise typer.Exit(code)


def _measure(
    quick: bool,
    subjects: str | None,
    workload: str | None,
    path: Path,
    found: Document | None,
    *,
    device: str,
    precision: Any,
    threads: int | None,
) -> tuple[Document, int]:
    """Runs the contests, but those that ``found`` has: what was measured, and the exit code."""
    import torch
    from rich.console import Console

    from fastddpm.bench import machine, runner, tables
    from fastddpm.bench.contest import ParityError, Settings
    from fastddpm.bench.results import Document
    from fastddpm.bench.subjects import SUBJECTS, contests
    from fastddpm.precision import described

    check_choice("device", device, ("auto", "cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' given, and there is no GPU that torch can use; cpu or auto accepted")
    if threads is not None:
        torch.set_num_threads(threads)
    is_cuda = device != "cpu" and torch.cuda.is_available()
    if precision is not None:
        check_choice("precision", precision, ("highest", "tf32"))
    settings = Settings(torch.device("cuda" if is_cuda else "cpu"), quick=quick, precision=precision)
    names = SUBJECTS if subjects is None else [name.strip() for name in subjects.split(",")]
    planned = contests(settings, names)
    if workload is not None:
        planned = [contest for contest in planned if workload in contest.workload]
        if not planned:
            raise ValueError(f"workload: no contest of {', '.join(names)} has {workload!r} in its name")
    here = machine.describe(settings.device)
    if is_cuda:
        here["precision"] = described(precision, torch.float32, settings.device)
    if found is None:
        document = Document(" ".join(["fastddpm", *sys.argv[1:]]), quick, runner.now(), here)
    else:
        document = found.resumed(quick, here)
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


def _report(document: Document, out: Path) -> None:
    from fastddpm.bench import figures, tables
    from fastddpm.files import replacing

    out.mkdir(parents=True, exist_ok=True)
    drawn = figures.draw(document, out)
    pictures = "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn)
    with replacing(out / "report.md") as temporary:
        temporary.write_text(tables.markdown(document) + pictures)
    for path in (out / "report.md", *drawn):
        print(path)


def _is_slower(new: Document, old: Document) -> bool:
    from fastddpm.bench.comparison import compare

    found = compare(new, old)
    if not found.same_machine:
        print("compared with another machine or another number of threads: read ratios with care")
    for line in (*found.changes, *found.missing):
        print(line)
    print(f"{len(found.regressions)} of {len(found.changes)} slower")
    return bool(found.regressions)
