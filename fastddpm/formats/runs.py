"""Folders of training runs: what stands for a run is the model in it, which every checkpoint makes anew."""

from __future__ import annotations

from pathlib import Path

from fastddpm.formats.files import CheckpointError


def recognises(folder: Path) -> bool:
    """Whether `fastddpm train` writes to a folder."""
    return (folder / "train.json").is_file() and not (folder / "config.json").exists()


def model_of(folder: Path) -> Path:
    """The model folder of a run.

    Raises:
        CheckpointError: there is none yet; says which checkpoints there are.
    """
    model = folder / "model"
    if (model / "config.json").is_file():  # which is written last
        return model
    steps = sorted(path.name for path in folder.glob("checkpoints/step_*") if path.is_dir())
    if not steps:
        raise CheckpointError(
            f"{folder}: a run without a checkpoint so far, which has no model; one that has reached its "
            "first accepted"
        )
    raise CheckpointError(
        f"{folder}: a run without a model, whose last checkpoint is checkpoints/{steps[-1]}; one that has a "
        "model accepted: the same `fastddpm train` again goes on and writes it"
    )
