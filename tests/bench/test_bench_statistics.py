"""Statistics of `fastddpm bench`, against SciPy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fastddpm_bench.statistics import ratio_of_medians, ratio_of_ratios, summary


def test_quartiles_of_known_numbers():
    found = summary([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.q1, found.median, found.q3, found.samples) == (2.0, 3.0, 4.0, 5)
    # An outlier moves a mean, not this.
    assert summary([5.0, 1.0, 4e9, 2.0, 3.0]).median == 3.0


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="samples: none given"):
        summary([])
    with pytest.raises(ValueError, match="2 and 3 samples given"):
        ratio_of_medians([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("paired", [True, False])
def test_interval_is_scipys(paired):
    rng = np.random.default_rng(7)
    mood = rng.lognormal(0, 0.3, 40)  # of the machine, in each round
    ours = 0.8 * mood * rng.lognormal(0, 0.05, 40)
    theirs = mood * rng.lognormal(0, 0.05, 40)
    found = ratio_of_medians(ours, theirs, paired=paired)
    expected = stats.bootstrap(
        (ours, theirs),
        lambda a, b, axis=-1: np.median(a, axis=axis) / np.median(b, axis=axis),
        paired=paired,
        vectorized=True,
        n_resamples=20000,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert found.value == np.median(ours) / np.median(theirs)
    # Both are estimates from thousands of draws.
    width = expected.high - expected.low
    assert abs(found.low - expected.low) < 0.1 * width
    assert abs(found.high - expected.high) < 0.1 * width


def test_pairs_take_out_what_slows_both():
    rng = np.random.default_rng(1)
    mood = rng.lognormal(0, 1.0, 30)
    ours, theirs = 0.5 * mood, mood
    pairs = ratio_of_medians(ours, theirs)
    alone = ratio_of_medians(ours, theirs, paired=False)
    assert pairs.low == pytest.approx(0.5)
    assert pairs.high == pytest.approx(0.5)
    assert alone.high - alone.low > 0.2


def test_ratio_of_ratios_of_scaled_samples():
    rng = np.random.default_rng(2)
    a, b = rng.uniform(1, 2, 15), rng.uniform(1, 2, 15)
    # A machine twice as slow, and ours 1.3 times as slow beyond that.
    found = ratio_of_ratios((2.6 * a, 2.0 * b), (a, b))
    assert found.value == pytest.approx(1.3)
    assert found.low <= 1.3 <= found.high
