"""What a run is: `train.json` in its folder, by which the same command is told from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from fastddpm.checkpoint import CheckpointError
from fastddpm.checks import BadArgument, shortened
from fastddpm.data.order import indices_for
from fastddpm.files import check_writable, made_folder, write_json
from fastddpm.inputs import Json, read_json
from fastddpm.schedule import NoiseSchedule
from fastddpm.tasks import Task
from fastddpm.tasks.registry import task_to_dict
from fastddpm.training.config import TrainConfig
from fastddpm.training.validation import TrainingData
from fastddpm.unet import UNetConfig

# Options that a resumed run may have otherwise: they change no weight.
MAY_CHANGE = ("log_every", "checkpoint_every", "keep")
# How many samples stand for the data set.
FINGERPRINT = 16


class RunNotWritten(OSError):
    """The folder of a run cannot be written."""

    argument = "run"


def describe(
    config: TrainConfig,
    model: UNetConfig,
    schedule: NoiseSchedule,
    data: TrainingData,
    task: Task | None = None,
) -> Json:
    """The JSON document of a run: its objective, options, network, schedule, task and data."""
    options = config.to_dict()
    return {
        "objective": options.pop("objective"),
        "train": options,
        "model": model.to_dict(),
        "schedule": schedule.to_dict(),
        "task": {"task": None} if task is None else task_to_dict(task),
        "data": {"data": _fingerprint(data, config.seed, with_labels=model.num_classes is not None)},
    }


def _fingerprint(data: TrainingData, seed: int, with_labels: bool) -> str:
    """The run's first samples, augmented, as a hash: other data or another augmentation differ."""
    indices = indices_for(0, FINGERPRINT, len(data), seed)
    x_0, labels = data.batch(indices, torch.arange(FINGERPRINT), seed=seed)
    digest = hashlib.sha256(x_0.numpy().tobytes())
    if labels is not None and with_labels:
        digest.update(labels.numpy().tobytes())
    return f"{len(data)} images, first samples {digest.hexdigest()[:16]}"


def make_run(run: Path) -> None:
    """Makes the folder of a run, if it is not there.

    Raises:
        OSError: it cannot be made or written; says so of ``run``.
    """
    with _explained(run), made_folder(run):
        check_writable(run)


def begin_run(run: Path, document: Mapping[str, object]) -> None:
    """Writes a run's `train.json`.

    Raises:
        OSError: it cannot be written; says so of ``run``.
    """
    with _explained(run):
        write_json(run / "train.json", dict(document))


@contextmanager
def _explained(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunNotWritten(
            f"run: {str(run)!r} given, a folder that can be made and written accepted ({error.strerror})"
        ) from error


def check_same_run(run: Path, document: Mapping[str, object]) -> None:
    """Refuses to go on with a run under other options.

    Raises:
        ValueError: naming the first option that differs from `train.json`.
        CheckpointError: `train.json` is damaged.
    """
    now = json.loads(json.dumps(dict(document)))
    try:
        before = read_json(run / "train.json")
        # A part that is not there is of a run from before that part was written.
        parts = {part: dict(before.get(part, now[part])) for part in now}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{run / 'train.json'}: not readable ({error})") from error
    for part, values in parts.items():
        for name in {**values, **now[part]}:
            old, new = values.get(name), now[part].get(name)
            if old != new and name not in MAY_CHANGE:
                raise BadArgument(
                    shortened(name),
                    f"{new!r} for the run in {run}, which began with {old!r},",
                    "the same, or another folder,",
                )
