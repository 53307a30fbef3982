"""Memory-bound, shown by intervention: what the time of a kernel does when only its FLOPs, or only its bytes, change.

Two cases that differ in one field are an intervention. More query heads over the same KV cache, or a larger batch over
the same weights, multiply the FLOPs at the same bytes; fewer KV heads or a smaller type of cache or weights divide the
bytes at the same FLOPs. Nobody lists these pairs: they are found among the cases of a run, for every op alike.

The slope of log t over log FLOP at fixed bytes is the elasticity e_f, over log bytes at fixed FLOPs e_b: 0 where time
does not care, 1 where it follows. A smaller type also changes how values are unpacked, which is no FLOP of the op:
where that costs time, e_b falls below 1.

A prediction says beforehand which cases are clearly bound by memory and which clearly by arithmetic; only those are
asked, each kind on its own, since around the ridge both limits show.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.judge import elasticity
from bench.judge.elasticity import NotIdentified, Point, near
from bench.records import Record
from bench.stats import RESAMPLES, Interval

LABELS = ("model", "layer")
"""Fields that say where a shape comes from and change nothing about it."""

CHANGED = 1.5
"""The least factor that counts as an intervention, as `elasticity.fit` asks for."""

LEAK = 0.1
"""What is held may vary by at most this power of what is changed: queries beside a cache, activations beside weights.

If time followed it alone, the elasticity would still come out below `LEAK`.
"""

CLEAR = 2.0
"""The largest term of a prediction must exceed every other by this factor: B <= 64 or B >= 512 for a bf16 GEMV on an
H100, whose ridge is near 295."""

Changed = Literal["FLOPs", "bytes", "both", "FLOPs and bytes"]
"""`both`: one field that changes them in proportion. `FLOPs and bytes`: several interventions fitted together."""

Verdict = Literal["memory", "compute", "not memory", "not compute", "neither"]


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """Cases of one implementation that are alike but for what is `varied`, and how their time answers.

    `verdict`: what e_b and e_f together say; FLOPs alone can only show `compute` or `not compute`, bytes alone
    `memory` or `not memory`. `neither` where an interval fits no such answer.
    """

    op: str
    impl: str
    ours: bool
    changed: Changed
    varied: str
    """The field and its values in order of the work: `H_q 8, 16, 32, 64`; of several, all."""
    fixed: str
    """The id of the case with the least work, which has everything that does not vary."""
    expected: str
    """What the predictions say bounds these cases: `memory`, a pipe, `launch`; empty without predictions."""
    e_bytes: Interval | None
    e_flops: Interval | None
    verdict: Verdict
    case_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Records that differ in one field only, in order of bytes and FLOPs."""

    field: str
    changed: Changed
    records: tuple[Record, ...]

    @property
    def varied(self) -> str:
        return f"{self.field} {', '.join(str(r.case[self.field]) or 'none' for r in self.records)}"


def interventions(records: Iterable[Record]) -> list[Intervention]:
    """All interventions of a run: those of several kinds fitted together first, then each on its own."""
    found: list[Intervention] = []
    for (op, impl, expected), alike in by(usable(records), lambda r: (r.op, r.impl, regime(r))).items():
        if expected is None:
            continue
        groups = one_field_groups(alike)
        base = {"op": op, "impl": impl, "ours": alike[0].ours, "expected": expected}
        found += [joint for family in families(groups) if (joint := fitted_together(family, base))]
        found += [alone(group, base) for group in groups if group.changed in ("FLOPs", "bytes")]
    return sorted(found, key=lambda i: (i.op, not i.ours, i.impl, i.changed != "FLOPs and bytes", i.fixed))


def usable(records: Iterable[Record]) -> list[Record]:
    """Times that can be trusted, of cases with both bytes and FLOPs, in the first repetition."""
    return [r for r in records if r.is_trusted and len(r.samples_s) > 1 and r.bytes and r.flops and not r.repeat]


def regime(record: Record) -> str | None:
    """The term that clearly bounds the case by its prediction; "" without a prediction, None if two are close."""
    prediction = record.prediction.get("measured") or record.prediction.get("datasheet")
    if not prediction:
        return ""
    terms = sorted(prediction["terms"].items(), key=lambda term: -term[1])
    return terms[0][0] if len(terms) < 2 or terms[0][1] >= CLEAR * terms[1][1] else None


