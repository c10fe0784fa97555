"""What an image of a sampling job costs one CPU thread and the disk: the figures of docs/scale.md.

    python benchmarks/jobs.py [--out benchmarks/results/jobs.json]

Times are of the processor (`time.process_time`), so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastddpm
from fastddpm.files import write_json
from fastddpm.jobs import TorchDrawer
from fastddpm.jobs.shards import FORMATS, digest, shard_name, write_shard
from fastddpm_bench import machine

IMAGES = 128
BLOCK = 64
SHARD = 1024


def processor_time(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor that a call took, and what it returned."""
    began = time.process_time()
    made = work()
    return time.process_time() - began, made


def drawing() -> tuple[dict[str, float], np.ndarray[Any, Any]]:
    """Seconds an image of the model in the box, 50 steps in blocks of 64, and the images."""
    drawer = TorchDrawer(fastddpm.load())
    blocks = np.split(np.arange(IMAGES), IMAGES // BLOCK)
    drawer.draw(blocks[0], blocks[0] % 10)
    seconds, drawn = processor_time(lambda: [drawer.draw(block, block % 10) for block in blocks])
    return {"images": IMAGES, "seconds_an_image": seconds / IMAGES}, np.concatenate(drawn)


def shard(format: str, pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any] | None) -> dict[str, float]:
    """Bytes and seconds an image of one shard, written and checked."""
    count = len(pixels)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / shard_name(0, format)
        writing, _ = processor_time(lambda: write_shard(path, format, pixels, np.arange(count), labels))
        checking, (size, _) = processor_time(lambda: digest(path))
        files = path.rglob("*") if path.is_dir() else [path]
        on_disk = sum(file.stat().st_blocks * 512 for file in files)
    return {
        "images": count,
        "bytes": size / count,
        "bytes_on_disk": on_disk / count,
        "seconds_to_write": writing / count,
        "seconds_to_check": checking / count,
    }


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/jobs.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cost, pixels = drawing()
    many = np.tile(pixels, (SHARD // IMAGES, 1, 1, 1))
    shards = {format: shard(format, many, np.arange(SHARD) % 10) for format in FORMATS}
    # Colour photographs of 256 x 256, of noise: the worst for PNG.
    noise = np.random.default_rng(0).integers(0, 256, (64, 256, 256, 3), np.uint8)
    shards["npz of 256x256x3"] = shard("npz", noise, None)
    document = {
        "command": "python benchmarks/jobs.py",
        "machine": machine.describe(torch.device("cpu")),
        "drawing": cost,
        "shards": shards,
    }
    write_json(arguments.out, document)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
