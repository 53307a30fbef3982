"""The project's own goals: ratios within one run, so that they ask the same of every part. First data, then judgement.

A goal names the cases that it is about and gives a number for each of them. `over` says what must be good enough: every
single case, or one figure for all cases together. A case whose time may be too short by its flags does not count.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.judge import peers
from bench.judge.beside import beside
from bench.judge.view import Point, Table, View, once
from bench.units import percent

Fields = dict[str, Any]
"""The fields of a case, as its record holds them."""

Fits = Callable[[Fields], bool]
"""Whether a goal is about the case."""

Value = tuple[float, str]
"""A case's number and the case's name."""

MB = 1_000_000
LARGE = 256 * MB
MEDIUM = 20 * MB


@dataclass(frozen=True)
class Goal:
    """`wanted` is the smallest value that is good enough or, with `at_most`, the largest."""

    what: str
    wanted: float
    values: Callable[[View], Iterable[Value]]
    """One value per case."""
    over: Literal["every case", "geometric mean", "median", "90%"] = "every case"
    """What must be good enough: each value, or one figure of all values; `90%` is the 90th percentile."""
    at_most: bool = False
    ratio: bool = False
    """Shown as `1.05` rather than as a percentage."""

    def met_by(self, value: float) -> bool:
        return value <= self.wanted if self.at_most else value >= self.wanted

    def written(self, value: float) -> str:
        return f"{value:.2f}" if self.ratio else percent(value, 1)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A goal and what the run says of it."""

    goal: Goal
    found: float | None
    """The figure that is judged; None if the run has no such case."""
    reaching: int
    """How many cases are good enough on their own."""
    cases: int
    worst: str
    """The case that is farthest off."""

    @property
    def verdict(self) -> Literal["reached", "missed", "not measured"]:
        if self.found is None:
            return "not measured"
        return "reached" if self.goal.met_by(self.found) else "missed"


# ---- what the goals are about


def ours(view: View, op: str, fits: Fits, least: int = 0, most: float = math.inf) -> list[tuple[Point, float]]:
    """Our fastest for each case that fits and moves at least `least` and less than `most` bytes, with its roof share.

    There are none if the run measured no roof.
    """
    return [
        (p, p.share)
        for p in view.best
        if p.record.op == op and p.record.ours and p.trusted and p.share is not None
        if least <= p.record.bytes < most and fits(p.record.case)
    ]


def shares(op: str, fits: Fits, least: int, most: float = math.inf) -> Callable[[View], list[Value]]:
    """The share of the read roof for each case that `ours` gives."""
    return lambda view: [(share, p.record.case_id) for p, share in ours(view, op, fits, least, most)]


def read_of_datasheet(view: View) -> list[Value]:
    sheet = view.run.published("memory_bandwidth")
    if view.run.ceilings is None or sheet is None or sheet.kind != "datasheet":
        return []
    return [(view.run.ceilings.read_roof / sheet.value, "stream read")]


def gemv_bf16(case: Fields) -> bool:
    return case["dtype"] == "bf16" and case.get("weights") in ("", "bf16", None) and case["B"] <= 64


def gemv_int(case: Fields) -> bool:
    return str(case.get("weights")).startswith(("int8", "int4")) and case["B"] <= 64


def contiguous_or_paged(case: Fields) -> bool:
    """A contiguous cache, or pages of at least 16 tokens."""
    return not case.get("page") or case["page"] >= 16


def attention_bf16(case: Fields) -> bool:
    return case["dtype"] == "bf16" and not case.get("kv") and contiguous_or_paged(case)


def attention_fp8(case: Fields) -> bool:
    return case.get("kv") == "fp8" and contiguous_or_paged(case)


def of_binding_roof(view: View) -> list[Value]:
    """Multi-head latent attention that moves at least 256 MB: the longer of its times at both roofs, over its time."""
    ceilings = view.run.ceilings
    if ceilings is None:
        return []
    return [
        (max(p.record.bytes / ceilings.read_roof, arithmetic) / p.seconds, p.record.case_id)
        for p, _ in ours(view, "mla_decode", lambda case: True, LARGE)
        if (arithmetic := ceilings.arithmetic_seconds(p.record.work["flops"])) is not None
    ]


def heads(case: Fields) -> tuple[Any, ...]:
    """What two cases must have in common to be compared."""
    return tuple(case.get(name) for name in ("H_q", "H_kv", "D", "dtype", "kv", "q_len"))


def against_contiguous(fits: Fits, least: int = 0) -> Callable[[View], list[Value]]:
    """Each case's share of the roof, over the best share of a contiguous cache with the same heads.

    The contiguous cache has a batch of at least 16 and moves at least 256 MB.
    """

    def plain(case: Fields) -> bool:
        return not case.get("window") and not case.get("prefix") and case.get("lengths", "uniform") == "uniform"

    def contiguous(case: Fields) -> bool:
        return plain(case) and not case.get("page") and case["B"] >= 16

    def values(view: View) -> list[Value]:
        best: dict[tuple[Any, ...], float] = {}
        for p, share in ours(view, "attention_decode", contiguous, LARGE):
            key = heads(p.record.case)
            best[key] = max(share, best.get(key, 0.0))
        return [
            (share / best[key], p.record.case_id)
            for p, share in ours(view, "attention_decode", lambda case: plain(case) and fits(case), least)
            if (key := heads(p.record.case)) in best
        ]

    return values