def by(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups


def one_field_groups(records: Sequence[Record]) -> list[Group]:
    """All sets of records that differ in one field, and by it in bytes, FLOPs or both in proportion."""
    found = []
    fields = dict.fromkeys(name for r in records for name in r.case if name not in LABELS)
    for field in fields:

        def rest(record: Record, field: str = field) -> Any:
            others = (item for item in sorted(record.case.items()) if item[0] not in (field, *LABELS))
            return tuple((name, str(value)) for name, value in others), tuple(sorted(record.work["flops"]))

        for alike in by((r for r in records if field in r.case), rest).values():
            if clean := longest_clean(sorted(alike, key=lambda r: (r.flops, r.bytes))):
                changed, kept = clean
                found.append(Group(field=field, changed=changed, records=kept))
    return found


def longest_clean(records: Sequence[Record]) -> tuple[Changed, tuple[Record, ...]] | None:
    """The most records in a row that are an intervention: at a large batch the activations' bytes begin to count."""
    for count in range(len(records), 1, -1):
        for first in range(len(records) - count + 1):
            row = tuple(records[first : first + count])
            if changed := change(row):
                return changed, row
    return None


def change(records: Sequence[Record]) -> Changed | None:
    """What varies over the records; None if nothing does by enough, or not cleanly."""
    size, flops, ratio = (
        math.log(max(values) / min(values))
        for values in ([r.bytes for r in records], [r.flops for r in records], [r.flops / r.bytes for r in records])
    )
    least = math.log(CHANGED)
    if flops >= least and size <= LEAK * flops:
        return "FLOPs"
    if size >= least and flops <= LEAK * size:
        return "bytes"
    if size >= least and ratio <= LEAK * size:
        return "both"
    return None


def families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that share a record, directly or through others, with both FLOPs and bytes among their changes.

    A group of kind `both` joins only where bytes are not changed otherwise: FLOPs that cost nothing and a time in
    proportion to both together leave the bytes.
    """
    found = connected([g for g in groups if g.changed in ("FLOPs", "bytes")])
    families = []
    for family in found:
        kinds = {g.changed for g in family}
        if kinds == {"FLOPs"}:
            mine = {r.case_id for g in family for r in g.records}
            family += [g for g in groups if g.changed == "both" and mine & {r.case_id for r in g.records}]
            kinds = {g.changed for g in family}
        if len(kinds) > 1:
            families.append(family)
    return families


def connected(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups in components that have no record in common."""
    components: list[tuple[set[str], list[Group]]] = []
    for group in groups:
        ids, members = {r.case_id for r in group.records}, [group]
        apart = []
        for others in components:
            if ids & others[0]:
                ids, members = ids | others[0], others[1] + members
            else:
                apart.append(others)
        components = [*apart, (ids, members)]
    return [members for _, members in components]


def fitted_together(family: Sequence[Group], base: dict[str, Any]) -> Intervention | None:
    """Both elasticities from all records of a family; None where `elasticity.fit` cannot tell them apart."""
    records = list({r.case_id: r for g in family for r in g.records}.values())
    records.sort(key=lambda r: (r.bytes, r.flops))
    try:
        result = elasticity.fit([point(r) for r in records])
    except NotIdentified:
        return None
    fields = dict.fromkeys(group.field for group in family)
    return Intervention(
        **base,
        changed="FLOPs and bytes",
        varied="; ".join(f"{field} {', '.join(values_of(field, records))}" for field in fields),
        fixed=records[0].case_id,
        e_bytes=result.bytes,
        e_flops=result.flops,
        verdict=result.bound,
        case_ids=tuple(r.case_id for r in records),
    )


def values_of(field: str, records: Sequence[Record]) -> list[str]:
    """The distinct values of a field: numbers ascending, then words."""
    values = dict.fromkeys(r.case[field] for r in records)
    return [str(v) or "none" for v in sorted(values, key=lambda v: (isinstance(v, str), v))]


def alone(group: Group, base: dict[str, Any]) -> Intervention:
    """One elasticity, the other quantity held."""
    flops_change = group.changed == "FLOPs"
    slope = elasticity_of([r.flops if flops_change else r.bytes for r in group.records], group.records)
    verdict: Verdict = "neither"
    if near(slope, 1.0):
        verdict = "compute" if flops_change else "memory"
    elif near(slope, 0.0):
        verdict = "not compute" if flops_change else "not memory"
    return Intervention(
        **base,
        changed=group.changed,
        varied=group.varied,
        fixed=group.records[0].case_id,
        e_bytes=None if flops_change else slope,
        e_flops=slope if flops_change else None,
        verdict=verdict,
        case_ids=tuple(r.case_id for r in group.records),
    )


def point(record: Record) -> Point:
    return Point(bytes=record.bytes, flops=record.flops, samples_s=record.samples_s)


def elasticity_of(amounts: Sequence[int], records: Sequence[Record]) -> Interval:
    """Least-squares slope of log median time over log amount; the interval by resampling every record's samples."""
    logs = np.log(np.asarray(amounts, dtype=float))
    weights = (logs - logs.mean()) / ((logs - logs.mean()) ** 2).sum()
    rng = np.random.default_rng(0)
    resampled = np.stack(
        [np.median(rng.choice(r.samples_s, size=(RESAMPLES, len(r.samples_s))), axis=1) for r in records]
    )
    low, high = np.quantile(weights @ np.log(resampled), [0.025, 0.975])
    best = weights @ np.log([np.median(r.samples_s) for r in records])
    return Interval(low=float(low), median=float(best), high=float(high))
