"""The progress bar of long runs, on rank 0 and a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    show: bool, total: int, description: str = "sampling", unit: str | None = None
) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(n)``. Shows a bar on standard error if that is a terminal, else nothing.

    Args:
        show: False for nothing at all.
        total: what the steps add up to.
        description: what is going on.
        unit: what is counted, such as "images", to show how many there are a second.
    """
    if not show or not sys.stderr.isatty() or _rank() != 0:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if unit is None or task.speed is None else f"{task.speed:.1f} {unit}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed())
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(file=sys.stderr), transient=True
    ) as progress:
        task = progress.add_task(description, total=total)
        yield lambda n: progress.advance(task, n)


def _rank() -> int:
    """This process's rank; 0 where torch was never loaded, and ONNX Runtime runs without it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0
    return int(torch.distributed.get_rank())
