from __future__ import annotations

import numpy as np
import pytest

from bench.stats import median_interval, ratio_interval, resampled_medians
from tests.support.properties import given, settings, st


def test_interval_of_known_noise() -> None:
    """The median of n normal samples has the standard error 1.2533 s / sqrt(n). The interval is 2 x 1.96 times that."""
    samples = np.random.default_rng(1).normal(100.0, 5.0, 400)
    interval = median_interval(samples)
    assert interval.low < 100.0 < interval.high
    expected = 1.96 * 1.2533 * 5.0 / 20
    assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=0.35)


def test_intervals_of_many_samples_are_as_wide_as_95_percent_asks() -> None:
    """The average of 100 draws. A single draw is off by up to a quarter, and a 90% interval is a sixth narrower."""
    draws = np.random.default_rng(3).normal(100.0, 5.0, (100, 2, 400))
    expected = 1.96 * 1.2533 * 5.0 / 20
    alone = [median_interval(of[0]) for of in draws]
    assert np.mean([(i.high - i.low) / 2 for i in alone]) == pytest.approx(expected, rel=0.06)
    against = [ratio_interval(*of) for of in draws]  # the squared errors of two medians of 100 add up
    assert np.mean([(i.high - i.low) / 2 for i in against]) == pytest.approx(2**0.5 * expected / 100, rel=0.06)


def test_constant_samples_have_no_width() -> None:
    interval = median_interval([3.0] * 10)
    assert (interval.low, interval.median, interval.high) == (3.0, 3.0, 3.0)
    assert interval.relative_halfwidth == 0.0


def test_one_sample_says_nothing_of_its_noise() -> None:
    for interval in (median_interval([2.0]), ratio_interval([4.0], [2.0, 2.0]), ratio_interval([4.0, 4.0], [2.0])):
        assert (interval.low, interval.median, interval.high) == (0.0, 2.0, float("inf"))


def test_no_samples() -> None:
    for nothing in (lambda: median_interval([]), lambda: ratio_interval([], [1.0]), lambda: ratio_interval([1.0], [])):
        with pytest.raises(ValueError, match="no samples"):
            nothing()


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=40))
def test_the_median_lies_in_its_interval(samples: list[float]) -> None:
    interval = median_interval(samples)
    assert interval.low <= interval.median <= interval.high


def test_ratio_of_medians() -> None:
    rng = np.random.default_rng(2)
    ratio = ratio_interval(rng.normal(2.0, 0.01, 200), rng.normal(1.0, 0.01, 200))
    assert ratio.low < 2.0 < ratio.high
    assert ratio.high - ratio.low < 0.02


@pytest.mark.parametrize("count", [3, 10, 21, 64, 101, 1000])
def test_intervals_are_those_of_the_draws_themselves(count: int) -> None:
    """The medians of draws with replacement, drawn one by one, against those whose ranks are drawn."""
    samples = np.random.default_rng(1).lognormal(size=count)
    drawn = np.median(np.random.default_rng(2).choice(samples, size=(20_000, count)), axis=1)
    found = np.concatenate([resampled_medians(samples, np.random.default_rng(seed)) for seed in range(50)])
    spread = drawn.std()
    for quantile in (0.025, 0.25, 0.5, 0.75, 0.975):
        assert abs(np.quantile(found, quantile) - np.quantile(drawn, quantile)) < 0.1 * spread
