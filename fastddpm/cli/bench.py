"""`fastddpm bench`: measure, or make reports of what was measured, with the suite of a checkout."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

INSTALL = "pip install -e . -e benchmarks in a checkout of the repository"


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

    Needs a checkout of the repository: pip install -e . -e benchmarks there.

    Exit code 1 if contestants do not compute the same, or with --compare if ours became slower.
    """
    for name in ("fastddpm_bench", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name}: not installed; {INSTALL}")
    from fastddpm_bench import session
    from fastddpm_bench.results import Document

    earlier = None if compare_with is None else Document.load(compare_with)
    code = 0
    if rendered is not None:
        document = Document.load(rendered)
    else:
        selection = session.Selection(quick, subjects, workload, device, precision, threads)
        document, code = session.measure(selection, json_file or out / "results.json", resume=resume)
    session.report(document, out)
    if earlier is not None and session.is_slower(document, earlier):
        code = code or session.FAILED
    if code:
        raise typer.Exit(code)
