"""What a run is: `train.json` in its folder, by which the same command is told from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from fastddpm.checkpoint import CheckpointError
from fastddpm.checks import BadArgument, is_whole, shortened
from fastddpm.class_names import Names, class_names
from fastddpm.data.order import indices_for
from fastddpm.files import check_writable, made_folder, write_json
from fastddpm.inputs import Json, read_json
from fastddpm.schedule import NoiseSchedule
from fastddpm.tasks import Task
from fastddpm.tasks.registry import task_to_dict
from fastddpm.training import checkpoints
from fastddpm.training.checkpoints import RunNotWritten
from fastddpm.training.config import TrainConfig
from fastddpm.training.validation import TrainingData
from fastddpm.unet import UNetConfig

# Options that a resumed run may have otherwise: they change no weight. There may be more steps, too.
MAY_CHANGE = ("log_every", "checkpoint_every", "keep", "workers")
# How many samples stand for the data set.
FINGERPRINT = 16


def describe(
    config: TrainConfig,
    model: UNetConfig,
    schedule: NoiseSchedule,
    data: TrainingData,
    task: Task | None = None,
    first_weights: str | None = None,
) -> Json:
    """The JSON document of a run: its objective, options, network, schedule, task, data and first weights."""
    options = config.to_dict()
    return {
        "objective": options.pop("objective"),
        "train": options,
        "model": model.to_dict(),
        "schedule": schedule.to_dict(),
        "task": {"task": None} if task is None else task_to_dict(task),
        "data": {"data": _fingerprint(data, config.seed, with_labels=model.num_classes is not None)},
        "initial": {"init_from": first_weights},
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


def begin_or_go_on(run: Path, document: Mapping[str, object], *, resume: bool) -> int:
    """Writes the `train.json` of a new run, or checks that of one that has begun; the step to go on from.

    Args:
        run: its folder, which is there.
        document: what is asked for, of :func:`describe`.
        resume: False refuses a folder with checkpoints.

    Raises:
        ValueError: such a folder, or other options than it began with.
        CheckpointError: `train.json` is damaged.
        OSError: the folder cannot be written.
    """
    found = checkpoints.steps(run)
    if found and not resume:
        raise BadArgument("run", f"{run}, which holds checkpoints up to step {found[-1]},", "an empty folder")
    if not found or check_same_run(run, document):
        _write(run, document)
    return found[-1] if found else 0


def _write(run: Path, document: Mapping[str, object]) -> None:
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


def check_same_run(run: Path, document: Mapping[str, object]) -> bool:
    """Refuses to go on with a run under other options, but for more steps.

    Returns:
        Whether there are more.

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
    more = False
    for part, values in parts.items():
        for name in {**values, **now[part]}:
            old, new = values.get(name), now[part].get(name)
            is_steps = (part, name) == ("train", "steps")
            if is_steps and is_whole(old) and old < new:
                more = True
            elif old != new and name not in MAY_CHANGE:
                raise BadArgument(
                    shortened(name),
                    f"{new!r} for the run in {run}, which began with {old!r},",
                    "the same, or more, or another folder," if is_steps else "the same, or another folder,",
                )
    return more


def names_of(data: TrainingData, model: UNetConfig) -> Names | None:
    """What the data calls the classes that the network has; None where it does not say, or has others.

    Raises:
        ValueError: names that a model cannot keep.
    """
    names = getattr(data, "class_names", None)
    if names is None or len(names) != model.num_classes:
        return None
    return class_names(names)
