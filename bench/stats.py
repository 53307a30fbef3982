"""Medians and their intervals. Pure functions; every sample counts, none is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 400
"""Bootstrap resamples. This many place a 95% bound within a tenth of the interval's width. Their seed is fixed, so the
same samples always give the same interval."""

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
    """The medians of `RESAMPLES` draws with replacement, each of as many values as there are samples."""
    return np.median(rng.choice(samples, size=(RESAMPLES, len(samples))), axis=1)


def median_interval(samples: Sequence[float]) -> Interval:
    """95% percentile bootstrap of the median. ValueError without samples. One sample has an unbounded interval."""
    values = np.asarray(samples, dtype=float)
    if values.size == 0:
        raise ValueError("no samples")
    median = float(np.median(values))
    if values.size == 1:
        return Interval(low=0.0, median=median, high=float("inf"))
    low, high = np.quantile(resampled_medians(values, np.random.default_rng(0)), BOUNDS)
    return Interval(low=float(low), median=median, high=float(high))


def ratio_interval(numerator: Sequence[float], denominator: Sequence[float]) -> Interval:
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
