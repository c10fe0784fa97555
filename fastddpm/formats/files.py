"""Files of checkpoints: tensors without unpickling code, JSON with or without comments."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint that is not there, not complete, not what it says it is, or lacks what has to be given."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU: safetensors by that suffix, else what `torch.save` wrote.

    Raises:
        CheckpointError: not found, not complete, or with something else than tensors in it.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is damaged; torch.save(network.state_dict(), path) writes "
            "what is read here"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        kind = "safetensors" if path.suffix == ".safetensors" else "torch"
        raise CheckpointError(f"{path}: not a complete {kind} file ({error})") from error
    return tensors_of(document, str(path))


def tensors_of(document: object, name: str) -> dict[str, Tensor]:
    """The state dict that an object is, without the ``module.`` of DataParallel.

    Raises:
        CheckpointError: not a mapping from names to tensors; the keys it has are listed.
    """
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{name}: holds {type(document).__name__}, a state dict accepted")
    other = [key for key, value in document.items() if not isinstance(value, Tensor)]
    if other or not document:
        keys = ", ".join(repr(key) for key in list(document)[:8])
        raise CheckpointError(
            f"{name}: a state dict of tensors accepted; it has the entries {keys or 'none'}"
        )
    state = {str(key): value.detach() for key, value in document.items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ``//`` comments, which the SR3 repository's files have, are left out.

    Raises:
        CheckpointError: not found, not JSON, or not an object.
    """
    try:
        document = json.loads(without_comments(path.read_text()))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not found") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: holds {type(document).__name__}, an object is expected")
    return document


def without_comments(text: str) -> str:
    """JSON text without ``//`` comments; ``//`` inside a string stays."""
    return re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*', lambda match: match[1] or "", text)
