"""The claims as the page shows them: grouped by verdict, each with its sentence, numbers, source and evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.judge.claims import Verdict, sentence, status_text
from bench.judge.claims.base import SOURCES, Comparison, Status
from bench.judge.claims.crossings import crossings
from bench.judge.claims.settle import by_number
from bench.judge.claims.words import amount, evidence_text, published_text, setting_lines, span
from bench.judge.view import Table

ORDER: tuple[Status, ...] = ("FAILS", "DEPENDS", "HOLDS", "NOT MEASURED")
"""What a reader wants to know first comes first."""


@dataclass(frozen=True, kw_only=True)
class ToldClaim:
    """One claim as text."""

    id: str
    status: Status
    label: str
    """`HOLDS (MEASURED)`: the verdict and what it rests on; or `NOT MEASURED (predicted: HOLDS)`."""
    text: str
    sentence: str
    numbers: Table
    """One row for each published number: what it is, its value and tolerance, the predicted and measured values."""
    facts: tuple[tuple[str, str], ...]
    """Names and texts: source, setting, condition, evidence."""
    grid: str
    """Every predicted and measured value with its setting, one line each."""


def told(verdict: Verdict) -> ToldClaim:
    claim = verdict.claim
    facts = (
        ("holds for", verdict.condition),
        ("not measured because", verdict.reason),
        ("by the model it holds for", verdict.predicted_condition if verdict.status == "NOT MEASURED" else ""),
        ("where it changes", "; ".join(crossings(verdict.predicted))),
        ("assumed and varied", claim.setting),
        ("source", "; ".join(f"[{letter}] {SOURCES[letter]}" for letter in claim.source.split())),
        ("evidence", evidence(verdict)),
    )
    lines = ["predicted:", *setting_lines(verdict.predicted)] if verdict.predicted else []
    lines += ["measured:", *setting_lines(verdict.measured)] if verdict.measured else []
    lines += ["published by others:", *setting_lines(verdict.published)] if verdict.published else []
    return ToldClaim(
        id=claim.id,
        status=verdict.status,
        label=status_text(verdict) + (f" ({evidence_text(verdict)})" if verdict.by else ""),
        text=claim.text,
        sentence=sentence(verdict),
        numbers=numbers(verdict),
        facts=tuple((name, text) for name, text in facts if text),
        grid="\n".join(lines),
    )


def numbers(verdict: Verdict) -> Table:
    """One row for each published number."""
    predicted, found = by_number(verdict.predicted), by_number(verdict.evidence or verdict.measured or ())
    rows = []
    for p in verdict.claim.published:
        chosen = " (chosen here: the text says it in words)" if p.ours else ""
        mine = [span(group.get(p.what, [])) if group.get(p.what) else "" for group in (predicted, found)]
        rows.append((p.what, published_text(p), amount(p.tolerance, "") + chosen, *mine))
    return Table(headers=("number", "published", "tolerance", "predicted", "measured"), rows=rows)


def evidence(verdict: Verdict) -> str:
    """Whose values judge: records of this run, rows that others published, or the model alone."""

    def names(found: Sequence[Comparison]) -> str:
        ids = dict.fromkeys(f"{i.op} {i.case_id} ({i.impl})" for c in found for i in c.records)
        more = f" and {len(ids) - 6} more" if len(ids) > 6 else ""
        return "; ".join(list(ids)[:6]) + more

    if verdict.by == "PUBLISHED":
        found = [
            f"{r.count:,} row{'s' * (r.count != 1)} of {r.software} {r.version} on {r.part}, {r.source}"
            for r in verdict.rows
        ]
        return f"measured by others: {'; '.join(found)}"
    if verdict.evidence:
        return f"measured in this run: {names(verdict.evidence)}"
    if verdict.measured:
        return f"measured on a CPU, which judges nothing: {names(verdict.measured)}"
    return "the model alone" if verdict.predicted else "none"


def grouped(verdicts: Sequence[Verdict]) -> list[tuple[Status, list[ToldClaim]]]:
    """The claims of each verdict that occurs."""
    groups = [(status, [told(v) for v in verdicts if v.status == status]) for status in ORDER]
    return [(status, found) for status, found in groups if found]
