"""Files and folders that are whole or not there: written under a temporary name beside it, then renamed.

A temporary is called ``.fastddpm-PLACE-PROCESS-TOKEN-NAME``: which machine and process make it, a random
token, and the name it is to take. What a killed process left is known by that pattern, and nothing else is
ever taken away.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# PLACE, PROCESS, TOKEN and NAME of a temporary.
TEMPORARY = re.compile(r"\.fastddpm-([0-9a-f]{8})-([0-9a-f]{1,8})-([0-9a-f]{8})-(.+)", re.DOTALL)
# Of a name, what a temporary carries: file systems end names at 255 bytes.
LONGEST_NAME = 50

# The word in a safetensors header by which a model is known to be written here.
WRITER = "fastddpm"

# The temporaries that this process is writing, and the folders it has looked for leftovers in.
_mine: set[str] = set()
_looked: set[str] = set()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path with the same suffix; on success it takes ``path``'s name, on error it goes.

    The content is on the disk before it has the name. The first use in a folder takes away what killed
    processes of this machine left there.

    Raises:
        OSError: the folder is not there or not writable.
    """
    _look_once(path.parent)
    with _temporary(path) as temporary:
        mode = _new_file(temporary)
        yield temporary
        temporary.chmod(mode)  # some libraries make a file of their own in its place, for its owner alone
        sync(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside ``path``, whose name it takes on success; on error it goes with all in it.

    ``path`` is not there by then, or is an empty folder.

    Raises:
        OSError: it cannot be made, or ``path`` is something else.
    """
    _look_once(path.parent)
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        _sync_folder(temporary)
        temporary.rename(path)
        _sync_folder(path.parent)


@contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """Yields a new hidden folder inside ``folder``, which is gone afterwards, with what is still in it."""
    _look_once(folder)
    with _temporary(folder / name) as temporary:
        temporary.mkdir()
        try:
            yield temporary
        finally:
            _remove(temporary)


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
                path.mkdir()
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
    with _temporary(folder / "check") as temporary:
        _new_file(temporary)
        temporary.unlink()


def remove_leftovers(folder: Path, *, alone: bool = False) -> None:
    """Takes away the temporaries that killed processes left in a folder.

    Args:
        folder: not those in it.
        alone: no other process writes there (`fastddpm.locks.exclusive`), so that whatever is not this
            process's is a leftover. Else only what a process of this machine made that has ended.
    """
    for path in folder.iterdir():
        named = TEMPORARY.fullmatch(path.name)
        if named is not None and path.name not in _mine and (alone or _has_ended(named[1], named[2])):
            _remove(path)


def is_temporary(path: Path) -> bool:
    """Whether a name is one that this program gives to what it has not finished."""
    return TEMPORARY.fullmatch(path.name) is not None


def write_json(path: Path, document: Any) -> None:
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
    if there and not _is_ours(weights):
        raise ValueError(
            f"folder: {str(folder)!r} given, which holds {there[0]} of something else; a new folder, or one "
            "that was written here, accepted"
        )


def _is_ours(weights: Path) -> bool:
    """Whether `write_tensors` wrote a file with `WRITER` among its words."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "np") as file:
            return WRITER in (file.metadata() or {}).values()
    except (OSError, SafetensorError):
        return False


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        hashed = hashlib.sha256()
        while piece := file.read(2**20):
            hashed.update(piece)
    return hashed.hexdigest()


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A name for what will be ``path``; if the body fails, what has it goes."""
    name = f".fastddpm-{_place()}-{os.getpid():x}-{secrets.token_hex(4)}-{path.name[-LONGEST_NAME:]}"
    temporary = path.with_name(name)
    _mine.add(name)
    try:
        yield temporary
    except BaseException:
        _remove(temporary)
        raise
    finally:
        _mine.discard(name)


def _new_file(path: Path) -> int:
    """Makes an empty file, for whom the umask says; its mode."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _look_once(folder: Path) -> None:
    key = os.path.abspath(folder)
    if key not in _looked and folder.is_dir():
        _looked.add(key)
        remove_leftovers(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@functools.cache
def _place() -> str:
    """Where process numbers mean the same: this machine since it was started, or this container on it."""
    words = [platform.node()]
    with contextlib.suppress(OSError):  # of Linux
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        words.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]


def _has_ended(place: str, process: str) -> bool:
    """Whether a process is known to be gone. Where that cannot be told it is not."""
    number = int(process, 16)
    if place != _place() or os.name != "posix":
        return False
    if number == os.getpid():  # a namesake, since this process's own are known
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


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
