"""Small jobs of the tiny network, and what may be found in a folder, for the tests of sampling jobs."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path

from networks import make_unet

from fastddpm import NoiseSchedule, Sampler
from fastddpm.jobs import Job, TorchDrawer

COUNT = 90
SEEDS = [*range(COUNT - 1), 2**40 + 3]
LABELS = [seed % 4 for seed in SEEDS]
# The last shard has 2 images, and so has its only block.
SIZES = {"shard_size": 4, "batch_size": 4}
SHARDS = 23


def tiny_job(outdir: Path, steps: int = 2, **options) -> Job:
    """90 images of 3x8x8 in 23 shards, guided."""
    sampler = Sampler(
        make_unet(),
        NoiseSchedule.linear(1000),
        num_inference_steps=steps,
        clip_sample_range=1.0,
        shape=(3, 8, 8),
        engine="eager",
    )
    drawer = TorchDrawer(sampler, guidance_scale=1.5)
    return Job(drawer, SEEDS, outdir, class_labels=LABELS, **{**SIZES, **options})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its relative path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def start(work, *arguments, **environment: str):
    """A process that has all modules already: ``work(*arguments)`` in a copy of this one."""

    def run():
        os.environ.update(environment)
        work(*arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def start_two(work, *arguments):
    """Two processes with what torchrun tells those that it starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    if sys.platform == "linux":
        place["GLOO_SOCKET_IFNAME"] = "lo"
    return [start(work, *arguments, **place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
