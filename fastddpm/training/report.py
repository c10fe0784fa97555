"""What a run leaves for people: the log, TensorBoard, the loss plot and the sample grids."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastddpm.checks import is_number, is_whole
from fastddpm.extras import needed
from fastddpm.files import replacing
from fastddpm.images import grid, save_png, to_uint8
from fastddpm.inputs import Json, parse_json, read_bytes
from fastddpm.sampler import Callback, Sampler
from fastddpm.tasks import Task
from fastddpm.training.validation import VALIDATION_ORDINAL, TrainingData

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MAX_LOG = 2**28
"""Bytes of a run's log: some million lines."""


class Log:
    """`log.jsonl`, one object a line, and TensorBoard's files where it is installed.

    Args:
        run: folder of the run.
        step: lines beyond this step are from before an interruption and are dropped.
    """

    def __init__(self, run: Path, step: int = 0) -> None:
        self.path = run / "log.jsonl"
        self.entries = [entry for entry in read_log(run) if entry["step"] <= step]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries))
        self._board: SummaryWriter | None = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, entry: Json) -> None:
        """Adds a line, whole or not at all; ``entry`` has a ``step``."""
        self.entries.append(entry)
        size = self.path.stat().st_size
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError:
            os.truncate(self.path, size)
            raise
        if self._board is not None:
            for name in entry.keys() - {"step"}:
                self._board.add_scalar(name, entry[name], entry["step"])

    def close(self) -> None:
        """Flushes TensorBoard's files."""
        if self._board is not None:
            self._board.close()


def read_log(run: Path) -> list[Json]:
    """The lines of a run's log that have a step; a last line cut short by a crash is left out.

    Raises:
        InputError: (a ValueError) a log that is no regular file, cannot be read, or has more than `MAX_LOG`
            bytes.
    """
    path = run / "log.jsonl"
    entries = []
    for line in read_bytes(path, MAX_LOG).decode("utf-8", "replace").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            entry = parse_json(line)
            if isinstance(entry, dict) and is_whole(entry.get("step")):
                entries.append(entry)
    return entries


def plot_losses(run: Path, entries: list[Json]) -> None:
    """Writes `loss.png`: training and validation loss over steps, on logarithmic axes."""
    figure = needed("matplotlib.figure", by="loss.png").Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in ("loss", "validation_loss"):
        points = [(entry["step"], entry[name]) for entry in entries if is_number(entry.get(name))]
        if points:
            axes.plot(*zip(*points, strict=True), ".-", label=name.replace("_", " "))
    axes.set(xlabel="step", ylabel="loss", xscale="log", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with replacing(run / "loss.png") as temporary:
        figure.savefig(temporary, dpi=120)


class Stopped(Exception):
    """A signal came while samples were drawn."""


def draw(
    run: Path, step: int, sampler: Sampler, task: Task | None, data: TrainingData, stopped: Sequence[int] = ()
) -> None:
    """Writes `samples/step_N.png`: samples, or for a task what it makes of images of ``data``.

    Nothing is written where ``stopped`` gets an element meanwhile.
    """

    def look(step: int, timestep: int, x: Tensor) -> None:
        if stopped:
            raise Stopped

    with contextlib.suppress(Stopped):
        if task is None:
            draw_grid(run, step, sampler, look)
        else:
            draw_restored(run, step, sampler, task, data, look)


def draw_grid(
    run: Path, step: int, sampler: Sampler, callback: Callback | None = None, n_images: int = 40
) -> None:
    """Writes `samples/step_N.png`, always of the same seeds; classes go round."""
    config = sampler.model.config  # type: ignore[attr-defined]
    labels = None if config.num_classes is None else [i % config.num_classes for i in range(n_images)]
    images = sampler.sample(seeds=range(n_images), class_labels=labels, progress=False, callback=callback)
    (run / "samples").mkdir(exist_ok=True)
    save_png(run / "samples" / f"step_{step:08d}.png", grid(to_uint8(images), columns=10))


def draw_restored(
    run: Path,
    step: int,
    sampler: Sampler,
    task: Task,
    data: TrainingData,
    callback: Callback | None = None,
    n_images: int = 10,
) -> None:
    """Writes `samples/step_N.png`: conditions, below them what is drawn from them, and the images below that.

    Always the same images, evenly spread over ``data``, and the same seeds.
    """
    count = min(n_images, len(data))
    images, _ = data.batch(torch.arange(count) * (len(data) // count))
    condition = task.condition(images, torch.arange(count) + VALIDATION_ORDINAL, 0)
    predicted = sampler.sample(seeds=range(count), condition=condition, progress=False, callback=callback)
    restored = task.restored(predicted.cpu(), condition)
    rows = torch.cat((task.base(condition, images.shape[1]), restored, images))
    (run / "samples").mkdir(exist_ok=True)
    save_png(run / "samples" / f"step_{step:08d}.png", grid(to_uint8(rows), columns=count))
