"""Checkpoints of a training run: folders of safetensors and JSON, whole or not there.

`RUN/checkpoints/step_00000500/` holds `model`, `ema` and `optimizer` (.safetensors) and `state.json`. A
folder is written under a temporary name and renamed; the last few and the best stay.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastddpm.checkpoint import CheckpointError

TENSOR_FILES = ("model", "ema", "optimizer")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def explained(run: Path) -> Iterator[None]:
    """While files of a run are written: an error says which checkpoint is left and how to go on.

    Raises:
        OSError: one that the block raised, or in place of a SafetensorError, with that said.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = _error_number(error)
        what = "make space there" if code in FULL else "make it writable"
        saved = steps(run)
        left = f"step {saved[-1]} is saved" if saved else "nothing is saved yet"
        reason = os.strerror(code) if code else error
        raise OSError(
            f"run: {run} could not be written ({reason}); {left}; {what} and give the same command again: "
            f"it {'goes on from there' if saved else 'begins anew'}"
        ) from error


def _error_number(error: OSError | SafetensorError) -> int | None:
    """errno; safetensors has it in its text: ``I/O error: ... (os error 28)``."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


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
        OSError, SafetensorError: it could not be written; earlier checkpoints are as they were.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    target, temporary = _folder(run, step), folder / f".step_{step:08d}.tmp"
    for left in folder.glob(".step_*.tmp"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
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
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in steps(run)[:-keep]:
        if old != state.get("best_step"):
            shutil.rmtree(_folder(run, old))
    return target


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints that are there, rising."""
    found = (run / "checkpoints").glob("step_*/state.json")
    numbers = (path.parent.name.removeprefix("step_") for path in found)
    return sorted(int(number) for number in numbers if number.isdecimal())


def read(run: Path, step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by file and name, and the state, of a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged; names it, and the newest earlier checkpoint that is
            intact. Going back to that is left to a person: it loses steps.
    """
    try:
        return _read(run, step)
    except CheckpointError as error:
        advice = "no earlier checkpoint is intact: another folder, or this one emptied, accepted"
        for earlier in reversed([number for number in steps(run) if number < step]):
            with contextlib.suppress(CheckpointError):
                _read(run, earlier)
                advice = f"step {earlier} is intact: remove {_folder(run, step)} to go on from there"
                break
        raise CheckpointError(f"{error}; {advice}") from error


def _read(run: Path, step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    file = _folder(run, step)
    try:
        tensors = {}
        for name in TENSOR_FILES:
            file = _folder(run, step) / f"{name}.safetensors"
            tensors[name] = load_file(file)
        file = _folder(run, step) / "state.json"
        return tensors, json.loads(file.read_text())
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable ({error})") from error


def _folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


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
