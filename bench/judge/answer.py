"""The answer of a run in three tiles: is decode memory-bound, by how much, and can the numbers be trusted? Pure.

The page, `report.md`, and the end of `run` and of `campaign` all show these tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bench.judge.batches import SAME_BATCH, batches, free_batch, main_batches
from bench.judge.boundness import Evidence, evidence, short
from bench.judge.busyness import banner
from bench.judge.interventions import Bounds
from bench.judge.view import Point, View, once
from bench.units import percent

MANY = 0.5
"""If more than this share of the times has a flag, the whole run deserves no trust."""

MISSED = 0.25
"""If predictions miss by more than this in the median, either the model or the times are wrong."""

Tone = Literal["good", "bad", "open"]
OPEN: Tone = "open"


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One question, its answer in a few words, and what the answer rests on."""

    question: str
    answer: str
    because: str
    tone: Tone

    @property
    def line(self) -> str:
        return f"{self.question} {self.answer}: {self.because}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    memory: Tile
    amount: Tile
    trust: Tile
    warning: str = ""
    """Why the numbers must not be quoted; it stands above everything else. Empty where nothing speaks against them."""

    @property
    def tiles(self) -> tuple[Tile, Tile, Tile]:
        return self.memory, self.amount, self.trust

    def lines(self) -> list[str]:
        """For a terminal: the warning if there is one, then a line for each tile."""
        return [*([self.warning] if self.warning else []), *(tile.line for tile in self.tiles)]

    def as_dict(self) -> dict[str, str]:
        return {"warning": self.warning} | {tile.question: f"{tile.answer}: {tile.because}" for tile in self.tiles}


@once
def answer(view: View) -> Answer:
    """The three tiles of a run; a run without times gets tiles that say so."""
    return Answer(memory=_memory(view), amount=_amount(view), trust=_trust(view), warning=banner(view.run))


# ---- is it memory?


def _memory(view: View) -> Tile:
    bounds = Bounds.of(p.record for p in view.points)
    untested = "no two cases differ only in their bytes or only in their FLOPs"
    if any(bounds.regime(p.record) is None for p in view.decode):
        untested += ", but for cases near their ridge, where bytes and arithmetic take about as long"
    said, tone = "NOT TESTED", OPEN
    if found := evidence(view):
        said, tone = _verdict(found)
        because = short(found)
    elif not view.decode:
        said, because = "NOT MEASURED", "no case of decode has a time"
    elif not any(p.predicted("measured") for p in view.decode):
        because = f"{untested}, and nothing was predicted"
    else:
        because = f"{untested}; predicted for {percent(len(view.memory_bound) / len(view.decode))} of the cases"
    return Tile(question="Memory-bound?", answer=said, because=because, tone=tone)


TONES: dict[str, Tone] = {"yes": "good", "no": "bad"}


def _verdict(found: Evidence) -> tuple[str, Tone]:
    """`YES (8 of 8 tests)`. A test is a group of cases that differ only in their bytes or their FLOPs."""
    of = found.groups or found.free
    agree = {"no": found.no, "undecided": found.undecided, "probably": found.free}.get(found.answer, found.yes)
    count = f"{agree} of {of} test{'s' * (of > 1)}"
    return f"{found.answer.upper()} ({count})", TONES.get(found.answer, "open")


# ---- by how much?


def _amount(view: View) -> Tile:
    """How little arithmetic the smallest batch uses, and how large a batch costs no more."""
    series = main_batches(batches([p for p in view.points if p.trusted]))
    if series:
        (n, k, kind, _), found = series
        first, free, last = next(iter(found)), free_batch(found), list(found)[-1]
        upto = f"free up to batch {free}" if free > first else f"no batch above {first} is free"
        if free == last:
            upto += ", the largest that was tried"
        said = used_at(view, found[first]) or "peak not known"
        slower = f"free means at most {percent(SAME_BATCH)} slower than batch {first}"
        return _how_much(f"{said}; {upto}", f"{slower}; {kind} weight of {n} × {k}", "good")
    points = [p for p in view.decode if p.trusted and p.record.flops and "B" in p.record.case]
    if not points:
        return _how_much("NOT MEASURED", "no case of decode that computes was timed", "open")
    first = min(p.record.case["B"] for p in points)
    largest = max((p for p in points if p.record.case["B"] == first), key=lambda p: p.record.bytes)
    where = f"{largest.record.op} {largest.record.case_id}; no weight was timed at three batches"
    if said := used_at(view, largest):
        return _how_much(said, where, "good")
    return _how_much("NOT KNOWN", f"the peak of the arithmetic is not known; {where}", "open")


