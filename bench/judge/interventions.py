"""Memory-bound or not, shown by intervention: how a kernel's time responds when only FLOPs or only bytes change.

Two cases that differ in one field are an intervention. More query heads over the same KV cache, or a larger batch over
the same weights, multiply the FLOPs and keep the bytes. Fewer KV heads, or a smaller type for the cache or the weights,
divide the bytes and keep the FLOPs. Nobody lists these pairs: they are found among the cases of a run, in the same way
for every op.

The elasticity e_f is the slope of log t over log FLOP at fixed bytes, and e_b is the slope over log bytes at fixed
FLOPs. An elasticity is 0 where time does not respond and 1 where time is proportional. A smaller type also changes how
values are unpacked, which is no FLOP of the op. Where unpacking costs time, e_b falls below 1.

A prediction says beforehand which cases are clearly bound by their bytes and which clearly by something else. Cases of
one kind are used together, and cases near the ridge are left out, because both limits show in them. `left_out` counts
the times that no intervention uses, and says why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.ceilings import usual_read
from bench.judge import elasticity
from bench.judge.elasticity import NotIdentified, Point, near
from bench.records import Record, comparable, comparable_medians
from bench.stats import Interval, bounds

LABELS = ("model", "layer")
"""Fields that say where a shape comes from. They change nothing about the work."""

CHANGED = 1.5
"""The smallest factor that counts as an intervention; `elasticity.fit` asks for the same."""

MAX_CONFOUNDING = 0.1
"""The quantity that is held may vary by at most this power of the quantity that is changed.

Queries beside a cache, or activations beside weights, vary a little. Even if time followed them alone, the elasticity
would be at most `MAX_CONFOUNDING`.
"""

CLEAR = 2.0
"""A prediction is clear if its largest term is at least this factor above every other: B <= 64 or B >= 512 for a bf16
GEMV on an H100, whose ridge is near B = 295."""

CLEAR_OF_CORE = 1.5
"""The same where the time of a host's instructions was measured, and not derived from a peak that no kernel reaches. A
stream whose arithmetic takes two thirds of the time of its bytes was at most a tenth slower than one without any
(`stream` fma_read on a Zen 3 core)."""

Changed = Literal["FLOPs", "bytes", "both", "FLOPs and bytes"]
"""`both`: one field changes them in proportion. `FLOPs and bytes`: several interventions are fitted together."""

Verdict = Literal["memory", "compute", "not memory", "not compute", "neither"]


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """Cases of one implementation that differ only in the fields that `varied` names, and how their time responds."""

    op: str
    impl: str
    ours: bool
    changed: Changed
    varied: str
    """Each field that varies with its values, in the order of the work: `H_q 8, 16, 32, 64`."""
    fixed: str
    """The id of the case with the least work. It shows the fields that do not vary."""
    expected: str
    """What bounds these cases by their predictions: `memory` (or the L2), a pipe, `issue`, `link`, `chain`, `launch`;
    empty without predictions."""
    e_bytes: Interval | None
    e_flops: Interval | None
    verdict: Verdict
    """What the elasticities say together. Where only FLOPs change, they can only show `compute` or `not compute`; where
    only bytes change, only `memory` or `not memory`. `neither`: the intervals fit no answer."""
    case_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Records that differ in one field only, in the order of FLOPs and bytes."""

    field: str
    changed: Changed
    records: tuple[Record, ...]

    @property
    def varied(self) -> str:
        return f"{self.field} {', '.join(str(r.case[self.field]) or 'none' for r in self.records)}"


def interventions(records: Iterable[Record]) -> list[Intervention]:
    """All interventions of a run. Those fitted together come before those of one field."""
    found: list[Intervention] = []
    records = list(records)
    bounds = Bounds.of(records)
    for (op, impl, expected), alike in by(usable(records), lambda r: (r.op, r.impl, bounds.regime(r))).items():
        if expected is None:
            continue
        groups = one_field_groups(alike)
        base = {"op": op, "impl": impl, "ours": alike[0].ours, "expected": expected}
        found += [joint for family in families(groups) if (joint := fitted_together(family, base))]
        found += [alone(group, base) for group in groups if group.changed in ("FLOPs", "bytes")]
    return sorted(found, key=lambda i: (i.op, not i.ours, i.impl, i.changed != "FLOPs and bytes", i.fixed))


