"""What a report is made of: a run's records with the numbers derived from them. Never imports torch."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.ceilings import Ceilings
from bench.judge.interventions import Intervention, interventions
from bench.records import Record
from bench.run import Run, fastest
from bench.stats import Interval, ratio_interval
from bench.units import percent
from kernels.op import Op, Role, discover, precision

WITHIN = 0.12
"""How far from its prediction a time may be and still count as predicted."""

SAME_BATCH = 0.10
"""A larger batch is free while it costs at most this much more than batch 1."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Headers and rows of strings; the columns of `numeric` are right-aligned."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured case of one implementation.

    `share` is the compulsory bytes over the time, as a fraction of the read roof; None without a measured roof.
    """

    record: Record
    time: Interval
    share: float | None

    @property
    def case(self) -> tuple[str, str]:
        """Operation and case, whoever ran it."""
        return self.record.op, self.record.case_id

    @property
    def seconds(self) -> float:
        return self.time.median

    @property
    def rate(self) -> float:
        """Compulsory bytes per second."""
        return self.record.bytes / self.seconds

    @property
    def intensity(self) -> float:
        """Compulsory FLOP per compulsory byte."""
        return self.record.flops / self.record.bytes if self.record.bytes else 0.0

    def predicted(self, basis: str) -> float | None:
        """Seconds expected from the `measured` ceilings or the `datasheet`."""
        found = self.record.prediction.get(basis)
        return found["seconds"] if found else None

    def error(self, basis: str) -> float | None:
        """(measured - predicted) / predicted: +0.1 is 10% slower than predicted."""
        expected = self.predicted(basis)
        return self.seconds / expected - 1 if expected else None

    @property
    def trusted(self) -> bool:
        """No flag says that the time may be too short."""
        return self.record.is_trusted

    @property
    def bound(self) -> str:
        """What the prediction says limits the case: `memory`, `l2`, `launch`, a pipe, or nothing known."""
        for basis in ("measured", "datasheet"):
            if found := self.record.prediction.get(basis):
                return str(found["bound"])
        return ""

    @property
    def precision(self) -> str:
        """The types of a case, as its fields name them: `bf16`, `bf16 int4`."""
        return precision(self.record.case) or "other"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A peer's time over the time of our fastest implementation of the same case: above 1 ours is faster."""

    ours: Point
    peer: Point
    ratio: Interval


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How well measured times follow predictions: over `cases`, the median of |error| and the share `WITHIN`."""

    cases: int
    median: float
    within: float

    @classmethod
    def of(cls, points: Iterable[Point], basis: str) -> Accuracy | None:
        errors = [abs(error) for p in points if (error := p.error(basis)) is not None]
        if not errors:
            return None
        return cls(
            cases=len(errors),
            median=statistics.median(errors),
            within=sum(error <= WITHIN for error in errors) / len(errors),
        )


def role(op: str) -> Role:
    """What an operation is measured for; one that this version does not know is a part of decode."""
    known = discover().get(op)
    return known.role if known else "decode"


class View:
    """A run with what every part of a report needs, computed once."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @cached_property
    def all_points(self) -> list[Point]:
        """Every case with a time, ceilings included."""
        roof = self.run.ceilings.read_roof if self.run.ceilings else None
        return [
            Point(record=r, time=r.interval, share=r.bytes / r.interval.median / roof if roof else None)
            for r in self.run.timed
            if r.interval
        ]

    @cached_property
    def points(self) -> list[Point]:
        """Every case of a decode op with a time."""
        return [p for p in self.all_points if role(p.record.op) != "ceiling"]

    @cached_property
    def ours(self) -> list[Point]:
        return [p for p in self.points if p.record.ours]

    @cached_property
    def best(self) -> list[Point]:
        """The fastest of ours for each case; the fastest of all in a run without ours (a CPU's)."""
        return fastest(self.ours or self.points, case=lambda p: p.case, seconds=lambda p: p.seconds)

    def of(self, op: str) -> list[Point]:
        """An op's points in the order of tables: by size, ours before the peers."""
        found = [p for p in self.points if p.record.op == op]
        return sorted(found, key=lambda p: (p.record.bytes, p.record.case_id, not p.record.ours, p.record.impl))

    @cached_property
    def unmeasured(self) -> list[Record]:
        return [r for r in self.run.records if r.status != "ok"]

    @cached_property
    def peers(self) -> list[Peer]:
        """Each peer against ours, in the order of the records; none in a run without ours."""
        if not self.ours:
            return []
        best = {p.case: p for p in self.best}
        return [
            Peer(ours=ours, peer=p, ratio=ratio_interval(p.record.samples_s, ours.record.samples_s))
            for p in self.points
            if not p.record.ours and (ours := best.get(p.case))
        ]

    @property
    def ops(self) -> list[str]:
        """Decode ops with at least one time, in the order of the records."""
        return list(dict.fromkeys(p.record.op for p in self.points))

    def is_large(self, point: Point) -> bool:
        """At least twice the cache, so that neither it nor the launch decides the time.

        On a host, whose caches are of any size: whatever found them cold.
        """
        if not self.run.on_gpu:
            return bool(point.record.rotation.get("cold"))
        cache = point.record.rotation.get("cache_bytes") or self.run.header.get("target", {}).get("l2_bytes", 0)
        return point.record.bytes >= 2 * cache

    def large(self, op: str) -> list[Point]:
        """The best of an op's large cases, from the farthest from the read roof to the closest."""
        found = [p for p in self.best if p.record.op == op and p.share is not None and p.trusted and self.is_large(p)]
        return sorted(found, key=lambda p: p.share or 0.0)

    @cached_property
    def decode(self) -> list[Point]:
        """The best of every case of decode itself."""
        return [p for p in self.best if role(p.record.op) == "decode"]

    @cached_property
    def leading_ops(self) -> list[Op]:
        """The two decode operations with most measured cases: a headline speaks of them."""
        known = discover()
        cases = Counter(p.record.op for p in self.decode if p.record.op in known)
        return [known[name] for name, _ in cases.most_common(2)]

    @cached_property
    def memory_bound(self) -> list[Point]:
        """Those that are predicted to be bound by memory."""
        return [p for p in self.decode if p.bound == "memory"]

    @cached_property
    def as_predicted(self) -> list[Point]:
        """Those of them that ran within `WITHIN` of the prediction from measured ceilings."""
        return [p for p in self.memory_bound if (e := p.error("measured")) is not None and abs(e) <= WITHIN]

    @cached_property
    def interventions(self) -> list[Intervention]:
        """How times answer when only bytes or only FLOPs change, among the decode ops' cases."""
        return interventions(p.record for p in self.points)

    @cached_property
    def noisy(self) -> float:
        """The share of the decode ops' times whose interval stayed wider than the aim."""
        return sum("noisy" in p.record.flags for p in self.points) / len(self.points) if self.points else 0.0


