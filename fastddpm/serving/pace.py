"""What a step takes in each batch size, measured as they run, and which size is worth it."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping

MARGIN = 1.1
"""A larger batch must draw so many times the image-steps a second of a smaller one."""
KNOWN_BY = 3
"""Times of a size from which on it counts as measured."""
KEPT = 9
FORGOTTEN_AFTER = 2000
"""Times of other sizes after which those of a size are out of date, as what else the machine does changes."""


class Pace:
    """Seconds of a step of one kind, by batch size: the median of the last.

    A size that was not measured yet is taken to be as fast as it may be: no faster than a smaller one, nor,
    for each slot, than a larger one. So it is tried if that could make it the best, and not again if it was
    not.
    """

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._at: dict[int, int] = {}
        self._noted = 0

    def note(self, size: int, seconds: float) -> None:
        """A step of so many slots took so long."""
        self._noted += 1
        self._times.setdefault(size, deque(maxlen=KEPT)).append(seconds)
        self._at[size] = self._noted
        for other in [other for other, at in self._at.items() if self._noted - at > FORGOTTEN_AFTER]:
            del self._times[other], self._at[other]

    def best(self, filled: Mapping[int, int]) -> int:
        """The size that draws most image-steps a second, a larger one only by a margin.

        Args:
            filled: of each size that may be taken, the slots that would be in use; sizes in rising order. As
                long as nothing was measured, the last of them is taken.
        """
        known = {
            size: statistics.median(times) for size, times in self._times.items() if len(times) >= KNOWN_BY
        }
        if not known:
            return list(filled)[-1]
        best, rate = 0, 0.0
        for size, slots in filled.items():
            found = slots / max(1e-9, known.get(size) or _at_least(known, size))
            if not best or found > MARGIN * rate:
                best, rate = size, found
        return best


def _at_least(known: Mapping[int, float], size: int) -> float:
    """The least seconds that a step of a size can take, by those of others."""
    by_smaller = max((time for other, time in known.items() if other < size), default=0.0)
    by_larger = min((time * size / other for other, time in known.items() if other > size), default=0.0)
    return max(by_smaller, by_larger)
