"""A run as a report sees it: its records and the numbers that are derived from them. Never imports torch."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, TypeVar

from bench.ceilings import Ceilings
from bench.judge.interventions import Intervention, interventions
from bench.predict.roofline import Prediction, predict_beside
from bench.records import Record, comparable
from bench.run import Run, fastest_of_each
from bench.stats import Interval, ratio_interval
from bench.units import percent, si
from kernels.op import Op, Role, discover, precision

F = TypeVar("F", bound=Callable[..., Any])

PREDICTION_BAND = 0.12
"""A time counts as predicted if it differs from its prediction by at most this share of it."""

HOST_LARGE = 16_000_000
"""Bytes from which on a host's predictions are judged."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Headers and rows of strings. The columns in `numeric` are aligned to the right."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured case of one implementation."""

    record: Record
    time: Interval
    share: float | None
    """Compulsory bytes over time, as a fraction of the read roof of the same seconds; None without a measured roof."""
    beside: Prediction | None = None
    """On a host, the prediction under the read roof that was measured between the samples."""
    slower: float = 1.0
    """How many times longer the read of the roof took around these samples than in the median of the run."""

    @property
    def case(self) -> tuple[str, str]:
        """Operation and case id, which all implementations of the case share."""
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
        """Seconds that the `measured` ceilings or the `datasheet` predict.

        Where the roof was read between the samples, the ceilings are those of the same seconds.
        """
        if basis == "measured" and self.beside:
            return self.beside.seconds
        found = self.record.prediction.get(basis)
        return found["seconds"] if found else None

    @property
    def terms(self) -> Mapping[str, float]:
        """The terms of the prediction from measured ceilings; empty without one."""
        found = self.record.prediction.get("measured")
        return self.beside.terms if self.beside else found["terms"] if found else {}

    @property
    def usual_seconds(self) -> float:
        """The time at the memory's usual speed in this run. It can be compared with that of another case."""
        return self.seconds / self.slower

    def error(self, basis: str) -> float | None:
        """(measured - predicted) / predicted: +0.1 means 10% slower than predicted."""
        expected = self.predicted(basis)
        return self.seconds / expected - 1 if expected else None

    @property
    def trusted(self) -> bool:
        """No flag says that the time may be too short."""
        return self.record.is_trusted

    @property
    def bound(self) -> str:
        """What bounds the case by its prediction: a term of `predict/roofline.py`; empty without a prediction."""
        if self.beside:
            return self.beside.bound
        for basis in ("measured", "datasheet"):
            if found := self.record.prediction.get(basis):
                return str(found["bound"])
        return ""

    @property
    def precision(self) -> str:
        """The element types of the case: `bf16`, `bf16 int4`."""
        return precision(self.record.case) or "other"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A peer beside our fastest implementation of the same case."""

    ours: Point
    peer: Point
    ratio: Interval
    """The peer's time over ours: above 1, ours is faster."""

    @property
    def flags(self) -> list[str]:
        """The flags of both times, each once."""
        return list(dict.fromkeys([*self.ours.record.flags, *self.peer.record.flags]))


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How well measured times follow predictions."""

    cases: int
    median: float
    """The median of |error|."""
    within: float
    """The share of cases whose |error| is at most `PREDICTION_BAND`."""

    @classmethod
    def of(cls, points: Iterable[Point], basis: str) -> Accuracy | None:
        errors = [abs(error) for p in points if (error := p.error(basis)) is not None]
        if not errors:
            return None
        return cls(
            cases=len(errors),
            median=statistics.median(errors),
            within=sum(error <= PREDICTION_BAND for error in errors) / len(errors),
        )


def role(op: str) -> Role:
    """What an operation is measured for. An operation that this version does not know counts as a part of decode."""
    known = discover().get(op)
    return known.role if known else "decode"


def once(function: F) -> F:
    """Keep what a function of a view returns with the view: `report.md`, the page and the verdict ask the same."""

    @wraps(function)
    def kept(view: View, *arguments: Any) -> Any:
        key = (function, *arguments)
        if key not in view.kept:
            view.kept[key] = function(view, *arguments)
        return view.kept[key]

    return kept  # type: ignore[return-value]


class View:
    """A run and what every part of a report needs of it, computed once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.kept: dict[tuple[Any, ...], Any] = {}
        """What functions marked `once` have returned."""

    @cached_property
    def all_points(self) -> list[Point]:
        """Every case with a time, also those of ceilings."""
        return [self.point(r, r.interval) for r in self.run.timed if r.interval]

    def point(self, record: Record, time: Interval) -> Point:
        ceilings = self.run.ceilings
        if ceilings is None:
            return Point(record=record, time=time, share=None)
        there = ceilings.beside(record)
        return Point(
            record=record,
            time=time,
            share=record.bytes / time.median / there.read_roof,
            beside=predict_beside(record, ceilings, self.run.target),
            slower=ceilings.read_roof / there.read_roof,
        )

    @cached_property
    def points(self) -> list[Point]:
        """Every case with a time, without those of ceilings."""
        return [p for p in self.all_points if role(p.record.op) != "ceiling"]

    @cached_property
    def by_case(self) -> dict[tuple[str, str], list[Point]]:
        """The points by operation and case id."""
        found: dict[tuple[str, str], list[Point]] = {}
        for p in self.points:
            found.setdefault(p.case, []).append(p)
        return found

    @cached_property
    def ours(self) -> list[Point]:
        return [p for p in self.points if p.record.ours]

    @cached_property
    def best(self) -> list[Point]:
        """For each case, our fastest implementation. In a run without ours (on a CPU), the fastest of all."""
        return fastest_of_each(self.ours or self.points, case=lambda p: p.case, seconds=lambda p: p.seconds)

    def of(self, op: str) -> list[Point]:
        """An op's points in the order of tables: by size, and ours before peers."""
        found = [p for p in self.points if p.record.op == op]
        return sorted(found, key=lambda p: (p.record.bytes, p.record.case_id, not p.record.ours, p.record.impl))

    @cached_property
    def unmeasured(self) -> list[Record]:
        return [r for r in self.run.records if r.status != "ok"]

    @cached_property
    def peers(self) -> list[Peer]:
        """Each peer beside ours, in the order of the records. There are none in a run without ours."""
        if not self.ours:
            return []
        best = {p.case: p for p in self.best}
        return [
            Peer(ours=ours, peer=p, ratio=ratio_interval(*comparable([p.record, ours.record])))
            for p in self.points
            if not p.record.ours and (ours := best.get(p.case))
        ]

    @property
    def ops(self) -> list[str]:
        """The ops with at least one time, without ceilings, in the order of the records."""
        return list(dict.fromkeys(p.record.op for p in self.points))

    def is_large(self, point: Point) -> bool:
        """Whether neither cache nor launch decides the time: the case moves at least twice the cache's size.

        The caches of hosts have any size, so on a host a case is large if it found the caches cold.
        """
        if not self.run.on_gpu:
            return bool(point.record.rotation.get("cold"))
        cache = point.record.rotation.get("cache_bytes") or self.run.header.get("target", {}).get("l2_bytes", 0)
        return point.record.bytes >= 2 * cache

    def large(self, op: str) -> list[Point]:
        """The best points of an op's large cases, the one farthest from the read roof first."""
        found = [p for p in self.best if p.record.op == op and p.share is not None and p.trusted and self.is_large(p)]
        return sorted(found, key=lambda p: p.share or 0.0)

    @cached_property
    def decode(self) -> list[Point]:
        """The best point of every case that is a part of decode."""
        return [p for p in self.best if role(p.record.op) == "decode"]

    @cached_property
    def leading_ops(self) -> list[Op]:
        """The two decode operations with the most measured cases, which the headline is about."""
        known = discover()
        cases = Counter(p.record.op for p in self.decode if p.record.op in known)
        return [known[name] for name, _ in cases.most_common(2)]

    @cached_property
    def memory_bound(self) -> list[Point]:
        """The points of `decode` that are predicted to be bound by memory."""
        return [p for p in self.decode if p.bound == "memory"]

    @cached_property
    def as_predicted(self) -> list[Point]:
        """The points of `memory_bound` whose time is within `PREDICTION_BAND` of the prediction from ceilings."""
        errors = ((p, p.error("measured")) for p in self.memory_bound)
        return [p for p, error in errors if error is not None and abs(error) <= PREDICTION_BAND]

    @cached_property
    def slow(self) -> list[Point]:
        """Our fastest times that miss their prediction where another implementation ran the case as predicted."""
        late = (p for p in self.best if (p.error("measured") or 0.0) > PREDICTION_BAND)
        return [p for p in late if as_predicted(p, self.by_case[p.case])]

    @cached_property
    def interventions(self) -> list[Intervention]:
        """How times respond where only bytes or only FLOPs change, among all cases but those of ceilings."""
        return interventions(p.record for p in self.points)

    @cached_property
    def accuracy(self) -> Accuracy | None:
        """How well our times, or in a run without ours all times, follow the predictions from measured ceilings.

        On a host only the cases of `HOST_LARGE` bytes and more count: below, the start of the threads decides.
        """
        found = [p for p in self.ours or self.points if not self.run.on_host or p.record.bytes >= HOST_LARGE]
        return Accuracy.of(found, "measured")

    @property
    def accuracy_of(self) -> str:
        """Which times `accuracy` counts, where these are not all."""
        return " for cases of 16 MB and more" if self.run.on_host else ""

    @cached_property
    def paired(self) -> tuple[float, float] | None:
        """The lowest and the highest rate of the roof's read beside any point, in B/s; None without such reads."""
        rates = [p.record.roof["bytes"] / p.record.read_s for p in self.points if p.record.read_s]
        return (min(rates), max(rates)) if rates else None

    @cached_property
    def noisy(self) -> float:
        """The share of times whose interval stayed wider than the aim, without ceilings."""
        return sum("noisy" in p.record.flags for p in self.points) / len(self.points) if self.points else 0.0


