"""Names of what is not finished, `.fastddpm-PLACE-PROCESS-TOKEN-NAME`, and how what was left goes away.

PLACE and PROCESS say which machine and process make it, TOKEN is random, NAME is the one that it is to take.
Whatever has no such name was not made here and is never taken away.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# PLACE, PROCESS, TOKEN and NAME of a temporary.
TEMPORARY = re.compile(r"\.fastddpm-([0-9a-f]{8})-([0-9a-f]{1,8})-([0-9a-f]{8})-(.+)", re.DOTALL)
# Of a name, what a temporary carries: file systems end names at 255 bytes.
LONGEST_NAME = 50

# The temporaries that this process is writing, and the folders it has looked for leftovers in.
_mine: dict[str, Path] = {}
_looked: set[str] = set()


@contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """A name for what will be ``path``; if the body fails, what has it goes.

    The first use in a folder takes away what killed processes of this machine left there.
    """
    _look_once(path.parent)
    name = f".fastddpm-{_place()}-{os.getpid():x}-{secrets.token_hex(4)}-{path.name[-LONGEST_NAME:]}"
    temporary = path.with_name(name)
    _mine[name] = temporary
    try:
        yield temporary
    except BaseException:
        remove(temporary)
        raise
    finally:
        _mine.pop(name, None)


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
            remove(path)


def remove_mine() -> None:
    """Takes away what this process has not finished and will not: where a command was interrupted.

    An interrupt between a context's beginning and its ``with`` block finds nobody there to end it.
    """
    for name, path in list(_mine.items()):
        remove(path)
        _mine.pop(name, None)


def is_temporary(path: Path) -> bool:
    """Whether a name is one that this program gives to what it has not finished."""
    return TEMPORARY.fullmatch(path.name) is not None


def _look_once(folder: Path) -> None:
    key = os.path.abspath(folder)
    if key not in _looked and folder.is_dir():
        _looked.add(key)
        remove_leftovers(folder)


def remove(path: Path) -> None:
    """Takes a file away, or a folder with all in it."""
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
