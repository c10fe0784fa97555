"""One `samples_NxHxWxC.npz` of all shards, as guided-diffusion's scripts write and its evaluator reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastddpm.files import replacing
from fastddpm.jobs.npz import Part, write_parts
from fastddpm.jobs.shards import read_samples, shard_name

if TYPE_CHECKING:
    from fastddpm.jobs.job import Job


def merged_file(job: Job) -> Path:
    """Where `merge` writes: `samples_NxHxWxC.npz` in the job's folder; of states that are no images, with
    their sides in order."""
    return job.outdir / f"samples_{'x'.join(map(str, _shape(job)))}.npz"


def merge(job: Job) -> None:
    """Writes ``arr_0``, uint8 ``(N, H, W, C)`` or float32 ``(N, ...)``, and, with classes, ``arr_1`` int64
    ``(N,)``, shard by shard.

    Raises:
        OSError: no space, a folder that cannot be written.
    """
    labels, shape = job.blocks.labels, _shape(job)
    dtype = np.dtype(np.uint8 if len(job.drawer.image_shape) == 3 else np.float32)
    shards = (
        read_samples(job.outdir / shard_name(i, job.format), job.format, job.blocks.shard(i)[0])
        for i in range(len(job.blocks))
    )
    parts: dict[str, Part] = {"arr_0": (shape, dtype, shards)}
    if labels is not None:
        parts["arr_1"] = (labels.shape, labels.dtype, [labels])
    with replacing(merged_file(job)) as temporary:
        write_parts(temporary, parts)


def _shape(job: Job) -> tuple[int, ...]:
    """Of all samples, channels last where they are images."""
    count, sides = len(job.blocks.seeds), job.drawer.image_shape
    return (count, *sides[1:], sides[0]) if len(sides) == 3 else (count, *sides)
