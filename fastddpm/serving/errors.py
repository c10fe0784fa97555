"""What a scheduler says that takes no more requests."""

from __future__ import annotations


class Busy(RuntimeError):
    """As many requests wait as may.

    Attributes:
        retry_after: seconds after which there should be room, by the steps that are left and what they take.
    """

    argument = "max_waiting"

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(
            f"max_waiting: {waiting} requests wait, and no more are accepted; "
            f"there should be room in {retry_after:.1f} s"
        )
        self.waiting, self.retry_after = waiting, retry_after

    def __reduce__(self) -> tuple[type[Busy], tuple[int, float]]:
        return Busy, (self.waiting, self.retry_after)


class Closed(RuntimeError):
    """The scheduler was closed."""


class DeadlinePassed(TimeoutError):
    """A request was not finished when it had to be."""
