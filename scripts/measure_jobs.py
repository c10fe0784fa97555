"""What an image of a sampling job costs one CPU thread and the disk: the figures of docs/scale.md.

    python scripts/measure_jobs.py

Times are of the processor (`time.process_time`), so that other work on the machine counts little.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import fastddpm
from fastddpm.jobs import TorchDrawer
from fastddpm.jobs.shards import FORMATS, digest, shard_name, write_shard

IMAGES = 128
SHARD = 1024


def main() -> None:
    """Prints one line a figure."""
    torch.set_num_threads(1)
    drawer = TorchDrawer(fastddpm.load())
    seeds = np.arange(IMAGES)
    drawer.draw(seeds[:64], seeds[:64] % 10)
    began = time.process_time()
    pixels = np.concatenate([drawer.draw(part, part % 10) for part in np.split(seeds, IMAGES // 64)])
    seconds = time.process_time() - began
    print(
        f"drawing: {IMAGES} images, 50 steps, blocks of 64: {1e3 * seconds / IMAGES:.1f} ms each, "
        f"{IMAGES / seconds:.2f} images/s of one thread"
    )
    many = np.tile(pixels, (SHARD // IMAGES, 1, 1, 1))
    labels, every = np.arange(SHARD) % 10, np.arange(SHARD)
    with tempfile.TemporaryDirectory() as name:
        for format in FORMATS:
            path = Path(name) / shard_name(0, format)
            began = time.process_time()
            write_shard(path, format, many, every, labels)
            writing = time.process_time() - began
            began = time.process_time()
            size, _ = digest(path)
            checking = time.process_time() - began
            files = path.rglob("*") if path.is_dir() else [path]
            on_disk = sum(file.stat().st_blocks * 512 for file in files)
            print(
                f"{format}: {size / SHARD:.0f} bytes an image, {on_disk / SHARD:.0f} on this disk, "
                f"{1e6 * writing / SHARD:.0f} us to write, {1e6 * checking / SHARD:.1f} us to check"
            )
    # As many pixels as those of a colour photograph of 256 x 256, of noise: the worst for PNG.
    noise = np.random.default_rng(0).integers(0, 256, (64, 256, 256, 3), np.uint8)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / shard_name(0, "npz")
        write_shard(path, "npz", noise, every[:64], None)
        began = time.process_time()
        size, _ = digest(path)
        speed = size / (time.process_time() - began)
        print(
            f"npz of 256x256x3: {size / 64:.0f} bytes an image; SHA-256 {speed / 1e9:.2f} GB/s of one thread"
        )


if __name__ == "__main__":
    main()
