"""`fastddpm sample --format`: many seeds into a folder of shards, by this process, its siblings, or Ray."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
import typer

from fastddpm.checks import BadArgument, whole
from fastddpm.cli.arguments import parse_device
from fastddpm.engine import Engine
from fastddpm.extras import needed
from fastddpm.jobs import Drawer, Job, OnnxDrawer, TorchDrawer
from fastddpm.jobs.errors import FirstProcessFailed
from fastddpm.jobs.merging import merged_file
from fastddpm.jobs.ray_workers import cluster_device
from fastddpm.sampler import Sampler

if TYPE_CHECKING:
    from fastddpm.onnx.request import PlanOptions


@dataclasses.dataclass(frozen=True)
class JobOptions:
    """The options that only a job has; `format` makes one.

    Attributes:
        outdir: the folder.
        format: ``npz``, ``png`` or ``webdataset``; None for no job.
        shard_size: images in a file; None for 1024, rounded up to whole batches.
        workers: ``local`` or ``ray``.
        threads: of a worker on a CPU; None for 1.
        merge: write one npz of all images too.
    """

    outdir: Path | None
    format: str | None
    shard_size: int | None
    workers: str | None
    threads: int | None
    merge: bool

    def check(self, **others: Path | None) -> bool:
        """Whether this is a job; ValueError where it is none and has its options, or has another output."""
        if self.format is None:
            names = ("shard_size", "workers", "threads", "merge")
            # 0 equals False, and was given all the same.
            given = [name for name in names if not any(getattr(self, name) is none for none in (None, False))]
            if given:
                raise BadArgument(
                    f"--{given[0].replace('_', '-')}", "one without --format, which makes shards,", "both"
                )
            return False
        for name in ("out", "trajectory"):
            if others[name] is not None:
                raise BadArgument(
                    f"--{name}",
                    f"{str(others[name])!r} with --format, whose images go into --outdir,",
                    "no value",
                )
        if self.outdir is None:
            raise BadArgument(
                "--format", f"{self.format!r} without --outdir, the folder of the shards,", "both"
            )
        return True

    @property
    def of_a_worker(self) -> int:
        """Threads, as typed or 1."""
        return 1 if self.threads is None else self.threads

    def device(self, text: str | None) -> str:
        """Where the worker draws: as typed; else CUDA where there is one, this process's own of several."""
        if self.workers == "ray":
            if text not in (None, "cpu", "cuda"):
                raise BadArgument("--device", f"{text!r} with --workers ray", "cpu or cuda")
            return text or cluster_device()
        device = parse_device(text)
        if device.type == "cuda" and device.index is None:
            return f"cuda:{dist.get_node_local_rank(fallback_rank=0)}"
        return str(device)


def torch_drawer(
    sampler: Sampler, options: JobOptions, *, guidance: float, device: str, engine: Engine
) -> TorchDrawer:
    """A drawer of a sampler, which is on the CPU where its device may be another machine's."""
    return TorchDrawer(
        sampler,
        guidance_scale=guidance,
        threads=options.of_a_worker,
        device=device,
        engine=engine,
    )


def onnx_drawer(
    folder: str, options: JobOptions, *, device: str | None, guidance: float, plan: PlanOptions
) -> OnnxDrawer:
    """A drawer of an export. ``plan`` has the method and its options."""
    needed("onnxruntime", by="--backend onnx")
    kind, _, index = options.device(device).partition(":")
    return OnnxDrawer(
        folder,
        # Left open, ONNX Runtime takes CUDA where it starts.
        "auto" if device is None and options.workers != "ray" else kind,
        guidance_scale=guidance,
        threads=options.of_a_worker,
        options=plan,
        provider_options={"device_id": index} if index else None,
    )


def run_job(
    drawer: Drawer,
    options: JobOptions,
    seeds: list[int],
    labels: list[int] | None,
    *,
    batch: int,
) -> None:
    """Draws what is missing in a folder and says what is there."""
    assert options.format is not None
    assert options.outdir is not None
    began = time.perf_counter()
    job = Job(
        drawer,
        seeds,
        options.outdir,
        class_labels=labels,
        format=options.format,
        shard_size=-(-1024 // whole("max_batch", batch, least=1)) * batch
        if options.shard_size is None
        else options.shard_size,
        batch_size=batch,
    )
    try:
        drawn = job.run(workers=options.workers or "local", merge=options.merge)
    except FirstProcessFailed:  # which says why
        raise typer.Exit(2) from None
    if drawn is None:  # another of the processes started together speaks
        return
    seconds = time.perf_counter() - began
    files = f"{len(job.blocks)} {options.format} shard{'s' * (len(job.blocks) > 1)}"
    speed = f"{drawn} of {len(seeds)} images drawn now in {seconds:.1f} s, {drawn / seconds:.1f} images/s"
    merged = f", {merged_file(job).name}" if options.merge else ""
    print(f"{speed} -> {options.outdir}/ ({files}{merged})")
