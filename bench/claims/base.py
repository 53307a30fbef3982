"""What a claim is, and how one is judged: published numbers against predicted and measured ones, setting by setting.

A claim's text seldom names its whole setting (model, precision, batch, context ...). So a prediction is made at every
setting of a declared grid, and a published number holds at those settings where it is within its tolerance. The
verdict follows from the grid alone:

- `HOLDS`: every published number fits at every setting; `DEPENDS`: they fit together at some settings, which are the
  condition; `FAILS`: at none
- a measured value replaces the predicted one of the same setting; settings that were not measured keep the prediction
- a claim to be measured that was not, on the kind of device it is about, is `NOT MEASURED`, whatever is predicted
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from bench.devices import DEVICES
from bench.records import Record, Run
from bench.roofline import Ceilings

Status = Literal["HOLDS", "FAILS", "DEPENDS", "NOT MEASURED"]

SOURCES = {
    "A": "the AI-infrastructure and datacenter primer",
    "B": "the AI infrastructure wave map",
    "C": '"Inference goes physical"',
    "D": "the AI infrastructure study series, days 8 and 9",
    "E": "the chip-design digest",
}

ARITHMETIC = 0.05
"""Relative tolerance of a number that follows from shapes and datasheets: two digits, rounded."""

MEASURED = 0.15
"""Relative tolerance of a number that hardware must reach: good kernels come within it of their roof."""

APPROXIMATE = 0.25
"""Relative tolerance of a number published as "about"."""

Setting = dict[str, str]
"""What a value was computed or measured at: factor -> value, e.g. `{"weights": "bf16", "batch": "8"}`."""

NOT_EVIDENCE = frozenset({"impossible", "late write"})
"""Flags of records whose time is not that of the work: they are shown elsewhere and judge nothing here."""


class Unmeasured(Exception):
    """There is nothing to judge by; the message is the reason that a reader sees."""


class NoPrediction(Exception):
    """The model cannot say; the message names the missing number."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published number or range, in SI units. `low == high` for a single number; infinity for an open end."""

    what: str
    low: float
    high: float
    unit: str
    tolerance: float = ARITHMETIC
    """Relative, added at either end of the range."""

    def covers(self, value: float) -> bool:
        return self.low * (1 - self.tolerance) <= value <= self.high * (1 + self.tolerance)


def number(what: str, value: float, unit: str, tolerance: float = ARITHMETIC) -> Published:
    """A single published number."""
    return Published(what=what, low=value, high=value, unit=unit, tolerance=tolerance)