def usable(records: Iterable[Record]) -> list[Record]:
    """The trusted records of the first repetition whose cases have both bytes and FLOPs."""
    return [r for r in records if r.is_trusted and len(r.samples_s) > 1 and r.bytes and r.flops and not r.repeat]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What bounds the cases of a run, by their predictions."""

    usual: float = 0.0
    """Seconds of the read of the roof in the median of the run; 0 where none was taken around samples."""

    @classmethod
    def of(cls, records: Iterable[Record]) -> Bounds:
        return cls(usual=usual_read(records))

    def regime(self, record: Record) -> str | None:
        """What clearly bounds the case; "" without a prediction; None if two terms are close."""
        terms = self.ranked(record)
        if not terms:
            return ""
        return terms[0][0] if is_clear(terms) else None

    def ranked(self, record: Record) -> list[tuple[str, float]]:
        """The terms of the prediction, the largest first.

        Bytes are bytes, whether the memory or the L2 moves them: time follows both alike. So the larger of these two
        terms stands for both, as `memory`. Where the time of a host's instructions was measured, it stands for all of
        its arithmetic, and the bytes take as long as in the seconds of the record.
        """
        prediction = record.prediction.get("measured") or record.prediction.get("datasheet")
        terms = dict(prediction["terms"]) if prediction else {}
        if moved := [terms.pop(name) for name in ("memory", "l2") if name in terms]:
            terms["memory"] = max(moved)
        if record.core_s and "memory" in terms:
            slower = record.read_s / self.usual if record.read_s and self.usual else 1.0
            terms = {"memory": slower * terms["memory"], "core": record.core_s}
        return sorted(terms.items(), key=lambda term: -term[1])


def is_clear(terms: Sequence[tuple[str, float]]) -> bool:
    """Whether the largest term is far above the next."""
    measured = any(name == "core" for name, _ in terms)
    return len(terms) < 2 or terms[0][1] >= (CLEAR_OF_CORE if measured else CLEAR) * terms[1][1]


def left_out(records: Sequence[Record], found: Iterable[Intervention]) -> dict[str, int]:
    """How many times take part in none of the interventions `found`, by reason, the most frequent first."""
    used = {(i.op, i.impl, case_id) for i in found for case_id in i.case_ids}
    reasons: Counter[str] = Counter()
    bounds = Bounds.of(records)
    for record in records:
        terms = bounds.ranked(record)
        if record.key in used or record.repeat:
            continue
        if not usable([record]):
            reasons["it may be too short, has one sample, or belongs to a case without FLOPs"] += 1
        elif terms and not is_clear(terms):
            first, second = sorted(name for name, _ in terms[:2])
            reasons[f"{first} and {second} take about as long by the prediction"] += 1
        else:
            reasons["no other case differs in one field that changes bytes or FLOPs alone"] += 1
    return dict(reasons.most_common())


def by(records: Iterable[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups


def one_field_groups(records: Sequence[Record]) -> list[Group]:
    """All groups of records that differ in one field, which changes bytes, FLOPs, or both in proportion."""
    found = []
    fields = dict.fromkeys(name for r in records for name in r.case if name not in LABELS)
    items = [tuple((name, str(value)) for name, value in sorted(r.case.items()) if name not in LABELS) for r in records]
    pipes = [tuple(sorted(r.work["flops"])) for r in records]
    for field in fields:
        alike: dict[Any, list[Record]] = defaultdict(list)
        for record, of_case, used in zip(records, items, pipes, strict=True):
            at = next((n for n, (name, _) in enumerate(of_case) if name == field), None)
            if at is not None:
                alike[of_case[:at] + of_case[at + 1 :], used].append(record)
        groups = [sorted(group, key=lambda r: (r.flops, r.bytes)) for group in alike.values() if len(group) > 1]
        for clean in longest_clean(groups):
            if clean:
                found.append(Group(field=field, changed=clean[0], records=clean[1]))
    return found


def longest_clean(groups: Sequence[Sequence[Record]]) -> list[tuple[Changed, tuple[Record, ...]] | None]:
    """Of each group the longest run of consecutive records that are an intervention, and what changes in it; the first
    of several.

    Not all records need to be: at a large batch, for example, the activations' bytes begin to count. Groups of one
    length are looked at together, and the longest runs are tried first: mostly a whole group is one.
    """
    found: list[tuple[Changed, tuple[Record, ...]] | None] = [None] * len(groups)
    for length in {len(group) for group in groups}:
        numbers = [number for number, group in enumerate(groups) if len(group) == length]
        amounts = np.array([[amounts_of(record) for record in groups[number]] for number in numbers], dtype=float)
        highest, lowest = doubled(amounts, np.maximum), doubled(amounts, np.minimum)
        left = np.arange(len(numbers))
        for count in range(length, 1, -1):
            kinds = changes(extremes(highest, count, left, np.maximum), extremes(lowest, count, left, np.minimum))
            some = kinds.any(axis=1)
            for row, of_row in zip(left[some], kinds[some], strict=True):
                at = int(np.argmax(of_row > 0))
                found[numbers[row]] = KINDS[of_row[at]], tuple(groups[numbers[row]][at : at + count])
            left = left[~some]
            if not len(left):
                break
    return found


def doubled(amounts: np.ndarray, extreme: np.ufunc) -> list[np.ndarray]:
    """Of each group the extremes of the runs of 1, 2, 4, 8, ... records that begin at each record."""
    found = [amounts]
    while (half := 2 ** (len(found) - 1)) < found[-1].shape[1]:
        found.append(extreme(found[-1][:, :-half], found[-1][:, half:]))
    return found


def extremes(table: Sequence[np.ndarray], count: int, rows: np.ndarray, extreme: np.ufunc) -> np.ndarray:
    """Of these groups the extremes of the runs of `count` records: two runs of `table` together, which may overlap."""
    power = count.bit_length() - 1
    runs = table[power][rows]
    beyond = count - 2**power
    return extreme(runs[:, : runs.shape[1] - beyond], runs[:, beyond:])


def amounts_of(record: Record) -> tuple[float, float, float]:
    """Bytes, FLOPs, FLOPs per byte."""
    return record.bytes, record.flops, record.flops / record.bytes


def change(records: Sequence[Record]) -> Changed | None:
    """What varies over the records."""
    amounts = np.array([amounts_of(record) for record in records], dtype=float)
    return KINDS.get(int(changes(amounts.max(axis=0), amounts.min(axis=0))))


KINDS: dict[int, Changed] = {1: "FLOPs", 2: "bytes", 3: "both"}
"""What the numbers of `changes` mean."""


def changes(highest: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """What varies, as a number: 1 FLOPs, 2 bytes, 3 both in proportion; 0 if nothing varies by enough or alone.

    The last dimension holds the extremes of bytes, of FLOPs, and of FLOPs per byte.
    """
    size, flops, ratio = np.moveaxis(np.log(highest / lowest), -1, 0)
    least = np.log(CHANGED)
    return np.select(
        [
            (flops >= least) & (size <= MAX_CONFOUNDING * flops),
            (size >= least) & (flops <= MAX_CONFOUNDING * size),
            (size >= least) & (ratio <= MAX_CONFOUNDING * size),
        ],
        [1, 2, 3],
    )


def families(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that share records, directly or through other groups, and together change both FLOPs and bytes.

    A group of kind `both` joins only where no other group changes bytes. If FLOPs alone cost no time, and time is
    proportional where both change, then the time follows the bytes. No record is in two families.
    """
    found = connected([g for g in groups if g.changed in ("FLOPs", "bytes")])
    lacking = [g for family in found if {g.changed for g in family} == {"FLOPs"} for g in family]
    ids = {r.case_id for g in lacking for r in g.records}
    both = [g for g in groups if g.changed == "both" and any(r.case_id in ids for r in g.records)]
    return [family for family in (*found, *connected([*lacking, *both])) if len({g.changed for g in family}) > 1]


