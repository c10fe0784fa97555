"""What a scheduler tells of itself."""

from __future__ import annotations

from typing import TypedDict


class Stats(TypedDict):
    """How much there is to do, and what was done since the scheduler was made.

    Attributes:
        waiting: requests that wait.
        running: those in the slots of a batch.
        slots: of all batches that run.
        submitted: requests that were accepted.
        steps: of batches.
        seconds: that these took on the host.
    """

    waiting: int
    running: int
    slots: int
    submitted: int
    steps: int
    seconds: float
