from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stats import median_interval, ratio_interval


def test_interval_of_known_noise() -> None:
    """Normal noise: the median of n samples has standard error 1.2533 s / sqrt(n), the interval 2 x 1.96 of it."""
    samples = np.random.default_rng(1).normal(100.0, 5.0, 400)
    interval = median_interval(samples)
    assert interval.low < 100.0 < interval.high
    expected = 1.96 * 1.2533 * 5.0 / 20
    assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=0.35)


def test_constant_samples_have_no_width() -> None:
    interval = median_interval([3.0] * 10)
    assert (interval.low, interval.median, interval.high) == (3.0, 3.0, 3.0)
    assert interval.relative_halfwidth == 0.0


def test_one_sample_says_nothing_of_its_noise() -> None:
    assert median_interval([2.0]).high == float("inf")
    assert ratio_interval([2.0], [1.0, 1.0]).high == float("inf")
    assert ratio_interval([2.0, 2.0], [1.0]).high == float("inf")


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        median_interval([])


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=40))
def test_the_median_lies_in_its_interval(samples: list[float]) -> None:
    interval = median_interval(samples)
    assert interval.low <= interval.median <= interval.high


def test_ratio_of_medians() -> None:
    rng = np.random.default_rng(2)
    ratio = ratio_interval(rng.normal(2.0, 0.01, 200), rng.normal(1.0, 0.01, 200))
    assert ratio.low < 2.0 < ratio.high
    assert ratio.high - ratio.low < 0.02
