"""Medians, quartiles and the ratio of two medians with its interval.

Times of a shared machine are skewed and have outliers, so nothing here uses a mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

DRAWS = 4000
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Summary:
    """Median and quartiles of samples."""

    median: float
    q1: float
    q3: float
    samples: int


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio of medians and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def summary(samples: Sequence[float]) -> Summary:
    """Median and quartiles, with linear interpolation between order statistics.

    Raises:
        ValueError: no samples.
    """
    if not len(samples):
        raise ValueError("samples: none given, one or more accepted")
    q1, median, q3 = np.quantile(np.asarray(samples, dtype=np.float64), [0.25, 0.5, 0.75])
    return Summary(float(median), float(q1), float(q3), len(samples))


def ratio_of_medians(ours: Sequence[float], theirs: Sequence[float], *, paired: bool = True) -> Ratio:
    """median(ours) / median(theirs), and its percentile interval by resampling (Efron 1979).

    Args:
        ours: samples of the numerator, above 0.
        theirs: samples of the denominator, above 0.
        paired: sample i of both was taken in the same round, so whole rounds are drawn; what slowed a round
            down then slows both. Else each is drawn by itself.

    Raises:
        ValueError: no samples, or pairs that are not pairs.
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if not len(a) or not len(b) or (paired and len(a) != len(b)):
        raise ValueError(f"ours, theirs: {len(a)} and {len(b)} samples given, as many of both accepted")
    of_a = _draws(len(a), seed=0)
    of_b = of_a if paired else _draws(len(b), seed=1)
    ratios = np.median(a[of_a], axis=1) / np.median(b[of_b], axis=1)
    return _ratio(float(np.median(a) / np.median(b)), ratios)


def ratio_of_ratios(new: Sequence[Sequence[float]], old: Sequence[Sequence[float]]) -> Ratio:
    """(a'/b') / (a/b) for medians of two runs: how a's time relative to b's changed.

    Args:
        new: samples of a' and b', paired by round.
        old: samples of a and b, paired by round.
    """
    values, draws = [], []
    for seed, (a, b) in enumerate((new, old)):
        x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        chosen = _draws(len(x), seed=seed)
        values.append(float(np.median(x) / np.median(y)))
        draws.append(np.median(x[chosen], axis=1) / np.median(y[chosen], axis=1))
    return _ratio(values[0] / values[1], draws[0] / draws[1])


def _draws(count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (DRAWS, count))


def _ratio(value: float, draws: npt.NDArray[np.float64]) -> Ratio:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Ratio(value, float(low), float(high))
