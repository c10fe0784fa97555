"""Checkpoints of a training run: folders of safetensors and JSON, whole or not there.

`RUN/checkpoints/step_00000500/` holds `model`, `ema` and `optimizer` (.safetensors), `state.json` and their
SHA-256. A folder is written under a temporary name and renamed; the last few and the best stay.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastddpm.checkpoint import CheckpointError
from fastddpm.checks import fitted
from fastddpm.files import FULL, replacing_folder, sha256, write_tensors
from fastddpm.inputs import Json, check_regular, read_json

TENSOR_FILES = ("model", "ema", "optimizer")
CHECKSUMS = "sha256.json"


class RunNotWritten(OSError):
    """The folder of a run cannot be written."""

    argument = "run"


@contextlib.contextmanager
def explained(run: Path) -> Iterator[None]:
    """While files of a run are written: an error says which checkpoint is left and how to go on.

    Raises:
        OSError: one that the block raised, with that said.
    """
    try:
        yield
    except OSError as error:
        code = error.errno
        what = "make space there" if code in FULL else "make it writable"
        saved = steps(run)
        left = f"step {saved[-1]} is saved" if saved else "nothing is saved yet"
        reason = os.strerror(code) if code else error
        raise RunNotWritten(
            f"run: {run} could not be written ({reason}); {left}; {what} and give the same command again: "
            f"it {'goes on from there' if saved else 'begins anew'}"
        ) from error


def save(
    run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, object], keep: int
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
    target = _folder(run, step)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(target) as temporary:
        for name in TENSOR_FILES:
            write_tensors(temporary / f"{name}.safetensors", tensors[name])
        (temporary / "state.json").write_text(json.dumps(dict(state), indent=2) + "\n")
        sums = {path.name: sha256(path) for path in temporary.iterdir()}
        (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
        shutil.rmtree(target, ignore_errors=True)
    for old in steps(run)[:-keep]:
        if old != state.get("best_step"):
            shutil.rmtree(_folder(run, old))
    return target


def steps(run: Path) -> list[int]:
    """Steps of the checkpoints that are there, rising."""
    found = (run / "checkpoints").glob("step_*/state.json")
    numbers = (path.parent.name.removeprefix("step_") for path in found)
    return sorted(int(number) for number in numbers if number.isdecimal())


def read(run: Path, step: int) -> tuple[dict[str, dict[str, Tensor]], Json]:
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


def _read(run: Path, step: int) -> tuple[dict[str, dict[str, Tensor]], Json]:
    folder = _folder(run, step)
    file = folder / CHECKSUMS
    try:
        sums = read_json(file) if file.exists() else {}  # older checkpoints have none
        tensors = {}
        for name in TENSOR_FILES:
            file = folder / f"{name}.safetensors"
            check_regular(file)
            _check_intact(file, sums)
            tensors[name] = load_file(file)
        file = folder / "state.json"
        _check_intact(file, sums)
        return tensors, read_json(file)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: not readable ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """What is wrong with a file; safetensors quotes what it found in one."""
    return fitted(str(error), 160) if isinstance(error, SafetensorError) else str(error)


def _check_intact(file: Path, sums: Mapping[str, str]) -> None:
    if file.name in sums and sums[file.name] != sha256(file):
        raise ValueError("it is not as it was written")


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
