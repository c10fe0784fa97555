"""`Job`: seeds drawn into a folder of shards. Run again, it draws what is missing."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

import fastddpm
from fastddpm.checks import BadArgument, check_choice
from fastddpm.files import FULL
from fastddpm.inputs import Json
from fastddpm.jobs.blocks import Blocks, as_ranges
from fastddpm.jobs.conditions import Given, Rows
from fastddpm.jobs.drawers import Drawer
from fastddpm.jobs.errors import JobStopped
from fastddpm.jobs.manifest import (
    MANIFEST,
    RECORDS,
    Record,
    add_record,
    check_place,
    close_manifest,
    intact,
    open_manifest,
    read_records,
)
from fastddpm.jobs.merging import merge as merge_shards
from fastddpm.jobs.processes import started_together
from fastddpm.jobs.ray_workers import run_on_ray
from fastddpm.jobs.shards import (
    FORMATS,
    PICTURE_CHANNELS,
    Samples,
    digest,
    shard_name,
    write_shard,
)
from fastddpm.locks import exclusive
from fastddpm.progress import progress_bar
from fastddpm.signatures import checked
from fastddpm.temporaries import remove_leftovers

WORKERS = ("local", "ray")


class Job:
    """Images of many seeds, or states of another shape, in shards.

    The files depend on these arguments alone: not on how many processes or machines draw them, nor on how
    often the job was killed and run again, on processors of one kind.

    Args:
        drawer: `TorchDrawer` or `OnnxDrawer`.
        seeds: one integer in [0, 2**63) per image, each once.
        outdir: the folder: new, empty, or of the same job.
        class_labels: one for all, or one per seed; None for a model without classes.
        cond: arrays or tensors ``(N or 1, ...)`` that the model is given by name, as of `Sampler.sample`: a
            row per seed, or one for all.
        uncond: likewise; with guidance, for the half without them.
        format: ``npz``, ``png`` or ``webdataset``; see `fastddpm.jobs.shards`.
        shard_size: images in a file; a multiple of ``batch_size``.
        batch_size: images drawn at a time; the last block is padded to it.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """

    @checked
    def __init__(
        self,
        drawer: Drawer,
        seeds: Sequence[int] | npt.ArrayLike,
        outdir: str | Path,
        *,
        class_labels: int | Sequence[int] | npt.ArrayLike | None = None,
        cond: Rows | None = None,
        uncond: Rows | None = None,
        format: str = "npz",
        shard_size: int = 1024,
        batch_size: int = 64,
    ) -> None:
        check_choice("format", format, FORMATS)
        shape = drawer.image_shape
        if format != "npz" and (len(shape) != 3 or shape[0] not in PICTURE_CHANNELS):
            what = f"images of {shape[0]} channels" if len(shape) == 3 else f"states of shape {shape}"
            raise BadArgument("format", f"{format!r} for {what}, which are no pictures,", "npz")
        self.drawer, self.outdir, self.format = drawer, Path(outdir), format
        self.blocks = Blocks.of(seeds, class_labels, batch_size, shard_size)
        self.given = Given.of(cond, uncond, len(self.blocks.seeds))
        if self.given is None:
            drawer.check(self.blocks.labels)
        else:
            drawer.check(self.blocks.labels, self.given)

    def at(self, outdir: Path) -> Job:
        """The same job with its folder named otherwise."""
        other = copy.copy(self)
        other.outdir = outdir
        return other

    def settings(self) -> Json:
        """Everything that the files depend on, as JSON values."""
        blocks = self.blocks
        labels = blocks.labels
        return {
            "fastddpm": fastddpm.__version__,
            "seeds": as_ranges(blocks.seeds),
            "classes": None if labels is None else as_ranges(np.unique(labels)),
            "class_labels": None if labels is None else hashlib.sha256(labels.tobytes()).hexdigest(),
            "format": self.format,
            "shard_size": blocks.shard_size,
            "batch_size": blocks.batch_size,
            **({} if self.given is None else self.given.digests()),
            **self.drawer.describe(),
        }

    @checked
    def run(self, *, workers: str = "local", merge: bool = False, progress: bool = True) -> int | None:
        """Draws what is missing.

        Args:
            workers: ``local``: this process, and those that torchrun or accelerate started with it; ``ray``:
                the machines of a Ray cluster.
            merge: write `samples_NxHxWxC.npz` too (of other states `samples_Nx....npz`) when all is drawn.
            progress: show a progress bar on a terminal.

        Returns:
            Images drawn now, by all processes; None in all but the first of those started together.

        Raises:
            OtherSettingsError: the folder holds a job with other settings.
            FolderInUse: another job is running there.
            ValueError: the folder holds something else; Ray is not there.
            JobStopped: the folder cannot be written; run again, the job goes on.
            NonFiniteSamples: NaN or infinity among the images of a batch; its shard is not written.
        """
        check_choice("workers", workers, WORKERS)
        with started_together() as group, ExitStack() as held:
            if workers == "ray" and group.size > 1:
                raise BadArgument("workers", "'ray' to processes started together", "one process")
            missing = group.from_first(lambda: self._begin(held))
            mine = missing[group.rank :: group.size]
            with progress_bar(progress, self._images(mine), unit="images") as advance:
                if workers == "ray":
                    run_on_ray(self, mine, advance)
                else:
                    for index in mine:
                        self.draw_shard(index, advance)
            group.from_first(lambda: self._end(merge))
            return self._images(missing) if group.is_first else None

    def draw_shard(self, index: int, advance: Callable[[int], None] = lambda count: None) -> Record:
        """Draws one shard and writes it, then its record; the record."""
        seeds, labels = self.blocks.shard(index)
        samples: list[Samples] = []
        for places, count in self.blocks.places(index):
            samples.append(self._pixels(places)[:count])
            advance(count)
        name = shard_name(index, self.format)
        with self._writing():
            write_shard(self.outdir / name, self.format, _joined(samples), seeds, labels)
            size, checksum = digest(self.outdir / name)
            record: Record = {
                "name": name,
                "images": len(seeds),
                "bytes": size,
                "sha256": checksum,
                "made_on": self.drawer.made_on(),
            }
            add_record(self.outdir, record)
        return record

    def _pixels(self, places: npt.NDArray[np.int64]) -> Samples:
        seeds, labels = self.blocks.seeds[places], self.blocks.labels
        labels = None if labels is None else labels[places]
        if self.given is None:
            return self.drawer.draw(seeds, labels)
        return self.drawer.draw(seeds, labels, self.given.rows(places))

    def _begin(self, held: ExitStack) -> list[int]:
        """Checks, makes and holds the folder; the shards that are not there, or not as they were written."""
        with self._writing():
            check_place(self.outdir)
            self.outdir.mkdir(parents=True, exist_ok=True)
            held.enter_context(exclusive(self.outdir, "outdir", "job"))
            self._remove_leftovers()
            open_manifest(self.outdir, self.settings())
            there = intact(self.outdir)
        return [i for i in range(len(self.blocks)) if shard_name(i, self.format) not in there]

    def _end(self, merge: bool) -> None:
        with self._writing():
            records = read_records(self.outdir)
            self._remove_leftovers()  # of workers that were lost
            close_manifest(self.outdir, records)
            if merge:
                merge_shards(self)

    def _remove_leftovers(self) -> None:
        for folder in (self.outdir, self.outdir / RECORDS):
            if folder.is_dir():
                remove_leftovers(folder, alone=True)

    def _images(self, shards: Sequence[int]) -> int:
        return sum(len(self.blocks.shard(index)[0]) for index in shards)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Says what a full disk or a folder without the right to write means for the job."""
        try:
            yield
        except OSError as error:
            advice = "make space there" if error.errno in FULL else "make it writable"
            done = len(read_records(self.outdir)) if (self.outdir / MANIFEST).is_file() else 0
            raise JobStopped(
                f"outdir: {str(self.outdir)!r} cannot be written ({error.strerror or error}); {done} of "
                f"{len(self.blocks)} shards are complete; {advice} and run the same again: "
                "it draws what is missing"
            ) from error


def _joined(samples: list[Samples]) -> Samples:
    """The batches of a shard, one after another."""
    joined: Samples = np.concatenate(samples)
    return joined
