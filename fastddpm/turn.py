"""One chain at a time on one set of buffers: other threads wait, and other streams of a card follow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastddpm.forks import ForkLock


class Turn:
    """Lets one chain at a time use a sampler's buffers: other threads wait, a callback may not start one.

    On a card the work of a chain goes on after its turn: that of the next waits for it there, if it is in
    another stream.

    Args:
        device: where chains run; None where that is of no matter.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._lock = ForkLock()
        self._device = device if device is not None and device.type == "cuda" else None
        self._last: torch.cuda.Event | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for the turn and holds it.

        Raises:
            RuntimeError: this thread holds it already.
        """
        if self._lock.owner == threading.get_ident():
            raise RuntimeError("this sampler is in the middle of a chain; use another Sampler in a callback")
        with self._lock:
            try:
                # The current stream waits for the work of the last turn.
                if self._last is not None:
                    torch.cuda.current_stream(self._device).wait_event(self._last)
                yield
            finally:
                # And notes where that of this one ends.
                if self._device is not None:
                    if self._last is None:
                        self._last = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    self._last.record(torch.cuda.current_stream(self._device))
