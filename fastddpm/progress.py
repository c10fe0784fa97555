"""The progress bar of long runs, on rank 0 and a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(show: bool, total: int, description: str = "sampling") -> Iterator[Callable[[int], None]]:
    """Yields ``advance(n)``. Shows a bar on standard error if that is a terminal, else nothing."""
    if not show or not sys.stderr.isatty() or _rank() != 0:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda n: progress.advance(task, n)


def _rank() -> int:
    """This process's rank; 0 where torch was never loaded, and ONNX Runtime runs without it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0
    return int(torch.distributed.get_rank())
