"""How fast images come from a folder and from memory: the figures of docs/data.md.

    python benchmarks/data_loading.py [--out benchmarks/results/data_loading.json]

200 JPEG files of 500 x 375, smooth random colours, quality 90. Wall time, the best of 7.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import timeit
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastddpm.data import open_dataset
from fastddpm.files import write_json
from fastddpm_bench import machine

FILES = 200
BATCH = 128
SIZE = 64
ROUNDS = 7


def write_files(folder: Path) -> None:
    """The photographs: 8 x 6 random colours, enlarged."""
    draw = np.random.default_rng(0)
    for i in range(FILES):
        small = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:03}.jpg", quality=90)


def measure(folder: Path) -> dict[str, float]:
    """Seconds of each way to images, by what is done."""
    rows = torch.arange(BATCH)
    from_files = open_dataset(str(folder), size=SIZE, memory_limit=0)
    digits, shifted = open_dataset("mnist"), open_dataset("mnist", shift=1)
    ways = {
        f"open a folder of {FILES} files": functools.partial(open_dataset, str(folder), size=SIZE),
        f"a batch of {BATCH}, decoded when it is wanted": functools.partial(from_files.batch, rows),
        f"a batch of {BATCH} digits in memory": functools.partial(digits.batch, rows),
        f"a batch of {BATCH} digits in memory, shifted": functools.partial(shifted.batch, rows, rows),
    }
    return {what: best(work) for what, work in ways.items()}


def best(work: functools.partial[object]) -> float:
    """Seconds of a call: the best of several rounds of at least 0.2 seconds."""
    timer = timeit.Timer(work)
    number, _ = timer.autorange()
    return min(timer.repeat(ROUNDS, number)) / number


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data_loading.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        seconds = measure(Path(folder))
    document = {
        "command": "python benchmarks/data_loading.py",
        "machine": machine.describe(torch.device("cpu")),
        "seconds": seconds,
    }
    write_json(arguments.out, document)
    for what, value in seconds.items():
        print(f"{what}: {1e3 * value:.3g} ms")


if __name__ == "__main__":
    main()
