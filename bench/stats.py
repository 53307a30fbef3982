"""Medians, their intervals and the noise verdict. Pure; every sample counts, none is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 400
"""Bootstrap resamples: enough to place a 95% bound within a tenth of the interval's width."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median with its bootstrap interval, in the unit of the samples."""

    low: float
    median: float
    high: float

    @property
    def relative_halfwidth(self) -> float:
        """Half the interval's width over the median."""
        return (self.high - self.low) / (2 * self.median) if self.median else float("inf")

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


def median_interval(samples: Sequence[float], confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap of the median. ValueError without samples; one sample has an unbounded interval."""
    values = np.asarray(samples, dtype=float)
    if values.size == 0:
        raise ValueError("no samples")
    median = float(np.median(values))
    if values.size == 1:
        return Interval(low=0.0, median=median, high=float("inf"))
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(values, size=(RESAMPLES, values.size)), axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(low=float(low), median=median, high=float(high))


def ratio_interval(
    numerator: Sequence[float], denominator: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Bootstrap of the ratio of two medians, e.g. a peer's time over ours. Both need at least two samples."""
    top, bottom = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    if top.size == 0 or bottom.size == 0:
        raise ValueError("no samples")
    ratio = float(np.median(top) / np.median(bottom))
    if top.size == 1 or bottom.size == 1:
        return Interval(low=0.0, median=ratio, high=float("inf"))
    rng = np.random.default_rng(seed)
    tops = np.median(rng.choice(top, size=(RESAMPLES, top.size)), axis=1)
    bottoms = np.median(rng.choice(bottom, size=(RESAMPLES, bottom.size)), axis=1)
    low, high = np.quantile(tops / bottoms, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(low=float(low), median=ratio, high=float(high))
