"""Folders that ``accelerator.save_state`` or ``save_model`` wrote.

Source: accelerate 1.15.0, checkpointing.py and utils/constants.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from fastddpm.files import is_ours
from fastddpm.formats.documents import read_document
from fastddpm.formats.files import shards, tensors_of

_FILE = re.compile(
    r"((?:pytorch_)?model(?:_\d+)?)\.(safetensors|bin)(\.index\.json)?|(custom_checkpoint_\d+)\.pkl"
)
MAX_FILES = 32


def recognises(folder: Path) -> bool:
    """Whether a folder has weights under accelerate's names, and is no model folder, whole or in part."""
    weights = [path for name, _, path in _files(folder) if name]
    if not weights or (folder / "config.json").exists():
        return False
    return not any(path.is_file() and path.suffix == ".safetensors" and is_ours(path) for path in weights)


def read(folder: Path) -> dict[str, object]:
    """The models and registered objects in a folder, by the names of their files.

    An average that was registered for checkpointing is a ``custom_checkpoint``. Optimisers and random states
    are left out.

    Raises:
        CheckpointError: naming a file that cannot be read.
    """
    found: dict[str, object] = {}
    for name, custom, path in _files(folder)[:MAX_FILES]:
        kind = path.name.removesuffix(".index.json").rpartition(".")[2]
        found[name or custom] = read_document(path) if kind == path.suffix[1:] else _of_shards(path, kind)
    return found


def _of_shards(index: Path, kind: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in shards(index, kind):
        tensors |= tensors_of(read_document(path), str(path))
    return tensors


def _files(folder: Path) -> list[tuple[str, str, Path]]:
    found = []
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.name)
        if match:
            found.append((match[1] or "", match[4] or "", path))
    return found
