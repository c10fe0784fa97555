"""Whole files of training scripts: tensors among counters, optimisers and settings, without running anything.

Settings may be objects of any class. In the place of each stands a `StandIn` that keeps nothing: neither the
class nor its module is looked up, and `torch.load(weights_only=True)` reads the rest as ever.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fastddpm import inputs
from fastddpm.checks import fitted
from fastddpm.formats.files import CheckpointError, torch_document
from fastddpm.formats.refused import is_edm_pickle
from fastddpm.inputs import InputError

INSTEAD = "fastddpm.score takes the network that its own code builds"
MAX_CLASSES = 256
"""Classes of objects in one file."""


class StandIn:
    """In the place of an object of another class, or of what a function of another module would return."""

    def __new__(cls, *_: object, **__: object) -> StandIn:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Keeps nothing of it."""


def read_document(path: Path) -> object:
    """What is in a file, on the CPU: safetensors by that suffix, else what `torch.save` wrote.

    Raises:
        CheckpointError: not found, not a regular file, not complete, or more than tensors, numbers, text and
            objects to which a `StandIn` does justice.
    """
    try:
        size = inputs.check_regular(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        with inputs.open_regular(path) as file:
            try:
                return torch_document(path, file, size)
            except CheckpointError as error:
                file.seek(0)
                if is_edm_pickle(file.read(2**20)):
                    raise CheckpointError(
                        f"{path}: a pickle of EDM or StyleGAN, which holds code; {INSTEAD}"
                    ) from error
                names = _classes(file) if isinstance(error.__cause__, pickle.UnpicklingError) else []
                if not names:
                    raise
            # torch takes a pair: what stands for a name, and the name.
            kinds: list[Any] = [(type("StandIn", (StandIn,), {}), name) for name in names]
            with torch.serialization.safe_globals(kinds):
                return torch_document(path, file, size)
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except (SafetensorError, OSError) as error:
        kind = "safetensors" if path.suffix == ".safetensors" else "torch"
        reason = fitted(str(error), 160)
        raise CheckpointError(f"{path}: not a complete {kind} file ({reason})") from error


def _classes(file: BinaryIO) -> list[str]:
    """Names of the classes and functions that a file wants besides torch's own; none where not known."""
    file.seek(0)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # no archive, or damaged: the first error says what there is to say
        return []
    return sorted(names) if len(names) <= MAX_CLASSES else []
