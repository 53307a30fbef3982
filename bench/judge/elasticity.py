"""Memory-bound or not, shown without hardware counters: how time responds when bytes and FLOPs change independently.

`log t = a + e_b log bytes + e_f log FLOP` is fitted over cases of one implementation. Some of them differ in bytes at
the same FLOPs, and some in FLOPs at the same bytes. The elasticity e_b says by how many percent time grows when bytes
grow by one percent; e_f says the same of FLOPs. Bound by memory: e_b = 1 and e_f = 0. Bound by arithmetic: e_b = 0 and
e_f = 1. Bound by the launch: both are 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.records import Record, comparable
from bench.stats import BOUNDS, Interval, median_of, resampled_medians

TOLERANCE = 0.15
"""How far an elasticity may be from 0 or 1. A launch of 2 us in a kernel of 20 us alone makes a difference of 0.1."""

CONDITION_LIMIT = 30.0
"""The largest condition number of the centred design. Beyond it, bytes and FLOPs vary together, so that their effects
cannot be told apart."""

Bound = Literal["memory", "compute", "neither"]


def near(interval: Interval, value: float) -> bool:
    """Whether the whole interval is within `TOLERANCE` of the value."""
    return value - TOLERANCE <= interval.low and interval.high <= value + TOLERANCE


@dataclass(frozen=True, kw_only=True)
class Point:
    """One case: the bytes and FLOPs of its work, and every sample, in seconds or in reads of the roof."""

    bytes: int
    flops: int
    samples_s: Sequence[float] | np.ndarray
    resampled: np.ndarray | None = None
    """What `resampled_medians` gave for the samples, where several fits use the case."""


@dataclass(frozen=True, kw_only=True)
class Elasticity:
    """The two exponents with their 95% intervals, and the largest residual of log t in the fit."""

    bytes: Interval
    flops: Interval
    residual: float
    points: int

    @property
    def bound(self) -> Bound:
        """`memory` or `compute` only if both intervals lie as a whole within `TOLERANCE` of the values for it."""
        if near(self.bytes, 1.0) and near(self.flops, 0.0):
            return "memory"
        if near(self.bytes, 0.0) and near(self.flops, 1.0):
            return "compute"
        return "neither"


class NotIdentified(ValueError):
    """The cases cannot tell bytes from FLOPs; the message says which cases are missing."""


def fit(points: Sequence[Point]) -> Elasticity:
    """Least squares on the logarithms of medians. Resampling every case's samples gives the intervals.

    Raises `NotIdentified` for fewer than three cases, for a case with fewer than two samples, and where bytes or FLOPs
    hardly vary or vary together.
    """
    if any(len(p.samples_s) < 2 for p in points):
        raise NotIdentified("an interval needs two samples of every case")
    if len(points) < 3:
        raise NotIdentified(f"{len(points)} case{'s' * (len(points) != 1)}; an elasticity needs at least three")
    logs = np.log([[p.bytes, p.flops] for p in points])
    centred = logs - logs.mean(axis=0)
    for name, column in zip(("bytes", "FLOPs"), centred.T, strict=True):
        if np.ptp(column) < np.log(1.5):
            raise NotIdentified(f"{name} vary by less than a factor of 1.5 over these cases")
    if np.linalg.cond(centred / np.linalg.norm(centred, axis=0)) > CONDITION_LIMIT:
        raise NotIdentified("bytes and FLOPs vary together over these cases")
    design = np.column_stack([np.ones(len(points)), logs])
    solve = np.linalg.pinv(design)

    def exponents(times: np.ndarray) -> np.ndarray:
        return solve @ np.log(times)

    medians = np.array([median_of(np.sort(np.asarray(p.samples_s))) for p in points])
    best = exponents(medians)
    rng = np.random.default_rng(0)
    drawn = [resampled_medians(p.samples_s, rng) if p.resampled is None else p.resampled for p in points]
    resampled = np.stack(drawn)
    low, high = np.quantile(exponents(resampled), BOUNDS, axis=1)
    return Elasticity(
        bytes=Interval(low=float(low[1]), median=float(best[1]), high=float(high[1])),
        flops=Interval(low=float(low[2]), median=float(best[2]), high=float(high[2])),
        residual=float(np.abs(np.log(medians) - design @ best).max()),
        points=len(points),
    )


def of_records(records: Iterable[Record]) -> Elasticity:
    """The elasticities of one op's one implementation. ValueError if the records are of several."""
    used = [r for r in records if r.is_timed and r.bytes and r.flops]
    kinds = {(r.op, r.impl) for r in used}
    if len(kinds) > 1:
        raise ValueError(f"records of several implementations: {sorted(kinds)}")
    samples = comparable(used)
    return fit([Point(bytes=r.bytes, flops=r.flops, samples_s=s) for r, s in zip(used, samples, strict=True)])
