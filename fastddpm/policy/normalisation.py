"""Observations and actions between their own numbers and those that a network was trained on."""

from __future__ import annotations

from torch import Tensor, nn

PAIRS = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""Of each mode, the statistics that it takes."""
MODES = ("IDENTITY", *PAIRS)
EPS = 1e-8


class Normalisation(nn.Module):
    """Of one feature.

        MEAN_STD     (x - mean) / (std + eps)
        the others   2 (x - low) / (high - low) - 1

    Sources: lerobot 0.4.4, processor/normalize_processor.py, where an interval of no width is eps wide;
    before, policies/normalize.py, where eps is added to each width that divides.

    Args:
        mode: one of `PAIRS`.
        first: its first statistic, of the feature's shape or one that spreads to it.
        second: its second.
        eps: as above.
        adds: whether eps is added to intervals, as before 0.4.
    """

    first: Tensor
    second: Tensor

    def __init__(
        self, mode: str, first: Tensor, second: Tensor, *, eps: float = EPS, adds: bool = False
    ) -> None:
        super().__init__()
        self.mode, self.eps, self.adds = mode, eps, adds
        self.register_buffer("first", first)
        self.register_buffer("second", second)

    def forward(self, x: Tensor) -> Tensor:
        """Of x in its own numbers."""
        if self.mode == "MEAN_STD":
            return (x - self.first) / (self.second + self.eps)
        width = self._width()
        return 2 * (x - self.first) / (width + self.eps if self.adds else width) - 1

    def inverse(self, y: Tensor) -> Tensor:
        """In its own numbers, of what a network gave."""
        if self.mode == "MEAN_STD":
            return y * self.second + self.first
        return (y + 1) / 2 * self._width() + self.first

    def _width(self) -> Tensor:
        width = self.second - self.first
        return width if self.adds else width.masked_fill(width == 0, self.eps)