def _how_much(said: str, because: str, tone: Tone) -> Tile:
    return Tile(question="How much?", answer=said, because=because, tone=tone)


def used_at(view: View, point: Point) -> str:
    """`batch 1 uses 0.3% of the arithmetic`; empty where no peak is known."""
    share = arithmetic_share(view, point)
    return "" if share is None else f"batch {point.record.case['B']} uses {share_text(share)} of the arithmetic"


def arithmetic_share(view: View, point: Point) -> float | None:
    """The share of the arithmetic's peak that a case uses: measured peaks, or published ones; None without either."""
    flops: Mapping[str, int] = point.record.work["flops"]
    measured = view.run.ceilings.arithmetic_seconds(flops) if view.run.ceilings else None
    if measured:
        return measured / point.seconds
    peaks = {pipe: peak.value for pipe in flops if (peak := view.run.published(pipe))}
    if not flops or peaks.keys() != flops.keys():
        return None
    return sum(count / peaks[pipe] for pipe, count in flops.items()) / point.seconds


def share_text(share: float) -> str:
    """`0.3%`, `42%`: below 10% with a decimal, so that little does not become nothing."""
    return percent(share, 1 if share < 0.1 else 0)


# ---- can it be trusted?


def _trust(view: View) -> Tile:
    against = [*doubts(view)]
    if against:
        return Tile(question="Trust", answer="LOW", because="; ".join(against), tone="bad")
    reasons = ["no result is wrong or impossibly fast"]
    if accuracy := view.accuracy:
        made = "with the roof read between the samples" if view.paired else "made before measuring"
        reasons.append(f"predictions {made} miss by {percent(accuracy.median, 1)} in the median{view.accuracy_of}")
    noisy = "no time is noisy" if not view.noisy else f"{percent(view.noisy)} of the times are noisy"
    return Tile(question="Trust", answer="HIGH", because="; ".join([*reasons, noisy]), tone="good")


def doubts(view: View) -> list[str]:
    """Everything that speaks against the numbers of a run, the most important first."""
    if not view.points:
        return ["nothing was timed"]
    records = view.run.records
    found = ["the machine was busy"] if banner(view.run) else []
    if view.run.ceilings is None:
        found.append("no read was measured, so no roof is known")
    for status, words in (("wrong", "gave wrong results"), ("failed", "failed"), ("timeout", "did not end")):
        if count := sum(r.status == status and (r.ours or status == "wrong") for r in records):
            found.append(f"{count} case{'s' * (count > 1)} {words}")
    if count := sum("impossible" in r.flags for r in records):
        found.append(f"{count} time{'s are' if count > 1 else ' is'} impossibly fast")
    disturbed = ("disturbed", "were taken while others used the machine")
    for flag, words in (("noisy", "are noisy"), disturbed, ("throttled", "were taken at lowered clocks")):
        share = flagged_share(view, flag)
        if share > MANY:
            found.append(f"{percent(share)} of the times {words}")
    accuracy = view.accuracy
    if accuracy and accuracy.median > MISSED:
        found.append(f"predictions miss by {percent(accuracy.median)} in the median")
    if not view.run.complete:
        found.append("the run stopped before its end")
    return found


def flagged_share(view: View, flag: str) -> float:
    return sum(flag in p.record.flags for p in view.points) / len(view.points) if view.points else 0.0
