"""The progress of long runs, on rank 0: a bar on a terminal or in a notebook, else lines of `logging`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from fastddpm.interruption import raise_again

FIRST_LINE = 10
"""Steps after which the first line says how long it will take."""
LINES_EVERY = 60.0
"""Seconds from one line to the next."""
WORTH_SAYING = 10.0
"""Seconds: of a run that will have ended sooner nothing is said."""

logger = logging.getLogger("fastddpm")


@contextmanager
def progress_bar(
    show: bool, total: int, description: str = "sampling", unit: str | None = None
) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(n)``. Shows a bar on standard error if that is a terminal, or in a notebook.

    Elsewhere, and without rich, it logs a line (level INFO of the logger ``fastddpm``) after `FIRST_LINE`
    steps and then every `LINES_EVERY` seconds: how far it is, how fast, and how long it will take.

    Args:
        show: False for nothing at all.
        total: what the steps add up to.
        description: what is going on.
        unit: what is counted, such as "images"; "steps" in lines, if left out.

    Raises:
        KeyboardInterrupt: (by ``advance``) a signal that should have ended the command was dropped.
    """
    bar: AbstractContextManager[Callable[[int], None] | None] = nullcontext()
    if show and is_first_rank():
        bar = _shown(total, description, unit)
    with bar as shown:

        def advance(n: int) -> None:
            raise_again()
            if shown is not None:
                shown(n)

        yield advance


@contextmanager
def _shown(total: int, description: str, unit: str | None) -> Iterator[Callable[[int], None]]:
    if sys.stderr.isatty() and _has("rich"):
        with _on_terminal(total, description, unit) as advance:
            yield advance
    elif _in_notebook():
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        with tqdm(total=total, desc=description, unit=unit or "step") as bar:
            yield bar.update
    else:
        yield Lines(total, description, unit or "steps").advance


class Lines:
    """Progress as lines of `logging`.

    Args:
        total: as of `progress_bar`.
        description: likewise.
        unit: likewise.
        now: the time in seconds.
    """

    def __init__(
        self, total: int, description: str, unit: str, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.total, self.description, self.unit, self.now = total, description, unit, now
        self.done = self.before = 0
        self.began: float | None = None
        self.next = 0.0

    def advance(self, n: int) -> None:
        """``n`` more are done. The first call starts the clock: it counts what a run before has done, or the
        slow first step."""
        self.done += n
        if self.began is None:
            self.began, self.before = self.now(), self.done
            return
        since, seconds = self.done - self.before, self.now() - self.began
        if since < FIRST_LINE - 1 or seconds < self.next or seconds <= 0:
            return
        self.next = seconds + LINES_EVERY
        speed = since / seconds
        left = (self.total - self.done) / speed
        if left >= WORTH_SAYING:
            logger.info(
                "%s: %d of %d %s, %.3g a second, about %s left",
                *(self.description, self.done, self.total, self.unit, speed, in_words(left)),
            )


def in_words(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 5 min`` or ``2 d 4 h``, rounded to these."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 24 * 60 else f"{hours // 24} d {hours % 24} h"


@contextmanager
def _on_terminal(total: int, description: str, unit: str | None) -> Iterator[Callable[[int], None]]:
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


def _in_notebook() -> bool:
    """Whether this is a kernel of Jupyter, with tqdm to show a bar there."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if type(shell).__name__ != "ZMQInteractiveShell":
        return False
    return _has("tqdm")


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def is_first_rank() -> bool:
    """Whether this is the process of rank 0, as where torch was never loaded: beside ONNX Runtime."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return True
    return int(torch.distributed.get_rank()) == 0
