"""The folder of an export: whole or not there, its models with their weights, and `export.json`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

FORMAT = "fastddpm-onnx"
VERSION = 1
EXTERNAL_ABOVE = 2_000_000_000
"""Bytes of weights above which they stand in a file beside the model: protobuf ends at 2 GiB."""


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``folder``, whose name it takes on success; on error it goes.

    Raises:
        ValueError: ``folder`` is there and is neither empty nor an earlier export.
        OSError: it cannot be written.
    """
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = temporary.with_name(temporary.name + "-old")
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp's folders are for their owner alone
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"folder: {str(folder)!r} given, which is a file; a folder accepted")
    try:
        is_ours = json.loads((folder / "export.json").read_text())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    if any(folder.iterdir()) and not is_ours:
        raise ValueError(
            f"folder: {str(folder)!r} given, which holds other files; a new folder, an empty one or an "
            "earlier export accepted"
        )


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model; weights of over `EXTERNAL_ABOVE` bytes go into ``NAME.onnx.data`` beside it."""
    if weight_bytes(model.graph) <= EXTERNAL_ABOVE:
        path.write_bytes(model.SerializeToString())
        return
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
    )


def weight_bytes(graph: onnx.GraphProto) -> int:
    """Bytes of the initialisers of a graph and of the graphs inside it."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return sum(len(weight.raw_data) for weight in graph.initializer) + sum(map(weight_bytes, inner))


def described(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file of a folder so far."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in files}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
