"""Files and folders that are whole or not there: written under a temporary name beside it, then renamed.

The names of temporaries are `fastddpm.temporaries`'.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastddpm.checks import BadArgument
from fastddpm.inputs import InputError, check_regular, open_regular
from fastddpm.temporaries import TEMPORARY, remove, temporary_name

if TYPE_CHECKING:
    from torch import Tensor

# The word in a safetensors header by which a model is known to be written here.
WRITER = "fastddpm"


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of an error where there is no space."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path with the same suffix; on success it takes ``path``'s name, on error it goes.

    The content is on the disk before it has the name.

    Raises:
        OSError: the folder is not there or not writable.
    """
    with temporary_name(path) as temporary, _space_for(path):
        mode = _new_file(temporary)
        yield temporary
        temporary.chmod(mode)  # some libraries make a file of their own in its place, for its owner alone
        sync(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)


@contextmanager
def replacing_folder(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a new folder beside ``path``, whose name it takes on success; on error it goes with all in it.

    Args:
        path: not there by then, or an empty folder.
        durable: wait until each file is on the disk, about a millisecond a file.

    Raises:
        OSError: it cannot be made, or ``path`` is something else.
    """
    with temporary_name(path) as temporary, _space_for(path):
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir() if durable else ():
            sync(file)
        _sync_folder(temporary)
        temporary.rename(path)
        _sync_folder(path.parent)


@contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """Yields a new hidden folder inside ``folder``, which is gone afterwards, with what is still in it.

    Raises:
        OSError: it cannot be made. One of a full disk in the body names ``folder``.
    """
    with temporary_name(folder / name) as temporary, _space_for(folder):
        temporary.mkdir()
        try:
            yield temporary
        finally:
            remove(temporary)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it that are not there; they go again, empty, if the body fails.

    Raises:
        OSError: one cannot be made.
    """
    made: list[Path] = []
    try:
        for path in reversed((folder, *folder.parents)):
            if not path.is_dir():
                made.append(path)
                path.mkdir(exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # what someone else has put there stays
            for path in reversed(made):
                path.rmdir()
        raise


def check_writable(folder: Path) -> None:
    """Makes a file in a folder and takes it away again: permissions say nothing to root, or on a full disk.

    Raises:
        OSError: it cannot be made.
    """
    with temporary_name(folder / "check") as temporary:
        _new_file(temporary)
        temporary.unlink()


def write_json(path: Path, document: object) -> None:
    """Writes a document as JSON; the file is whole or as it was.

    Raises:
        OSError: the folder is not there or not writable.
        TypeError: a value that JSON has no word for.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Writes a safetensors file to a path that `replacing` or the like has given.

    Args:
        path: of the file.
        tensors: by name; detached and copied to the CPU.
        **metadata: words in the file's header.

    Raises:
        OSError: it cannot be written. safetensors has an error of its own for that.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    values = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        save_file(values, path, metadata=metadata or None)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))  # `I/O error: ... (os error 28)`
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def check_replaceable(folder: Path, names: Iterable[str], weights: Path) -> None:
    """Refuses to write over what somebody else has put into a folder.

    Args:
        folder: there or not.
        names: files to be written, relative to it. None of them is there, or
        weights: that one among them is there, and its header says that it was written here.

    Raises:
        ValueError: naming the file that would be lost.
    """
    there = sorted(name for name in names if (folder / name).exists())
    if there and not is_ours(weights):
        raise BadArgument(
            "folder",
            f"{str(folder)!r}, which holds {there[0]} of something else,",
            "a new folder, or one that was written here,",
        )


def is_ours(weights: Path) -> bool:
    """Whether `write_tensors` wrote a file with `WRITER` among its words."""
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(weights)
        with safe_open(weights, "np") as file:
            return WRITER in (file.metadata() or {}).values()
    except (InputError, OSError, SafetensorError):
        return False


def sha256(path: Path) -> str:
    """Of a regular file's content, in hexadecimal digits.

    Raises:
        InputError: (a ValueError) as of `fastddpm.inputs.open_regular`.
    """
    with open_regular(path) as file:
        hashed = hashlib.sha256()
        while piece := file.read(2**20):
            hashed.update(piece)
    return hashed.hexdigest()


@contextmanager
def _space_for(path: Path) -> Iterator[None]:
    """While there is not, the error names the file that was to be, and not a temporary or nothing."""
    try:
        yield
    except OSError as error:
        parts = () if error.filename is None else Path(error.filename).parts
        is_mine = error.filename is None or any(TEMPORARY.fullmatch(part) for part in parts)
        if error.errno not in FULL or not is_mine:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _new_file(path: Path) -> int:
    """Makes an empty file, for whom the umask says; its mode."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """So that the name is on the disk as well, where the file system has such a thing."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            sync(folder)
