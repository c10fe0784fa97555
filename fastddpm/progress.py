"""The progress bar of long runs, on rank 0 and a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def progress_bar(show: bool, total: int, description: str = "sampling") -> Iterator[Callable[[int], None]]:
    """Yields ``advance(n)``. Shows a bar on standard error if that is a terminal, else nothing."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not show or not sys.stderr.isatty() or (distributed and torch.distributed.get_rank() != 0):
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda n: progress.advance(task, n)
