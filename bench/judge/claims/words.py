"""Verdicts as text: a sentence for a reader outside the field, one claim in full, and a table of all claims."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from textwrap import shorten
from typing import Any, get_args

from bench.judge.claims.base import SOURCES, Comparison, Published, Status, Verdict
from bench.judge.claims.crossings import crossings
from bench.judge.claims.settings import phrase
from bench.judge.claims.settle import by_number, predictions_beside
from bench.units import brief, decimals, si

PREFIXED = ("B", "B/s", "FLOP/s", "bit/s", "s")
SIGNS = ("$", "", "x")
"""Units that stand at the number without a space. A share has no unit and is written as a percentage."""


def amount(value: float, unit: str, write: Callable[[float], str] = brief) -> str:
    """`41.8 ms`, `2.5 GB`, `$0.45`, `23%` for a share (no unit), `295 FLOP/B`, `1 request`. Open ends are `∞`."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if unit == "$":
        return f"${value:,.2f}"
    if unit == "":
        return f"{write(100 * value)}%"
    if unit == "x":
        return f"{write(value)}x"
    number, prefixed = _split(value, unit, write)
    return f"{number} {'request' if (number, prefixed) == ('1', 'requests') else prefixed}"


def _split(value: float, unit: str, write: Callable[[float], str] = brief) -> tuple[str, str]:
    """`("41.8", "ms")`: the number, and its unit with a prefix, for a unit that is not one of `SIGNS`."""
    text = si(value, unit, write) if unit in PREFIXED else f"{write(value)} {unit}"
    number, _, prefixed = text.partition(" ")
    return number, prefixed


def between(low: float, high: float, unit: str) -> str:
    """`1 to 59 requests`, `1 µs to 1 ms`, `2x to 4x`, or one amount if both ends read alike."""
    first, last = amount(low, unit), amount(high, unit)
    if first == last:
        return first
    if unit not in SIGNS and math.isfinite(low) and math.isfinite(high):
        number, prefixed = _split(low, unit)
        if prefixed == _split(high, unit)[1]:
            return f"{number} to {last}"
    return f"{first} to {last}"


def published_text(published: Published) -> str:
    if published.low == published.high:
        return amount(published.low, published.unit)
    if math.isinf(published.high):
        return f"at least {amount(published.low, published.unit)}"
    if published.low == 0:
        return f"at most {amount(published.high, published.unit)}"
    return between(published.low, published.high, published.unit)


BOUND_WORDS = {"": "", "upper": "at most ", "lower": "at least "}

MOST_MORE_DIGITS = 5
"""How many digits are added to the usual three to tell two amounts apart."""


def finer(more: int) -> Callable[[float], str]:
    """`brief` with this many digits more."""
    return lambda value: f"{value:,.{decimals(value) + more}f}" if more else brief(value)


def value_text(c: Comparison) -> str:
    """`41.8 ms`, `at most 6.35x`. A value that misses gets more digits if three would show the published number."""
    unit, text = c.published.unit, ""
    for write in map(finer, range(MOST_MORE_DIGITS + 1)):
        text = amount(c.value, unit, write)
        ends = [amount(end, unit, write) for end in (c.published.low, c.published.high)]
        if c.holds is not False or text not in ends:
            break
    return BOUND_WORDS[c.bound] + text


def span(comparisons: Sequence[Comparison]) -> str:
    """The values of one published number, from the least to the greatest."""
    unit = comparisons[0].published.unit
    bounds = {c.bound for c in comparisons}
    bound = BOUND_WORDS[bounds.pop()] if len(bounds) == 1 else ""
    return bound + between(min(c.value for c in comparisons), max(c.value for c in comparisons), unit)


def per_number(comparisons: Sequence[Comparison]) -> str:
    """`41.6 ms; 24 token/s`: the span of each published number, in the order of the numbers."""
    return "; ".join(span(group) for group in by_number(comparisons).values())


