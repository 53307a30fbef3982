"""The suite's own targets: ratios within one run, so that they ask the same of every part. Data, then judgement.

Each target names the cases it is about and the number that each of them has; `over` says whether every case must
reach what is wanted, or a figure of all cases together. Flags of times that may be too short leave a case out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.judge import peers
from bench.judge.view import Point, Table, View
from bench.units import percent

MB = 1_000_000

Value = tuple[float, str]
"""A case's number and its name."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """`wanted` is the least that is good enough or, with `at_most`, the most; of `values`, one per case, over:

    - `every case`: each of them, so the worst is what counts
    - `geometric mean`, `median`, `90%` (the 90th percentile): of all of them
    """

    what: str
    wanted: float
    values: Callable[[View], Iterable[Value]]
    over: Literal["every case", "geometric mean", "median", "90%"] = "every case"
    at_most: bool = False
    ratio: bool = False
    """Shown as `1.05` rather than as a percentage."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """`found` is the number that counts, None if the run has no such case; `worst` the case farthest off."""

    target: Target
    found: float | None
    reaching: int
    cases: int
    worst: str

    @property
    def verdict(self) -> Literal["reached", "missed", "not measured"]:
        if self.found is None:
            return "not measured"
        return "reached" if good(self.target, self.found) else "missed"


def good(target: Target, value: float) -> bool:
    return value <= target.wanted if target.at_most else value >= target.wanted


# ---- what the targets are about


def shares(op: str, fits: Callable[[dict[str, Any]], bool], least: int, most: float = math.inf) -> Any:
    """Shares of the read roof of the best of ours, for cases that fit and move `least` bytes or more, below `most`."""

    def values(view: View) -> list[Value]:
        return [(p.share or 0.0, p.record.case_id) for p in ours(view, op, fits, least, most)]

    return values


def ours(
    view: View, op: str, fits: Callable[[dict[str, Any]], bool], least: int = 0, most: float = math.inf
) -> list[Point]:
    """The fastest of ours for each such case, where a roof was measured."""
    return [
        p for p in view.best
        if p.record.ours and p.record.op == op and p.trusted and p.share is not None
        and least <= p.record.bytes < most and fits(p.record.case)
    ]  # fmt: skip


def read_of_datasheet(view: View) -> list[Value]:
    sheet = view.run.published("memory_bandwidth")
    if view.run.ceilings is None or sheet is None or sheet.kind != "datasheet":
        return []
    return [(view.run.ceilings.read_roof / sheet.value, "stream read")]


def gemv_bf16(case: dict[str, Any]) -> bool:
    return case["dtype"] == "bf16" and case.get("weights") in ("", "bf16", None) and case["B"] <= 64


def gemv_int(case: dict[str, Any]) -> bool:
    return str(case.get("weights")).startswith(("int8", "int4")) and case["B"] <= 64


def attention_bf16(case: dict[str, Any]) -> bool:
    """A contiguous cache, or pages of 16 tokens and more."""
    return case["dtype"] == "bf16" and not case.get("kv") and (not case.get("page") or case["page"] >= 16)


def attention_fp8(case: dict[str, Any]) -> bool:
    return case.get("kv") == "fp8" and (not case.get("page") or case["page"] >= 16)


def any_case(case: dict[str, Any]) -> bool:
    return True


def of_binding_roof(view: View) -> list[Value]:
    """Multi-head latent attention at 256 MB and more: whichever of bytes and FLOPs takes longer at its roof."""
    found = []
    ceilings = view.run.ceilings
    for p in ours(view, "mla_decode", any_case, 256 * MB):
        assert ceilings
        flops = p.record.work["flops"]
        if all(pipe in ceilings.pipes for pipe in flops):
            arithmetic = sum(count / ceilings.pipes[pipe] for pipe, count in flops.items())
            found.append((max(p.record.bytes / ceilings.read_roof, arithmetic) / p.seconds, p.record.case_id))
    return found


def heads(case: dict[str, Any]) -> tuple[Any, ...]:
    """What two cases must share for one to be the other's yardstick."""
    return tuple(case.get(name) for name in ("H_q", "H_kv", "D", "dtype", "kv", "q_len"))


def against_contiguous(fits: Callable[[dict[str, Any]], bool], least: int = 0) -> Callable[[View], list[Value]]:
    """Shares over that of the best contiguous cache of the same heads at batch 16 and more, 256 MB and more."""

    def plain(case: dict[str, Any]) -> bool:
        return not case.get("window") and not case.get("prefix") and case.get("lengths", "uniform") == "uniform"

    def yardstick(case: dict[str, Any]) -> bool:
        return plain(case) and not case.get("page") and case["B"] >= 16

    def asked(case: dict[str, Any]) -> bool:
        return plain(case) and fits(case)

    def values(view: View) -> list[Value]:
        best: dict[tuple[Any, ...], float] = {}
        for p in ours(view, "attention_decode", yardstick, 256 * MB):
            key = heads(p.record.case)
            best[key] = max(p.share or 0.0, best.get(key, 0.0))
        return [
            ((p.share or 0.0) / best[key], p.record.case_id)
            for p in ours(view, "attention_decode", asked, least)
            if (key := heads(p.record.case)) in best
        ]

    return values


