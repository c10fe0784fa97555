"""Checkpoints of a training run: folders of safetensors and JSON, whole or not there.

`RUN/checkpoints/step_00000500/` holds `model`, `ema` and `optimizer` (.safetensors) and `state.json`. A
folder is written under a temporary name and renamed; the last few and the best stay.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastddpm.checkpoint import CheckpointError
from fastddpm.files import replacing

TENSOR_FILES = ("model", "ema", "optimizer")
# Options that a resumed run may have otherwise: they change no weight.
MAY_CHANGE = ("log_every", "checkpoint_every", "keep")


def begin_run(run: Path, document: Mapping[str, Any]) -> None:
    """Makes the folder of a run and writes what is trained, and how, to its `train.json`."""
    run.mkdir(parents=True, exist_ok=True)
    with replacing(run / "train.json") as temporary:
        temporary.write_text(json.dumps(dict(document), indent=2) + "\n")


def check_same_run(run: Path, document: Mapping[str, Any]) -> None:
    """Refuses to go on with a run under other options.

    Raises:
        ValueError: naming the first option that differs from `train.json`.
    """
    before, now = json.loads((run / "train.json").read_text()), json.loads(json.dumps(dict(document)))
    for part in now:
        for name in {**before[part], **now[part]}:
            old, new = before[part].get(name), now[part].get(name)
            if old != new and name not in MAY_CHANGE:
                raise ValueError(
                    f"{name}: {new!r} given, but the run in {run} began with {old!r}; "
                    "the same, or another folder, accepted"
                )


def save(
    run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
) -> Path:
    """Writes the checkpoint of a step and removes old ones.

    Args:
        run: folder of the run.
        step: steps done.
        tensors: by file name (``TENSOR_FILES``), then by tensor name.
        state: JSON values; ``state["best_step"]`` names the checkpoint that is never removed.
        keep: checkpoints kept besides the best.

    Raises:
        OSError: it could not be written; earlier checkpoints are as they were.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    target, temporary = folder / f"step_{step:08d}", folder / f".step_{step:08d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for name in TENSOR_FILES:
            values = {k: v.detach().cpu().contiguous() for k, v in tensors[name].items()}
            save_file(values, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(dict(state), indent=2) + "\n")
        for path in temporary.iterdir():
            _sync(path)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, SafetensorError):
            raise OSError(f"{target}: could not be written ({error})") from error
        raise
    for old in steps(run)[:-keep]:
        if old != state.get("best_step"):
            shutil.rmtree(folder / f"step_{old:08d}")
    return target


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints that are there, rising."""
    found = (run / "checkpoints").glob("step_*/state.json")
    return sorted(int(path.parent.name.removeprefix("step_")) for path in found)


def read(run: Path, step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by file and name, and the state, of a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    folder = run / "checkpoints" / f"step_{step:08d}"
    try:
        tensors = {name: load_file(folder / f"{name}.safetensors") for name in TENSOR_FILES}
        state = json.loads((folder / "state.json").read_text())
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder}: not readable ({error})") from error
    return tensors, state


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: ``3.exp_avg`` is parameter 3's."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(v) for i, values in state.items() for name, v in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what :func:`optimizer_tensors` gave; learning rates are the scheduler's."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