def margin(c: Comparison) -> float:
    """How far the value lies outside the published range, relative to the end that it misses: -0.13 is 13% below.

    Infinite if that end is 0.
    """
    low, high = c.published.low, c.published.high
    if low <= c.value <= high:
        return 0.0
    end = low if c.value < low else high
    return (c.value - end) / abs(end) if end else math.copysign(math.inf, c.value - end)


def nearest(comparisons: Sequence[Comparison]) -> Comparison:
    """The value closest to what was published."""
    return min(comparisons, key=lambda c: abs(margin(c)))


def miss(c: Comparison) -> str:
    """`13 requests, 13.3% below it; the tolerance is 10%`."""
    far = margin(c)
    side = "above it" if far > 0 else "below it"
    by = f"{amount(abs(far), '')} {side}" if math.isfinite(far) else side
    return f"{value_text(c)}, {by}; the tolerance is {amount(c.published.tolerance, '')}"


def nearest_setting(comparisons: Sequence[Comparison]) -> Comparison:
    """The worst miss of the setting whose worst miss is the smallest."""
    worst: dict[frozenset[tuple[str, str]], Comparison] = {}
    for c in comparisons:
        known = worst.get(c.setting_key)
        if c.holds is False and (known is None or abs(margin(c)) > abs(margin(known))):
            worst[c.setting_key] = c
    return nearest(list(worst.values()))


LEADS = ("on ", "where ", "without ", "by ", "no setting ", "a lower bound ", "an upper bound ")
"""A condition that begins so is said without a `for`."""


def in_words(condition: str) -> str:
    """A condition whose blocks are joined by words: `for batch 1, and on NVIDIA H200 SXM`."""
    blocks = [block.removeprefix("and ") for block in condition.split(" | ")]
    return ", and ".join(block if block.startswith(LEADS) else f"for {block}" for block in blocks)


def _one_crossing(verdict: Verdict) -> str:
    """` The time per token passes the published number near 2,900 tokens.`, if there is one such place to tell."""
    found = crossings(verdict.predicted)
    return f" The {found[0]}." if len(found) == 1 else ""


ON_THIS_CPU = " on this CPU"


def sentence(verdict: Verdict) -> str:
    """What the verdict means, for someone outside the field."""
    claim = verdict.claim.plain
    if verdict.status == "NOT MEASURED":
        expected = {
            "HOLDS": "by calculation it holds",
            "FAILS": "by calculation it does not hold",
            "DEPENDS": f"by calculation it holds only {in_words(verdict.predicted_condition)}",
            None: "no calculation decides it",
        }[verdict.predicted_status]
        crossing = _one_crossing(verdict) if verdict.predicted_status == "DEPENDS" else ""
        return f"{claim}: not measured here ({verdict.reason}); {expected}.{crossing}"
    shown = verdict.evidence or verdict.predicted
    how = {"MEASURED": "measured", "PUBLISHED": "measured by others"}.get(verdict.by, "calculated")
    how += ON_THIS_CPU if verdict.on_this_cpu else ""
    if verdict.status == "HOLDS":
        return f"{claim}: yes, {how} {per_number(shown)}."
    if verdict.status == "DEPENDS":
        by = "on this CPU " if verdict.on_this_cpu else "" if verdict.evidence else "by calculation "
        return f"{claim}: {by}it holds only {in_words(verdict.condition)}.{_one_crossing(verdict)}"
    judged = tuple(shown)
    if not verdict.on_this_cpu:
        judged += tuple(predictions_beside(verdict.predicted, shown))
    fitting = {c.published.what for c in judged if c.holds}
    off = [c for c in shown if c.holds is False and c.published.what not in fitting]
    close = nearest(off) if off else nearest_setting(judged)
    published = f"Published for {close.published.what}: {published_text(close.published)}."
    if off:
        value = "value that others measured" if verdict.by == "PUBLISHED" else f"{how} value"
        return f"{claim}: no. {published} The closest {value} is {miss(close)}."
    where = ", ".join(phrase(factor, [value]) for factor, value in close.setting.items())
    return (
        f"{claim}: no. Each of its numbers fits at some setting, but no setting fits all of them. {published} "
        f"At the nearest setting{f' ({where})' if where else ''} the value is {miss(close)}."
    )


