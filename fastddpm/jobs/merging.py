"""One `samples_NxHxWxC.npz` of all shards, as guided-diffusion's scripts write and its evaluator reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastddpm.files import replacing
from fastddpm.jobs.npz import Part, write_parts
from fastddpm.jobs.shards import read_shard, shard_name

if TYPE_CHECKING:
    from fastddpm.jobs.job import Job


def merged_file(job: Job) -> Path:
    """Where `merge` writes: `samples_NxHxWxC.npz` in the job's folder."""
    channels, height, width = job.drawer.image_shape
    return job.outdir / f"samples_{len(job.blocks.seeds)}x{height}x{width}x{channels}.npz"


def merge(job: Job) -> None:
    """Writes ``arr_0`` uint8 ``(N, H, W, C)`` and, with classes, ``arr_1`` int64 ``(N,)``, shard by shard.

    Raises:
        OSError: no space, a folder that cannot be written.
    """
    channels, height, width = job.drawer.image_shape
    labels, shape = job.blocks.labels, (len(job.blocks.seeds), height, width, channels)
    files = (job.outdir / shard_name(i, job.format) for i in range(len(job.blocks)))
    parts: dict[str, Part] = {
        "arr_0": (shape, np.dtype(np.uint8), (read_shard(file, job.format) for file in files))
    }
    if labels is not None:
        parts["arr_1"] = (labels.shape, labels.dtype, [labels])
    with replacing(merged_file(job)) as temporary:
        write_parts(temporary, parts)