def as_predicted(point: Point, others: Iterable[Point]) -> Point | None:
    """The fastest other implementation that ran the case in the time predicted for `point`, within `PREDICTION_BAND`.

    Where there is one, the prediction can be reached. So if `point` misses it, its kernel is slow and the model is
    right. Where there is none, either may be wrong.
    """
    expected = point.predicted("measured")
    if expected is None:
        return None
    able = [
        other
        for other in others
        if other.case == point.case
        and other.record.impl != point.record.impl
        and other.trusted
        and other.seconds <= (1 + PREDICTION_BAND) * expected
    ]
    return min(able, key=lambda other: other.seconds, default=None)


UNEXPLAINED = "the model does not explain it"


def bound_by(point: Point) -> str:
    core, pipes = point.terms.get("core"), point.record.work["flops"]
    if point.bound != "core" or not core or not pipes:
        return f"bound by {point.bound}"
    return f"bound by its instructions (in the caches it computes {si(point.record.flops / core, 'FLOP/s')})"


def gap(point: Point, ceilings: Ceilings, others: Iterable[Point] = ()) -> str:
    """Why a case does not reach the read roof: the largest of the parts that make up the lost time.

    `others` are the run's points of this case. They tell a slow kernel from an error of the model: see `as_predicted`.
    """
    roof = ceilings.beside(point.record).read_roof
    ideal = point.record.bytes / roof
    expected = point.predicted("measured")
    if expected is None:
        return "no prediction from measured ceilings"
    terms = point.terms
    chain, bend = terms.get("chain", 0.0), terms.get("bend", 0.0)
    lost = point.seconds - ideal
    if lost <= 0.05 * point.seconds:
        return "within 5% of the roof"
    moved = sum(s["work"]["bytes_read"] + s["work"]["bytes_written"] for s in point.record.stages)
    parts = {
        UNEXPLAINED: point.seconds - expected,
        bound_by(point): expected - chain - bend - max(terms.get("memory", 0.0), ideal),
        "a stream that computes as much is itself below the roof": bend,
        "loads wait for each other before and after the stream": chain,
        "it moves more than the compulsory bytes": max(0.0, (moved - point.record.bytes) / roof),
    }
    parts["a stream of this size is itself below the roof (launch, ramp, writes)"] = lost - sum(parts.values())
    reason, seconds = max(parts.items(), key=lambda item: item[1])
    if reason == UNEXPLAINED and (faster := as_predicted(point, others)):
        reason = f"the kernel is slow, {faster.record.impl} takes {percent(faster.seconds / point.seconds)} of its time"
    share = seconds / lost
    return f"{reason}: {percent(share) if share < 0.995 else 'all'} of the gap"
