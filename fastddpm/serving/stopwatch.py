"""What steps take: on a CPU when they return, on a card once they are over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import torch

AHEAD = 1
"""Calls that a card may still be at when the next one is made: with none it would wait for the host in
between, with more whoever comes meanwhile would wait for all of them."""


class Stopwatch:
    """Times calls, of which a card goes on with the work after they have returned.

    Args:
        device: where it is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._running: deque[tuple[torch.cuda.Event, torch.cuda.Event, Callable[[float], None]]] = deque()

    def time(self, call: Callable[[], None], note: Callable[[float], None]) -> None:
        """Makes a call; its seconds are noted now, or in a later call or `finish`."""
        if self._device is None:
            began = time.perf_counter()
            call()
            note(time.perf_counter() - began)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(torch.cuda.current_stream(self._device))
        call()
        end.record(torch.cuda.current_stream(self._device))
        self._running.append((begin, end, note))
        self.finish(AHEAD)

    def finish(self, ahead: int = 0) -> None:
        """Waits for calls until the card is at so many."""
        while len(self._running) > ahead:
            begin, end, note = self._running.popleft()
            end.synchronize()
            note(begin.elapsed_time(end) / 1000)