def status_text(verdict: Verdict) -> str:
    """`NOT MEASURED (predicted: HOLDS)`, or the status alone."""
    if verdict.status == "NOT MEASURED" and verdict.predicted_status:
        return f"{verdict.status} (predicted: {verdict.predicted_status})"
    return verdict.status


WIDEST = 160
"""Characters of a condition in the table. `explain` shows it whole."""

HEADERS = ("id", "claim", "published", "predicted", "measured", "verdict", "condition or reason")


def evidence_text(verdict: Verdict) -> str:
    """`PUBLISHED: 34 rows of sglang, vllm`, or the kind of evidence alone; empty where nothing decides."""
    if verdict.by != "PUBLISHED":
        return verdict.by + (ON_THIS_CPU if verdict.on_this_cpu else "")
    names = ", ".join(dict.fromkeys(rows.software for rows in verdict.rows))
    count = sum(rows.count for rows in verdict.rows)
    return f"PUBLISHED: {count:,} row{'s' * (count != 1)} of {names}"


def main_table(verdicts: Sequence[Verdict]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers, and one row for each claim."""
    rows: list[tuple[str, ...]] = [
        (
            v.claim.id,
            v.claim.text,
            "; ".join(f"{p.what}: {published_text(p)}" for p in v.claim.published) or "-",
            per_number(v.predicted) or "-",
            per_number(v.evidence) or "-",
            status_text(v) + (f" ({evidence_text(v)})" if v.by else ""),
            shorten(v.condition or v.reason, WIDEST, placeholder=f" ... (--explain {v.claim.id})"),
        )
        for v in verdicts
    ]
    return HEADERS, rows


def short_status(verdict: Verdict) -> str:
    """The verdict in at most 25 characters: `HOLDS`, `NOT MEASURED, model HOLDS`."""
    if verdict.status == "NOT MEASURED" and verdict.predicted_status:
        return f"{verdict.status}, model {verdict.predicted_status}"
    if verdict.on_this_cpu:
        return f"{verdict.status}{ON_THIS_CPU}"
    return f"{verdict.status} ({verdict.by.lower()})" if verdict.by else verdict.status


def line(verdict: Verdict) -> tuple[str, str, str]:
    """The id, the verdict, and the claim with the values that decide or that are predicted."""
    shown = verdict.evidence or verdict.predicted
    values = f" ({'found' if verdict.evidence else 'predicted'} {per_number(shown)})" if shown else ""
    return verdict.claim.id, short_status(verdict), verdict.claim.text + values


def tally(verdicts: Sequence[Verdict]) -> str:
    """`Of 45 published claims: 3 HOLDS, 11 DEPENDS, 2 FAILS, 29 NOT MEASURED (predicted: 12 HOLDS, ...).`"""
    counts = Counter(v.status for v in verdicts)
    open_ones = Counter(v.predicted_status or "nothing" for v in verdicts if v.status == "NOT MEASURED")
    parts = [f"{counts[status]} {status}" for status in get_args(Status) if counts[status]]
    if open_ones:
        order = [*get_args(Status), "nothing"]
        parts[-1] += f" (predicted: {', '.join(f'{open_ones[s]} {s}' for s in order if open_ones[s])})"
    return f"Of {len(verdicts)} published claims: {', '.join(parts)}."


OURS = "; the text says it in words, and this project chose the number"

MARKS = {True: "fits", False: "off", None: "left open"}


def setting_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """One line for each setting, with each number's value and whether it fits; then how the values were found."""
    settings: dict[str, list[str]] = {}
    for c in comparisons:
        where = ", ".join(f"{name} {value}" for name, value in c.setting.items()) + ("" if c.on_gpu else " [CPU]")
        value = f"{c.published.what} {value_text(c)} ({MARKS[c.holds]})"
        settings.setdefault(where.strip(), []).append(value)
    lines = [f"  {where}: {'; '.join(v)}" if where else f"  {'; '.join(v)}" for where, v in settings.items()]
    for how in dict.fromkeys(c.how for c in comparisons):
        lines.append(f"  how: {how}")
    return lines


def explain(verdict: Verdict) -> str:
    """One claim in full: what was published, and each predicted and measured value with its origin."""
    claim = verdict.claim
    lines = [
        f"{claim.id}  {status_text(verdict)}",
        sentence(verdict),
        "",
        f"Claim: {claim.text}",
        *(f"Source: [{letter}] {SOURCES[letter]}" for letter in claim.source.split()),
        f"Setting: {claim.setting}",
        "Published:",
        *(
            f"  {p.what}: {published_text(p)} (tolerance {100 * p.tolerance:.0f}%{OURS if p.ours else ''})"
            for p in claim.published
        ),
    ]
    if verdict.condition:
        lines.append(f"Condition: {verdict.condition}")
    lines += [f"Crossing: {crossed}" for crossed in crossings(verdict.predicted)]
    undecided = "left open by bounds" if verdict.predicted else f"nothing ({verdict.gap})"
    lines.append(f"Predicted: {verdict.predicted_status or undecided}")
    if verdict.predicted and verdict.gap:
        lines.append(f"  not predicted: {verdict.gap}")
    if verdict.predicted_condition and verdict.predicted_condition != verdict.condition:
        lines.append(f"  condition: {verdict.predicted_condition}")
    lines += setting_lines(verdict.predicted)
    if verdict.measured:
        lines.append("Measured:")
        lines += setting_lines(verdict.measured)
        ids = dict.fromkeys(i for c in verdict.measured for i in c.records)
        for i in ids:
            flags = f" [{', '.join(i.flags)}]" if i.flags else ""
            lines.append(f"  from {i.op}/{i.impl} {i.case_id} of run {i.run_id or '?'}{flags}")
    if verdict.published:
        lines.append("Published by others:")
        lines += setting_lines(verdict.published)
        for rows in verdict.rows:
            of = f"{rows.software} {rows.version} on {rows.part}"
            lines.append(f"  from {rows.count:,} rows of {of} in {rows.source}")
    if verdict.by:
        lines.append(f"Evidence: {verdict.by}{ON_THIS_CPU if verdict.on_this_cpu else ''}")
    if verdict.reason:
        lines.append(f"Not measured: {verdict.reason}")
    return "\n".join(lines)


def finite(value: float) -> float | None:
    """None for an infinite value, which JSON does not have."""
    return value if math.isfinite(value) else None


def _comparison(c: Comparison) -> dict[str, Any]:
    return {
        "what": c.published.what,
        "value": finite(c.value),
        "unit": c.published.unit,
        "bound": c.bound,
        "fits": c.holds,
        "setting": c.setting,
        "how": c.how,
        "on_gpu": c.on_gpu,
        "records": [asdict(i) for i in c.records],
        "rows": [asdict(i) for i in c.rows],
    }


def as_dict(verdict: Verdict) -> dict[str, Any]:
    """The whole verdict for JSON, in SI units."""
    claim = verdict.claim
    return {
        "id": claim.id,
        "claim": claim.text,
        "source": [
            {"letter": letter, "name": SOURCES[letter].title, **asdict(SOURCES[letter])}
            for letter in claim.source.split()
        ],
        "how": claim.how.split(),
        "setting": claim.setting,
        "published": [
            {"what": p.what, "low": p.low, "high": finite(p.high), "unit": p.unit, "tolerance": p.tolerance}
            for p in claim.published
        ],
        "status": verdict.status,
        "evidence": verdict.by,
        "on_this_cpu": verdict.on_this_cpu,
        "rows": [asdict(rows) for rows in verdict.rows],
        "condition": verdict.condition,
        "reason": verdict.reason,
        "crossings": crossings(verdict.predicted),
        "predicted_status": verdict.predicted_status,
        "predicted_condition": verdict.predicted_condition,
        "not_predicted": verdict.gap,
        "predicted": [_comparison(c) for c in verdict.predicted],
        "measured": None if verdict.measured is None else [_comparison(c) for c in verdict.measured],
        "published_by_others": [_comparison(c) for c in verdict.published],
        "sentence": sentence(verdict),
    }