def one_long_request(case: Fields) -> bool:
    return case["B"] == 1 and 32768 <= case["T"] <= 131072


def in_pages_of_16(case: Fields) -> bool:
    return case.get("page") == 16


def peer_ratios(view: View) -> list[Value]:
    """The fastest peer's time over ours, for each case."""
    return [
        (p.ratio.median, f"{p.ours.record.op} {p.ours.record.case_id}, {p.peer.record.impl}")
        for p in peers.fastest(view)
    ]


def errors(view: View) -> list[Value]:
    """|measured / predicted - 1| of our cases that move at least 1 MB."""
    return [
        (abs(error), f"{p.record.op} {p.record.impl} {p.record.case_id}")
        for p in view.ours
        if p.trusted and p.record.bytes >= MB and (error := p.error("measured")) is not None
    ]


def over_published(view: View) -> list[Value]:
    """Our speed over the best published on this part, of our cases that move at least 64 MB."""
    return [
        (found.ratio, f"{found.ours.record.op} {found.ours.record.case_id}, {found.published.line}")
        for found in beside(view)
        if found.ours.record.bytes >= 64 * MB
    ]


PUBLISHED = "speed over the best published time, 64 MB and more, all cases together"

GOALS = (
    Goal("stream read, of the datasheet's bandwidth", 0.93, read_of_datasheet),
    Goal(
        "GEMV bf16, batch 1 to 64, 256 MB and more, of the read roof",
        0.92,
        shares("ffn_gemv", gemv_bf16, LARGE),
    ),
    Goal(
        "GEMV bf16, batch 1 to 64, 20 to 256 MB, of the read roof",
        0.80,
        shares("ffn_gemv", gemv_bf16, MEDIUM, LARGE),
    ),
    Goal(
        "GEMV int8 and int4, batch 1 to 64, 100 MB and more, of the read roof",
        0.85,
        shares("ffn_gemv", gemv_int, 100 * MB),
    ),
    Goal(
        "attention bf16, contiguous or pages of 16 and more, 256 MB and more, of the read roof",
        0.92,
        shares("attention_decode", attention_bf16, LARGE),
    ),
    Goal(
        "attention bf16, contiguous or pages of 16 and more, 20 to 256 MB, of the read roof",
        0.80,
        shares("attention_decode", attention_bf16, MEDIUM, LARGE),
    ),
    Goal(
        "attention with an fp8 cache, 256 MB and more, of the read roof",
        0.90,
        shares("attention_decode", attention_fp8, LARGE),
    ),
    Goal("MLA, 256 MB and more, of the roof that binds", 0.88, of_binding_roof),
    Goal(
        "attention of one request, 32K to 128K tokens, over a large contiguous batch",
        0.97,
        against_contiguous(one_long_request),
        ratio=True,
    ),
    Goal(
        "attention in pages of 16 tokens, 256 MB and more, over a large contiguous batch",
        0.97,
        against_contiguous(in_pages_of_16, LARGE),
        ratio=True,
    ),
    Goal("fastest peer's time over ours, all cases together", 1.05, peer_ratios, over="geometric mean", ratio=True),
    Goal("fastest peer's time over ours, case by case", 0.97, peer_ratios, ratio=True),
    Goal(PUBLISHED, 1.0, over_published, over="geometric mean", ratio=True),
    Goal("error of the predictions at 1 MB and more, median", 0.05, errors, over="median", at_most=True),
    Goal("error of the predictions at 1 MB and more, for 90% of cases", 0.12, errors, over="90%", at_most=True),
)


# ---- judgement


def judge(goal: Goal, view: View) -> Judged:
    values = list(goal.values(view))
    if not values:
        return Judged(goal=goal, found=None, reaching=0, cases=0, worst="")
    numbers = [value for value, _ in values]
    sign = -1 if goal.at_most else 1
    worst, name = min(values, key=lambda value: sign * value[0])
    figures: dict[str, Callable[[], float]] = {
        "every case": lambda: worst,
        "geometric mean": lambda: statistics.geometric_mean(numbers),
        "median": lambda: statistics.median(numbers),
        "90%": lambda: float(np.quantile(numbers, 0.9)),
    }
    reaching = sum(map(goal.met_by, numbers))
    return Judged(goal=goal, found=figures[goal.over](), reaching=reaching, cases=len(numbers), worst=name)


@once
def judged(view: View) -> list[Judged]:
    """Every goal; none on a host, since the goals are about kernels that only a GPU runs."""
    return [judge(goal, view) for goal in GOALS] if view.run.on_gpu else []


def table(found: Sequence[Judged]) -> Table:
    rows = [
        (
            j.goal.what,
            f"at {'most' if j.goal.at_most else 'least'} {j.goal.written(j.goal.wanted)}",
            j.goal.written(j.found) if j.found is not None else "",
            f"{j.reaching} of {j.cases}" if j.cases else "",
            j.verdict,
            j.worst,
        )
        for j in found
    ]
    headers = ("goal", "wanted", "found", "cases that reach it", "verdict", "worst case")
    return Table(headers=headers, rows=rows, numeric=(2, 3))


def tally(found: Sequence[Judged]) -> str:
    """How many goals were reached, and what the columns mean."""
    counts = {v: sum(j.verdict == v for j in found) for v in ("reached", "missed", "not measured")}
    parts = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    return (
        f"Of {len(found)} goals: {parts}. The number found is the one of the worst case, or one figure for all cases "
        "where the goal says so. A case does not count if a flag says that its time may be too short."
    )
