"""Arrow and parquet files, looked through in a child process before they are opened here.

pyarrow believes what a damaged file says of itself, and ends the process (SIGSEGV, SIGABRT). The child reads
every batch and validates it in full: offsets, lengths and text are looked at, the bytes of images are not. It
may allocate `MEMORY` bytes, and has a minute and a second for each 16 MB.

This file is the child's program too, so it imports nothing of this package.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

MEMORY = 2**31
"""Bytes that the child may allocate; what it maps from the disk is not among them."""
INFLATED, RATIO = 2**30, 20
"""A parquet file of so many bytes of content must not be so many times smaller: images do not shrink."""
BATCH = 32
"""Rows of a parquet file that are looked at together: whole photographs are large."""


def check_tables(paths: Sequence[Path]) -> None:
    """Refuses tables that are not sound.

    Args:
        paths: regular files: parquet by that suffix, else streams of arrow.

    Raises:
        ValueError: the first that cannot be read to its end; it names the file and why.
    """
    seconds = 60 + sum(path.stat().st_size for path in paths) // 2**24
    command = [sys.executable, "-I", __file__, json.dumps(sys.path), *map(str, paths)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        lines = process.communicate(timeout=seconds)[0].splitlines()
    except BaseException as error:
        process.kill()
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise ValueError(f"{paths[0]}: not read within {seconds} s") from None
        raise
    if process.returncode == 0:
        return
    # A line for each file that was begun; after the last of them, what was wrong with it.
    begun = [line for line in lines if line.startswith("file ")]
    path = begun[-1].removeprefix("file ") if begun else str(paths[0])
    wrong = next((line.removeprefix("wrong ") for line in lines if line.startswith("wrong ")), None)
    raise ValueError(f"{path}: {wrong or _ended(process.returncode)}")


def _ended(code: int) -> str:
    if code < 0:
        return f"damaged, or needs too much memory: reading it ended with {signal.Signals(-code).name}"
    return f"damaged: reading it ended with code {code}"


def _main(search_path: str, paths: Sequence[str]) -> int:
    sys.path[:] = json.loads(search_path)
    _limit_memory()
    pyarrow = importlib.import_module("pyarrow")
    pyarrow.set_cpu_count(1)
    for path in paths:
        print("file", path, flush=True)
        try:
            _look_through(pyarrow, Path(path))
        except Exception as error:
            print("wrong", " ".join(str(error).split())[:160] or type(error).__name__, flush=True)
            return 1
    return 0


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


class RecordBatch(Protocol):
    """pyarrow's."""

    num_rows: int
    nbytes: int

    def validate(self, *, full: bool) -> None: ...


def _look_through(pyarrow: ModuleType, path: Path) -> None:
    size, rows, content = path.stat().st_size, 0, 0
    for batch in _parquet(path) if path.suffix == ".parquet" else _stream(pyarrow, path):
        batch.validate(full=True)
        rows, content = rows + batch.num_rows, content + batch.nbytes
        if rows > size:
            raise ValueError(f"says that it has {rows:,} rows in {size:,} bytes")
        if path.suffix == ".parquet" and content > max(INFLATED, RATIO * size):
            raise ValueError(f"inflates to more than {content:,} bytes from {size:,}")


def _parquet(path: Path) -> Iterator[RecordBatch]:
    parquet = importlib.import_module("pyarrow.parquet")
    with parquet.ParquetFile(str(path)) as file:
        yield from file.iter_batches(batch_size=BATCH, use_threads=False)


def _stream(pyarrow: ModuleType, path: Path) -> Iterator[RecordBatch]:
    with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
        yield from reader


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2:]))
