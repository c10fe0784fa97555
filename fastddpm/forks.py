"""Locks in a child of `os.fork`: it has the locks of its parent as they were, and none of the other threads.

A lock that another thread held at that moment would be held in the child for ever: a child that draws while
its parent draws would wait and never end.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable


class ForkLock:
    """A lock for ``with`` that is free in a child of a fork, unless the thread that forked holds it.

    Args:
        in_child: called in the child once the lock is as it should be there.

    Attributes:
        owner: identifier of the thread that holds it, or None.
    """

    def __init__(self, in_child: Callable[[], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._in_child = in_child
        self.owner: int | None = None
        _watch()
        _made.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        self.owner = threading.get_ident()

    def __exit__(self, *error: object) -> None:
        self.owner = None
        self._lock.release()

    def forked(self) -> None:
        """Makes it right in a child, whose only thread is the one that forked and has kept its identifier."""
        if self.owner != threading.get_ident():
            self._lock, self.owner = threading.Lock(), None
        if self._in_child is not None:
            self._in_child()


# Only those that live: a sampler and its lock go as they always did.
_made: weakref.WeakSet[ForkLock] = weakref.WeakSet()


@functools.cache
def _watch() -> None:
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    for lock in list(_made):
        lock.forked()