@dataclass(frozen=True, kw_only=True)
class RecordId:
    """Where a measured value came from."""

    op: str
    impl: str
    case_id: str
    run_id: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One predicted or measured value beside one published number, at one setting."""

    published: Published
    value: float
    setting: Setting = field(default_factory=dict)
    how: str
    """The formula in words, or what was measured and divided by what."""
    records: tuple[RecordId, ...] = ()
    on_gpu: bool = True

    @property
    def measured(self) -> bool:
        return bool(self.records)

    @property
    def holds(self) -> bool:
        return self.published.covers(self.value)

    @property
    def place(self) -> frozenset[tuple[str, str]]:
        """The setting, hashable."""
        return frozenset(self.setting.items())

    def replaced_by(self, measured: Iterable[Comparison]) -> bool:
        """Whether one of these measures the same number at this setting (and names the device perhaps)."""
        return any(m.published.what == self.published.what and self.place <= m.place for m in measured)


def record_ids(records: Iterable[Record]) -> tuple[RecordId, ...]:
    return tuple(
        RecordId(op=r.op, impl=r.impl, case_id=r.case_id, run_id=r.run_id, flags=tuple(r.flags)) for r in records
    )


class Measured:
    """The usable records of one run: `ok`, with samples, and not flagged as `NOT_EVIDENCE`."""

    def __init__(self, run: Run) -> None:
        facts = run.header.get("device", {})
        self.device: str = facts.get("name", "unknown device")
        self.part = DEVICES.get(facts.get("key") or "")
        """What the table knows of this part, None for one that it does not hold."""
        self.on_gpu = run.on_gpu
        self.records = [
            r for r in run.records if r.status == "ok" and r.seconds and not NOT_EVIDENCE.intersection(r.flags)
        ]
        self._ceilings = Ceilings.from_records(self.records)

    def find(self, op: str, **fields: object) -> list[Record]:
        """All records of an op whose case has these values; a tuple gives several that will do."""

        def fits(record: Record) -> bool:
            return all(
                record.case.get(name) in (value if isinstance(value, tuple) else (value,))
                for name, value in fields.items()
            )

        return [r for r in self.records if r.op == op and fits(r)]

    def fastest(self, op: str, **fields: object) -> list[Record]:
        """The fastest implementation of each case: what the hardware was seen to do."""
        best: dict[str, Record] = {}
        for record in self.find(op, **fields):
            known = best.get(record.case_id)
            if known is None or seconds(record) < seconds(known):
                best[record.case_id] = record
        return list(best.values())

    @property
    def ceilings(self) -> Ceilings:
        if self._ceilings is None:
            raise Unmeasured("the run holds no read of `stream`, so no measured bandwidth to compare with")
        return self._ceilings

    def peak(self, pipe: str) -> float:
        """Measured FLOP/s of a pipe."""
        peak = self._ceilings.pipes.get(pipe) if self._ceilings else None
        if peak is None:
            raise Unmeasured(f"the run holds no `gemm_peak` of {pipe}")
        return peak

    def ceiling_records(self, *ops: str) -> list[Record]:
        return [r for op in ops for r in self.fastest(op)]


def seconds(record: Record) -> float:
    """Median seconds of a record that has samples."""
    value = record.seconds
    assert value is not None
    return value


def settle(comparisons: Sequence[Comparison]) -> tuple[Status, str]:
    """The verdict of a non-empty set of comparisons, and its condition in words (empty for HOLDS)."""
    settings: dict[frozenset[tuple[str, str]], list[Comparison]] = {}
    for comparison in comparisons:
        settings.setdefault(comparison.place, []).append(comparison)
    good = [group for group in settings.values() if all(c.holds for c in group)]
    if len(good) == len(settings):
        return "HOLDS", ""
    if good:
        where = describe([group[0].setting for group in good], [group[0].setting for group in settings.values()])
        by_hope = any(c.measured for c in comparisons) and not any(c.measured for group in good for c in group)
        return "DEPENDS", where + (ONLY_PREDICTED if by_hope else "")
    parts = []
    for what in dict.fromkeys(c.published.what for c in comparisons):
        mine = [c for c in comparisons if c.published.what == what]
        fitting = [c.setting for c in mine if c.holds]
        if fitting and len(fitting) < len(comparisons):
            where = describe(fitting, [c.setting for c in mine]) or "every setting"
            parts.append(f"taken alone, {what} fits: {where}")
    return "FAILS", "; ".join(parts)


ONLY_PREDICTED = " (predicted; nothing measured fits)"
"""Said of a condition that no measurement supports."""

LISTED = 4
"""Settings listed one by one before the rest is counted."""


def describe(some: Sequence[Setting], everywhere: Sequence[Setting]) -> str:
    """Which of the settings these are: by the factors that tell them apart if they form a block, else in blocks."""
    blocks = _blocks(some, everywhere)
    more = f" | and {len(blocks) - LISTED} more" if len(blocks) > LISTED else ""
    return " | ".join(blocks[:LISTED]) + more


def _values(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """Values of each factor: numbers ascending, others in order of appearance."""
    factors = dict.fromkeys(name for setting in settings for name in setting)
    values = {f: list(dict.fromkeys(s[f] for s in settings if f in s)) for f in factors}
    return {f: sorted(v, key=float) if all(map(_is_number, v)) else v for f, v in values.items()}


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _telling(some: Sequence[Setting], everywhere: Sequence[Setting]) -> dict[str, list[str]] | None:
    """Factors and values that select exactly these settings, None if no such block does."""
    chosen, every = _values(some), _values(everywhere)
    telling = {f: chosen[f] for f in chosen if len(chosen[f]) < len(every[f])}
    block = [s for s in everywhere if all(s.get(f) in values for f, values in telling.items())]
    return telling if len(block) == len(some) else None


def _blocks(some: Sequence[Setting], everywhere: Sequence[Setting]) -> list[str]:
    """One description if they form a block, else those of the parts, split by the factor that makes the fewest."""
    telling = _telling(some, everywhere)
    if telling is not None:
        return [", ".join(f"{factor} {' or '.join(values)}" for factor, values in telling.items())]
    splits = {f: list(dict.fromkeys(s.get(f) for s in everywhere)) for f in _values(everywhere)}
    splits = {f: values for f, values in splits.items() if len(values) > 1}
    shared = {f: values for f, values in splits.items() if None not in values}
    return min((_split(some, everywhere, f, values) for f, values in (shared or splits).items()), key=len)


def _split(
    some: Sequence[Setting], everywhere: Sequence[Setting], factor: str, values: Sequence[str | None]
) -> list[str]:
    blocks = []
    for value in values:
        mine = [s for s in some if s.get(factor) == value]
        if mine:
            head = "" if value is None else f"{factor} {value}"
            within = _blocks(mine, [s for s in everywhere if s.get(factor) == value])
            blocks += [", ".join(filter(None, (head, block))) for block in within]
    return blocks


Predict = Callable[[], Sequence["Comparison | NoPrediction"]]
"""Values at every setting; a `NoPrediction` among them says which published number nothing is compared with."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`status` counts measurements where the claim needs them; `predicted_status` is the model's alone."""

    claim: Claim
    status: Status
    condition: str = ""
    """Under which settings it holds (DEPENDS), or which of its numbers hold where (FAILS)."""
    reason: str = ""
    """Why it is NOT MEASURED."""
    predicted_status: Status | None
    predicted_condition: str = ""
    predicted: tuple[Comparison, ...]
    measured: tuple[Comparison, ...] | None
    """None where nothing was measured. Values of a CPU run are listed and judge nothing."""
    gap: str = ""
    """What could not be predicted, and why."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One published claim: data, a prediction and a way to measure it, both functions of nothing but their arguments.

    `how` as in the list of claims: M measured, P predicted, X across devices, S simulated. `measure` takes one run,
    `across` runs of at least two different GPUs.
    """

    id: str
    text: str
    """As published, in own words."""
    plain: str
    """The same for someone outside the field, as a statement."""
    source: str
    """Letters of `SOURCES`."""
    how: str
    published: tuple[Published, ...]
    setting: str
    """What is assumed where the text does not say, and what is varied."""
    predict: Predict | None = None
    measure: Callable[[Measured], list[Comparison]] | None = None
    across: Callable[[list[Measured]], list[Comparison]] | None = None
    never: str = ""
    """Why it cannot be measured here at all."""

    @property
    def theme(self) -> str:
        return self.id[0]

    @property
    def needs_measurement(self) -> bool:
        return bool({"M", "X"} & set(self.how.split())) or bool(self.never)

    def judge(self, runs: Sequence[Measured]) -> Verdict:
        """Pure: the same runs give the same verdict."""
        predicted, gap = self._predicted()
        predicted_status, predicted_condition = settle(predicted) if predicted else (None, "")
        measured, reason = self._measured(runs) if self.needs_measurement else ([], "")
        evidence = [c for c in measured if c.on_gpu]
        status: Status = "NOT MEASURED"
        condition = ""
        if not self.needs_measurement:
            status, condition = predicted_status or "NOT MEASURED", predicted_condition
            reason = "" if predicted else f"no prediction: {gap}"
        elif evidence:
            status, condition = settle([*evidence, *(c for c in predicted if not c.replaced_by(evidence))])
            reason = ""
        return Verdict(
            claim=self,
            status=status,
            condition=condition,
            reason=reason,
            predicted_status=predicted_status,
            predicted_condition=predicted_condition,
            predicted=tuple(predicted),
            measured=tuple(measured) or None,
            gap=gap,
        )

    def _predicted(self) -> tuple[list[Comparison], str]:
        if self.predict is None:
            return [], "the model has nothing to say about this"
        try:
            given = self.predict()
        except NoPrediction as error:
            given = [error]
        gaps = dict.fromkeys(str(g) for g in given if isinstance(g, NoPrediction))
        return [c for c in given if isinstance(c, Comparison)], "; ".join(gaps)

    def _measured(self, runs: Sequence[Measured]) -> tuple[list[Comparison], str]:
        """All comparisons of all runs, and the reason why none of them counts."""
        if self.never:
            return [], self.never
        found: list[Comparison] = []
        reasons: list[str] = []
        several = len({run.device for run in runs}) > 1
        if self.measure is not None:
            for run in runs:
                where = {"device": run.device} if several else {}
                try:
                    found += [replace(c, setting=where | c.setting, on_gpu=run.on_gpu) for c in self.measure(run)]
                except Unmeasured as error:
                    reasons.append(str(error))
        if self.across is not None:
            gpus = {run.device: run for run in runs if run.on_gpu}
            if len(gpus) < 2:
                reasons.append(f"needs runs of two different GPUs, has {len(gpus) or 'none'}")
            else:
                try:
                    found += self.across(list(gpus.values()))
                except Unmeasured as error:
                    reasons.append(str(error))
        if not runs:
            return found, "no run given"
        if not any(run.on_gpu for run in runs):
            return found, "measured on a CPU only; the claim is about GPUs"
        return found, "; ".join(dict.fromkeys(reasons))
