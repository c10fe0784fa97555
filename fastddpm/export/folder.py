"""The folder of an export: whole or not there, its models with their weights, and `export.json`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from fastddpm.checks import BadArgument
from fastddpm.files import made_folder, scratch_folder, sha256, sync
from fastddpm.inputs import read_json
from fastddpm.interruption import postponed
from fastddpm.locks import LOCK, exclusive
from fastddpm.temporaries import is_temporary, remove_leftovers

DESCRIPTION, README = "export.json", "README.md"
FORMAT = "fastddpm-onnx"
VERSION = 1
EXTERNAL_ABOVE = 2_000_000_000
"""Bytes of weights above which they stand in a file beside the model: protobuf ends at 2 GiB."""


@contextmanager
def new_export(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder, whose files go into ``folder`` on success; on error nothing of them is left.

    An earlier export's files, which its export.json lists, are replaced, and other files stay. export.json
    comes first and lists the others with their SHA-256, so that a folder in which they are not all there yet
    is refused by whoever reads it, and known as an export by the next one.

    Raises:
        FolderInUse: another export is written there.
        ValueError: ``folder`` is a file, or holds something else.
        OSError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise BadArgument("folder", f"{str(folder)!r}, which is a file,", "a folder")
    _earlier(folder)
    with made_folder(folder), exclusive(folder, "folder", "export"):
        remove_leftovers(folder, alone=True)
        with scratch_folder(folder, "export") as temporary:
            yield temporary
            earlier = _earlier(folder)
            new = [path.name for path in temporary.iterdir()]
            _check_free(folder, new, earlier)
            for name in new:
                sync(temporary / name)
            with postponed():
                for name in earlier - set(new):
                    (folder / name).unlink(missing_ok=True)
                for name in sorted(new, key=lambda name: name != DESCRIPTION):
                    (temporary / name).replace(folder / name)


def _earlier(folder: Path) -> set[str]:
    """The files of the export that a folder holds; none in a new folder or an empty one.

    Raises:
        ValueError: it holds something else.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not names:
        return set()
    try:
        about = read_json(folder / DESCRIPTION)
        if about["format"] != FORMAT:
            raise ValueError(about["format"])
        # Names alone: what a file says may not reach out of its folder.
        listed = {str(name) for name in about["files"] if Path(name).name == name} | {DESCRIPTION}
        if about.get("readme") in (None, _digest(folder / README)):  # one that a person has changed is theirs
            listed.add(README)
    except (OSError, ValueError, KeyError, TypeError):
        others = [name for name in names if name != LOCK and not is_temporary(Path(name))]
        if others:
            raise BadArgument(
                "folder",
                f"{str(folder)!r}, which holds other files,",
                "a new folder, an empty one or an earlier export",
            ) from None
        return set()
    return {name for name in listed if (folder / name).is_file()}


def _digest(file: Path) -> str | None:
    return sha256(file) if file.is_file() else None


def _check_free(folder: Path, new: list[str], earlier: set[str]) -> None:
    """ValueError where a file of somebody else's has a name that is wanted."""
    taken = [name for name in new if name not in earlier and (folder / name).exists()]
    if taken:
        raise BadArgument(
            "folder",
            f"{str(folder)!r}, whose {taken[0]} is not of the export there,",
            "another folder, or this one without that file,",
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
    return {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files}
