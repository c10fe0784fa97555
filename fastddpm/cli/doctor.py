"""`fastddpm doctor`: what is installed, and whether kernels and engines compute here what they should."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastddpm.cli.arguments import parse_device

if TYPE_CHECKING:
    from rich.console import Console

    from fastddpm.doctor import Examination

FAILED = 1


def doctor(
    json_file: Annotated[
        Path, typer.Option("--json", metavar="F", help="Everything that was found, for bug reports.")
    ] = Path("doctor.json"),
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the first CUDA device if any.")
    ] = None,
) -> None:
    """Examine this machine: the environment, kernels against references, engines against each other.

    On a CPU the kernels run in Triton's interpreter, and graphs are left out. Exit code 1 on any mismatch.
    """
    import torch
    from rich.console import Console

    from fastddpm.doctor import Examination, examine
    from fastddpm.doctor.report import EXACT

    place = parse_device(device)
    # A path that cannot be written to is found before minutes of work.
    Examination(str(place)).save(json_file)
    console = Console()
    if place.type != "cuda":
        why = "no CUDA device" if not torch.cuda.is_available() else "--device cpu given"
        console.print(f"{why}: kernels run in Triton's interpreter; graphs and bandwidth are not examined")
    console.print(f"checks run in {EXACT}")
    with console.status("") as status:
        found = examine(place, lambda name: status.update(name), lambda found: found.save(json_file))
    _show(found, console)
    found.save(json_file)
    console.print(str(json_file))
    if not found.ok:
        raise typer.Exit(FAILED)


def _show(found: Examination, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    parts = Table("part", "found", "without it / for its age")
    for part in found.parts:
        parts.add_row(part.name, escape(part.found or "-"), escape(part.disables))
    console.print(parts)

    checks = Table("check", "result", "error", "limit")
    for check in found.checks:
        numbers = ("" if value is None else f"{value:.2g}" for value in (check.error, check.limit))
        result = check.status if not check.note else f"{check.status}: {check.note}"
        checks.add_row(check.name, escape(result), *numbers)
    console.print(checks)

    if found.rates:
        rates = Table("kernel", "GB/s", "of a copy")
        for name, rate, share in found.rates:
            rates.add_row(name, f"{rate / 1e9:.0f}", f"{share:.0%}")
        console.print(rates)
    failed = sum(check.status == "failed" for check in found.checks)
    skipped = sum(check.status == "skipped" for check in found.checks)
    console.print(
        f"{len(found.checks) - failed - skipped} checks passed, {failed} failed, {skipped} skipped on "
        f"{found.device}"
    )
