"""Workers on many machines: Ray Data schedules the shards, retries them and streams what is done.

A dataset of shard numbers goes through `map_batches` with a pool of actors, one per GPU, or per `threads`
CPUs. The shards are written by the actors, so the folder has to be on a disk that all machines see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastddpm.checks import BadArgument
from fastddpm.finite import NonFiniteSamples
from fastddpm.jobs.errors import JobStopped
from fastddpm.jobs.ray_cluster import connected

if TYPE_CHECKING:
    from fastddpm.jobs.job import Job


STOPS: dict[str, type[Exception]] = {stop.__name__: stop for stop in (JobStopped, NonFiniteSamples)}
"""What a worker may raise that says to a person what to do."""


def cluster_device() -> str:
    """``cuda`` where the cluster has GPUs, else ``cpu``."""
    return "cuda" if connected().cluster_resources().get("GPU", 0) else "cpu"


class _Worker:
    """An actor: has the model, draws the shards it is given, says why it had to stop."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.generic]]:
        shards = batch["shard"]
        try:
            images = [self.job.draw_shard(int(index))["images"] for index in shards]
        except tuple(STOPS.values()) as stopped:
            # Raised here it would reach the caller as a page of Ray's with no type.
            said = {"why": type(stopped).__name__, "stopped": str(stopped)}
            images = [0] * len(shards)
        else:
            said = {"why": "", "stopped": ""}
        return {"images": np.asarray(images), **{k: np.full(len(shards), v) for k, v in said.items()}}


def run_on_ray(job: Job, missing: Sequence[int], advance: Callable[[int], None]) -> None:
    """Draws shards on all machines of the cluster.

    Args:
        job: whose shards; its folder is the same on every machine.
        missing: their numbers.
        advance: told how many images are there more.

    Raises:
        ValueError: Ray is not installed, or the cluster has not one processor that is wanted.
        JobStopped: a worker cannot write.
        NonFiniteSamples: a worker has drawn NaN or infinity.
        ray.exceptions.RayError: anything else that a worker raised. Where its process or machine was lost,
            Ray starts another and has its shards drawn again.
    """
    if not missing:
        return
    ray = connected()
    kind, share = ("GPU", 1) if job.drawer.device == "cuda" else ("CPU", job.drawer.threads)
    actors = int(ray.cluster_resources().get(kind, 0)) // share
    if not actors:
        raise BadArgument(
            "workers",
            f"'ray', to a cluster without {share} {kind} for a worker,",
            "--device cpu, fewer --threads, or a larger cluster",
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # there is one of our own, in images
    rows = ray.data.from_items([{"shard": index} for index in missing], override_num_blocks=len(missing))
    done = rows.map_batches(
        _Worker,
        fn_constructor_args=(job.at(Path(job.outdir).absolute()),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(missing))),
        **{f"num_{kind.lower()}s": share},
    )
    for row in done.iter_rows():
        if row["stopped"]:
            raise STOPS[row["why"]](row["stopped"])
        advance(int(row["images"]))
