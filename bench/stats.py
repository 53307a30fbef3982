"""Medians and their intervals. Pure functions; every sample counts, none is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 400
"""Bootstrap resamples. This many place a 95% bound within a tenth of the interval's width. Their seed is fixed, so the
same samples always give the same interval."""

MANY = 64

BOUNDS = (0.025, 0.975)
"""The quantiles at the ends of a 95% interval."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median with its 95% bootstrap interval, in the unit of the samples."""

    low: float
    median: float
    high: float

    @property
    def relative_halfwidth(self) -> float:
        """Half the interval's width over the median."""
        return (self.high - self.low) / (2 * self.median) if self.median else float("inf")


def resampled_medians(samples: Sequence[float] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The medians of `RESAMPLES` draws with replacement, each of as many values as there are samples.

    From `MANY` samples on, only the ranks of the middle values are drawn, not the draws themselves: of n draws the k-th
    smallest is the sample at the fraction U of their order, where U is the k-th smallest of n uniform numbers, a
    Beta(k, n + 1 - k). The next one is the smallest of the n - k uniform numbers above U. So 1,000 samples cost as
    little as 10.
    """
    if len(samples) < MANY:
        return np.median(rng.choice(samples, size=(RESAMPLES, len(samples))), axis=1)
    ordered = np.sort(np.asarray(samples, dtype=float))
    n, k = len(ordered), (len(ordered) + 1) // 2
    at = rng.beta(k, n + 1 - k, size=RESAMPLES)
    middle = ordered[np.minimum((n * at).astype(int), n - 1)]
    if n % 2:
        return middle
    above = at + (1 - at) * (1 - rng.random(RESAMPLES) ** (1 / (n - k)))
    return (middle + ordered[np.minimum((n * above).astype(int), n - 1)]) / 2


def median_interval(samples: Sequence[float] | np.ndarray) -> Interval:
    """95% percentile bootstrap of the median. ValueError without samples. One sample has an unbounded interval."""
    values = np.asarray(samples, dtype=float)
    if values.size == 0:
        raise ValueError("no samples")
    median = float(np.median(values))
    if values.size == 1:
        return Interval(low=0.0, median=median, high=float("inf"))
    low, high = np.quantile(resampled_medians(values, np.random.default_rng(0)), BOUNDS)
    return Interval(low=float(low), median=median, high=float(high))


def ratio_interval(numerator: Sequence[float] | np.ndarray, denominator: Sequence[float] | np.ndarray) -> Interval:
    """95% bootstrap of the ratio of two medians, e.g. a peer's time over ours.

    ValueError if one side has no samples. One sample on either side gives an unbounded interval.
    """
    top, bottom = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    if top.size == 0 or bottom.size == 0:
        raise ValueError("no samples")
    ratio = float(np.median(top) / np.median(bottom))
    if top.size == 1 or bottom.size == 1:
        return Interval(low=0.0, median=ratio, high=float("inf"))
    rng = np.random.default_rng(0)
    low, high = np.quantile(resampled_medians(top, rng) / resampled_medians(bottom, rng), BOUNDS)
    return Interval(low=float(low), median=ratio, high=float(high))
