"""What it costs to look through arrow and parquet files before they are opened: the figures of docs/data.md.

    python benchmarks/table_check.py [--out benchmarks/results/table_check.json]

10,000 rows of 50,000 random bytes, 500 MB, in an arrow and in a parquet file; wall time, the median and the
range of 5, beside pyarrow reading the parquet file into memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import torch
from pyarrow import ipc, parquet

from fastddpm.data.soundness import check_tables
from fastddpm.files import write_json
from fastddpm_bench import machine

ROWS, BYTES, ROUNDS = 10_000, 50_000, 5


def write_tables(folder: Path) -> None:
    """The same rows as a stream of arrow and as parquet, a thousand at a time."""
    draw = np.random.default_rng(0)
    schema = pyarrow.schema([("image", pyarrow.binary()), ("label", pyarrow.int64())])
    with (
        pyarrow.OSFile(str(folder / "a.arrow"), "wb") as file,
        ipc.new_stream(file, schema) as stream,
        parquet.ParquetWriter(folder / "a.parquet", schema) as writer,
    ):
        for _ in range(ROWS // 1000):
            rows = {"image": [draw.bytes(BYTES) for _ in range(1000)], "label": range(1000)}
            table = pyarrow.table(rows, schema=schema)
            stream.write_table(table)
            writer.write_table(table)


def seconds(work: Callable[[], object]) -> dict[str, float]:
    """Median and range of some calls."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/table_check.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder)
        found = {
            "arrow, looked through": seconds(lambda: check_tables([folder / "a.arrow"])),
            "parquet, looked through": seconds(lambda: check_tables([folder / "a.parquet"])),
            "parquet, read into memory": seconds(lambda: parquet.read_table(str(folder / "a.parquet"))),
        }
    document = {
        "command": "python benchmarks/table_check.py",
        "machine": machine.describe(torch.device("cpu")),
        "seconds": found,
    }
    write_json(arguments.out, document)
    for what, value in found.items():
        print(f"{what}: {value['median']:.2f} s ({value['least']:.2f} to {value['most']:.2f})")


if __name__ == "__main__":
    main()
