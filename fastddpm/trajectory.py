"""The states of a chain that a caller wants to see, evenly spread over it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastddpm.checks import BadArgument, is_whole, quoted


class Trajectory:
    """Keeps some states of a chain on its way.

    Args:
        steps: S of the chain.
        frames: states kept, the first and the last among them; None for all.
        predicted: keep the predicted clean image of each step (S of them) instead of the state (S + 1).

    Attributes:
        stops: rows done at which `look` wants to be called.

    Raises:
        ValueError: frames that there are not.
    """

    def __init__(self, steps: int, frames: int | None, predicted: bool) -> None:
        available = steps + (0 if predicted else 1)
        if frames is not None and not (is_whole(frames) and 2 <= frames <= available):
            raise BadArgument("frames", quoted(frames), f"None or 2 to {available}")
        kept = evenly_spread(available, available if frames is None else frames)
        self.predicted, self.stops = predicted, {k + predicted for k in kept}
        self._states: list[Tensor] = []

    def look(self, done: int, x: Tensor, x0: Tensor | None) -> None:
        """Keeps the state after ``done`` rows, x or the last prediction x0 ``(B, ...)``, where wanted."""
        state = x0 if self.predicted else x
        if done in self.stops and state is not None:
            self._states.append(state.clone())

    def taken(self) -> Tensor:
        """What was kept since the last time, ``(F, B, ...)``."""
        states, self._states = self._states, []
        return torch.stack(states)


def evenly_spread(available: int, count: int) -> list[int]:
    """``count`` indices from 0 to available - 1, both among them."""
    return [math.floor(i * (available - 1) / max(1, count - 1) + 0.5) for i in range(count)]