def peer_ratios(view: View) -> list[Value]:
    """The fastest peer's time over ours, case by case."""
    return [(p.ratio.median, f"{p.ours.record.op} {p.ours.record.case_id}, {p.peer.record.impl}")
            for p in peers.fastest(view)]  # fmt: skip


def errors(view: View) -> list[Value]:
    """|measured / predicted - 1| of ours at 1 MB and more."""
    return [
        (abs(error), f"{p.record.op} {p.record.impl} {p.record.case_id}")
        for p in view.ours
        if p.trusted and p.record.bytes >= MB and (error := p.error("measured")) is not None
    ]


LARGE = 256 * MB
MEDIUM = 20 * MB

TARGETS = (
    Target(what="stream read, of the datasheet's bandwidth", wanted=0.93, values=read_of_datasheet),
    Target(what="GEMV bf16, batch 1 to 64, 256 MB and more, of the read roof", wanted=0.92,
           values=shares("ffn_gemv", gemv_bf16, LARGE)),
    Target(what="GEMV bf16, batch 1 to 64, 20 to 256 MB, of the read roof", wanted=0.80,
           values=shares("ffn_gemv", gemv_bf16, MEDIUM, LARGE)),
    Target(what="GEMV int8 and int4, batch 1 to 64, 100 MB and more, of the read roof", wanted=0.85,
           values=shares("ffn_gemv", gemv_int, 100 * MB)),
    Target(what="attention bf16, contiguous or pages of 16 and more, 256 MB and more, of the read roof", wanted=0.92,
           values=shares("attention_decode", attention_bf16, LARGE)),
    Target(what="attention bf16, contiguous or pages of 16 and more, 20 to 256 MB, of the read roof", wanted=0.80,
           values=shares("attention_decode", attention_bf16, MEDIUM, LARGE)),
    Target(what="attention with an fp8 cache, 256 MB and more, of the read roof", wanted=0.90,
           values=shares("attention_decode", attention_fp8, LARGE)),
    Target(what="MLA, 256 MB and more, of the roof that binds", wanted=0.88, values=of_binding_roof),
    Target(what="attention of one request, 32K to 128K tokens, over a large contiguous batch", wanted=0.97, ratio=True,
           values=against_contiguous(lambda case: case["B"] == 1 and 32768 <= case["T"] <= 131072)),
    Target(what="attention in pages of 16 tokens, 256 MB and more, over a large contiguous batch", wanted=0.97,
           ratio=True, values=against_contiguous(lambda case: case.get("page") == 16, LARGE)),
    Target(what="fastest peer's time over ours, all cases together", wanted=1.05, values=peer_ratios, ratio=True,
           over="geometric mean"),
    Target(what="fastest peer's time over ours, case by case", wanted=0.97, values=peer_ratios, ratio=True),
    Target(what="error of the predictions at 1 MB and more, median", wanted=0.05, values=errors, over="median",
           at_most=True),
    Target(what="error of the predictions at 1 MB and more, for 90% of cases", wanted=0.12, values=errors, over="90%",
           at_most=True),
)  # fmt: skip


# ---- judgement


def judge(target: Target, view: View) -> Judged:
    values = list(target.values(view))
    if not values:
        return Judged(target=target, found=None, reaching=0, cases=0, worst="")
    numbers = [value for value, _ in values]
    sign = -1 if target.at_most else 1
    worst, name = min(values, key=lambda value: sign * value[0])
    found = {
        "every case": lambda: worst,
        "geometric mean": lambda: statistics.geometric_mean(numbers),
        "median": lambda: statistics.median(numbers),
        "90%": lambda: float(np.quantile(numbers, 0.9)),
    }[target.over]()
    return Judged(
        target=target, found=found, reaching=sum(good(target, n) for n in numbers), cases=len(numbers), worst=name
    )


def judged(view: View) -> list[Judged]:
    """Every target. Nothing on a host: the targets are about kernels that only a GPU runs."""
    return [judge(target, view) for target in TARGETS] if view.run.on_gpu else []


def table(found: Sequence[Judged]) -> Table:
    rows = []
    for j in found:
        bound = "at most" if j.target.at_most else "at least"
        shown = written(j.target, j.found) if j.found is not None else ""
        rows.append(
            (
                j.target.what,
                f"{bound} {written(j.target, j.target.wanted)}",
                shown,
                f"{j.reaching} of {j.cases}" if j.cases else "",
                j.verdict,
                j.worst,
            )
        )
    return Table(
        headers=("target", "wanted", "found", "cases that reach it", "verdict", "worst case"), rows=rows, numeric=(2, 3)
    )


def written(target: Target, value: float) -> str:
    return f"{value:.2f}" if target.ratio else percent(value, 1)


def tally(found: Sequence[Judged]) -> str:
    """How many were reached, and what the columns mean."""
    counts = {v: sum(j.verdict == v for j in found) for v in ("reached", "missed", "not measured")}
    parts = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    return (
        f"Of {len(found)} targets: {parts}. What is found is the worst case's number, unless the target speaks of all "
        "cases together; a case flagged as possibly too fast is not counted."
    )
