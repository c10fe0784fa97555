"""A document as a Markdown report and as tables on a terminal: the same rows in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastddpm_bench.results import Document, Result, Row
from fastddpm_bench.statistics import Ratio

HEAD = (
    "contestant",
    "median",
    "quartiles",
    "rounds",
    "time / baseline's",
    "processor time / baseline's",
    "FLOP/s or B/s",
    "of the possible",
)
# What a terminal of 80 columns has room for, and what it is called there.
SHOWN = {
    "contestant": "contestant",
    "median": "median",
    "time / baseline's": "of baseline's",
    "FLOP/s or B/s": "rate",
    "of the possible": "possible",
}


def rows(result: Result) -> list[list[str]]:
    """The table of a contest, the baseline first."""
    return [_row(result, row) for row in result.rows]


def _row(result: Result, row: Row) -> list[str]:
    each = result.each(row)
    is_baseline = row is result.baseline
    ratio = "baseline" if is_baseline else interval(result.ratio(row))
    process = result.process_ratio(row)
    return [
        f"**{row.name}**" if row.ours else row.name,
        quantity(each.median, result.unit),
        f"{quantity(each.q1, result.unit)} to {quantity(each.q3, result.unit)}",
        str(each.samples),
        ratio,
        "" if is_baseline or process is None else interval(process),
        _rate(result, row),
        "" if (share := result.of_possible(row)) is None else f"{share:.0%}",
    ]


def _rate(result: Result, row: Row) -> str:
    if result.work is None:
        return ""
    seconds = result.each(row).median * result.per
    if result.work["flops"]:
        return f"{si(result.work['flops'] / seconds)}FLOP/s"
    return f"{si(result.work['bytes'] / seconds)}B/s"


def markdown(document: Document) -> str:
    """The whole report; figures are expected beside it."""
    parts = ["# Benchmark report", "", f"    {document.command}", "", *_facts(document), ""]
    if document.parity_failure:
        parts += [f"**Parity failed, nothing was measured from there on:** {document.parity_failure}", ""]
    if not document.complete:
        parts += ["**Not complete:** the run ended before its last contest.", ""]
    for result in document.results:
        parts += [*contest_markdown(result), ""]
    if document.skipped:
        parts += ["## Skipped", ""]
        parts += [f"- {s['subject']}, {s['workload']}: {s['reason']}" for s in document.skipped]
    return "\n".join(parts).rstrip() + "\n"


def contest_markdown(result: Result) -> list[str]:
    """Heading, table and notes of one contest."""
    lines = [f"## {result.subject}: {result.workload} ({result.device})", ""]
    lines += [f"{'Bytes' if result.unit == 'B' else 'Time'} of one {result.per_name}.", ""]
    lines += markdown_table(HEAD, rows(result))
    notes = [f"- {name}: left out, {reason}" for name, reason in result.left_out.items()]
    if result.full_steps and result.unit == "s":
        times = ", ".join(
            f"{row.name} {quantity(result.each(row).median * result.full_steps, 's')}" for row in result.rows
        )
        notes.append(f"- Extrapolated to {result.full_steps} steps from {result.per}: {times}")
    if against := ours_against_theirs(result):
        notes += ["", "Ours over each of theirs:", "", *against]
    return [*lines, "", *notes] if notes else lines


def ours_against_theirs(result: Result) -> list[str]:
    """Time of each of ours over each of theirs, where there is more than the baseline."""
    ours, theirs = [r for r in result.rows if r.ours], [r for r in result.rows if not r.ours]
    if len(theirs) < 2 or not ours:
        return []
    cells = [[row.name, *(interval(result.ratio(row, other)) for other in theirs)] for row in ours]
    return markdown_table(["", *(other.name for other in theirs)], cells)


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def _facts(document: Document) -> list[str]:
    machine, rates = document.machine, document.limits
    commits = dict.fromkeys(str(c) for c in (machine["commit"], *(r.commit for r in document.results)))
    packages = ", ".join(f"{name} {value}" for name, value in machine["packages"].items() if value)
    facts = [
        f"- {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['instructions']}, {machine['system']}; device: {machine['device']}",
        f"- Python {machine['python']}, {packages}; commit {', '.join(commits)}",
        f"- {document.started} to {document.finished or 'unfinished'}, measuring for "
        f"{document.seconds / 60:.0f} minutes{', quick' if document.quick else ''}",
    ]
    if "precision" in machine:
        facts.append(f"- Outputs held to each other with TF32 off; timed in {machine['precision']}")
    if rates is not None:
        copies = ", ".join(f"{si(rate)}B/s at {si(size, 1024)}iB" for size, rate in rates.copies)
        facts.append(
            f"- Limits of this run, in float32: matrix product {si(rates.gemm)}FLOP/s, convolution "
            f"{si(rates.convolution)}FLOP/s; copies {copies}"
        )
    return facts


def show(result: Result, console: Any) -> None:
    """Prints a contest's table on a rich console."""
    from rich.table import Table

    table = Table(title=f"{result.subject}: {result.workload} ({result.device})", title_justify="left")
    for name in SHOWN.values():
        table.add_column(name, overflow="fold", justify="left" if name == HEAD[0] else "right")
    for row, cells in zip(result.rows, rows(result), strict=True):
        by_name = dict(zip(HEAD, [row.name, *cells[1:]], strict=True))
        table.add_row(*(by_name[name] for name in SHOWN), style="bold" if row.ours else "")
    console.print(table)
    for name, reason in result.left_out.items():
        console.print(f"  {name}: left out, {reason}", highlight=False)


def interval(ratio: Ratio) -> str:
    """A ratio with its 95 % interval."""
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def quantity(value: float, unit: str) -> str:
    """Seconds or bytes with three digits."""
    return f"{si(value)}{unit}"


def si(value: float, base: int = 1000) -> str:
    """Three digits and the prefix of the unit that follows: 0.00123 is ``1.23 m``."""
    power = 0
    while abs(value) >= base and power < 5:
        value, power = value / base, power + 1
    while 0 < abs(value) < 1 and power > -3 and power <= 0:
        value, power = value * base, power - 1
    prefix = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}[power]
    digits = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{digits} {prefix.upper() if base == 1024 and power == 1 else prefix}"
