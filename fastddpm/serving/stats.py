"""What a scheduler tells of itself."""

from __future__ import annotations

from typing import TypedDict


class Stats(TypedDict):
    """How much there is to do, and what was done since the scheduler was made.

    Attributes:
        waiting: requests that wait.
        running: those in the step that runs.
        parked: those that are on their way and in no step just now.
        slots: of that step.
        filled: those of them that have somebody: a guided request fills two.
        submitted: requests that were accepted.
        steps: of batches.
        seconds: that these took on the host.
    """

    waiting: int
    running: int
    parked: int
    slots: int
    filled: int
    submitted: int
    steps: int
    seconds: float