def connected(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups, collected so that no record is in two collections. Each record of each group is looked at once."""
    parent = list(range(len(groups)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first_with: dict[str, int] = {}
    for number, group in enumerate(groups):
        for record in group.records:
            parent[root(number)] = root(first_with.setdefault(record.case_id, number))
    components: dict[int, list[Group]] = defaultdict(list)
    for number, group in enumerate(groups):
        components[root(number)].append(group)
    return list(components.values())


def fitted_together(family: Sequence[Group], base: dict[str, Any]) -> Intervention | None:
    """Both elasticities, from all records of a family; None where `elasticity.fit` cannot tell them apart."""
    records = list({r.case_id: r for g in family for r in g.records}.values())
    records.sort(key=lambda r: (r.bytes, r.flops))
    try:
        result = elasticity.fit(points(records))
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
    """The distinct values of a field: first numbers, ascending, then words."""
    values = dict.fromkeys(r.case[field] for r in records)
    return [str(v) or "none" for v in sorted(values, key=lambda v: (isinstance(v, str), v))]


def alone(group: Group, base: dict[str, Any]) -> Intervention:
    """The elasticity of the quantity that changes, while the other is held."""
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


def points(records: Sequence[Record]) -> list[Point]:
    return [
        Point(bytes=r.bytes, flops=r.flops, samples_s=samples, resampled=resampled)
        for r, samples, resampled in zip(records, comparable(records), comparable_medians(records), strict=True)
    ]


def elasticity_of(amounts: Sequence[int], records: Sequence[Record]) -> Interval:
    """The least-squares slope of log median time over log amount. Resampling every record gives the interval."""
    logs = np.log(np.asarray(amounts, dtype=float))
    weights = (logs - logs.mean()) / ((logs - logs.mean()) ** 2).sum()
    low, high = bounds(weights @ np.log(np.stack(comparable_medians(records))))
    best = weights @ np.log([np.median(each) for each in comparable(records)])
    return Interval(low=low, median=float(best), high=high)
