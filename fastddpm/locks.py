"""One writer a folder: a job, a training run or an export holds its folder while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastddpm.checks import BadArgument

LOCK = ".fastddpm-lock"


class FolderInUse(BadArgument):
    """Another process writes into the folder."""


@contextmanager
def exclusive(folder: Path, argument: str, work: str) -> Iterator[None]:
    """Holds a folder; the operating system lets go of it when the process ends, however it ends.

    Args:
        folder: one that is there. It has the file `LOCK` meanwhile.
        argument: what the folder is called, for the error.
        work: what is done there, for the error.

    Raises:
        FolderInUse: somebody else holds it.
        OSError: it cannot be written.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    lock = FileLock(path, timeout=0)
    try:
        try:
            lock.acquire()
        except Timeout:
            raise FolderInUse(
                argument,
                f"{str(folder)!r}, where another {work} is running,",
                "another folder, or this one when that has ended,",
            ) from None
        yield
    finally:
        if lock.is_locked:
            # While it is held: whoever waits for the file that was here sees that it has no name, and makes
            # its own.
            path.unlink(missing_ok=True)
            lock.release()