def batches(points: Sequence[Point]) -> dict[tuple[int, int, str, str], dict[int, Point]]:
    """`ffn_gemv` points by (N, K, precision, impl), then by batch, where there are at least three batches."""
    series: dict[tuple[int, int, str, str], dict[int, Point]] = {}
    for point in points:
        case = point.record.case
        if point.record.op == "ffn_gemv" and all(name in case for name in ("B", "N", "K")):
            key = (case["N"], case["K"], point.precision, point.record.impl)
            series.setdefault(key, {})[case["B"]] = point
    return {key: dict(sorted(found.items())) for key, found in series.items() if len(found) >= 3}


def free_batch(series: dict[int, Point]) -> int:
    """The largest batch up to which every time stays within `SAME_BATCH` of the smallest batch's."""
    first = next(iter(series.values())).seconds
    free = next(iter(series))
    for batch, point in series.items():
        if point.seconds > (1 + SAME_BATCH) * first:
            break
        free = batch
    return free


def left_of_ridge(point: Point, ceilings: Ceilings) -> bool | None:
    """Do the bytes take longer at the read roof than the FLOPs at their pipes' peaks? None where a peak is unknown."""
    flops = point.record.work["flops"]
    if not any(flops.values()) or any(pipe not in ceilings.pipes for pipe in flops):
        return None
    arithmetic = sum(count / ceilings.pipes[pipe] for pipe, count in flops.items())
    return bool(point.record.bytes / ceilings.read_roof > arithmetic)


def gap(point: Point, ceilings: Ceilings) -> str:
    """Why a case is not at the read roof, by the sizes of the three parts that its time splits into."""
    ideal = point.record.bytes / ceilings.read_roof
    expected = point.predicted("measured")
    if expected is None:
        return "no prediction from measured ceilings"
    terms = point.record.prediction["measured"]["terms"]
    lost = point.seconds - ideal
    if lost <= 0.05 * point.seconds:
        return "within 5% of the roof"
    moved = sum(s["work"]["bytes_read"] + s["work"]["bytes_written"] for s in point.record.stages)
    parts = {
        "the model does not explain it": point.seconds - expected,
        f"bound by {point.bound}": expected - max(terms.get("memory", 0.0), ideal),
        "it moves more than the compulsory bytes": max(0.0, (moved - point.record.bytes) / ceilings.read_roof),
    }
    parts["a stream of this size is itself below the roof (launch, ramp, writes)"] = lost - sum(parts.values())
    reason, seconds = max(parts.items(), key=lambda item: item[1])
    share = seconds / lost
    return f"{reason}: {percent(share) if share < 0.995 else 'all'} of the gap"
