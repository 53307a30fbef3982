"""What a claim is: published numbers, and the predicted and measured values that they are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from bench.judge.claims.settings import Setting
from bench.records import Record

if TYPE_CHECKING:
    from bench.judge.claims.others import Others
    from bench.judge.claims.reading import MeasuredPart

Evidence = Literal["MEASURED", "PUBLISHED", "PREDICTED", ""]
"""Whose values decide: those of our runs, those that others published, or the model's alone; nothing decided yet."""

Status = Literal["HOLDS", "FAILS", "DEPENDS", "NOT MEASURED"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a claim was published, so that a reader can find it."""

    title: str
    kind: str
    file: str
    date: str = "not said in the copy"

    def __str__(self) -> str:
        return f"{self.title}: {self.kind}, date {self.date}, {self.file}"


SOURCES = {
    "A": Source(
        title="the AI-infrastructure and datacenter primer",
        kind="a primer for newcomers, as a text file",
        file="001_513f68dfbbae71d0.txt",
    ),
    "B": Source(
        title="the AI infrastructure wave map", kind="an overview of the market", file="000_63efac83b3f35427.txt"
    ),
    "C": Source(title='"Inference goes physical"', kind="an essay", file="002_a0f6ec6719eac88e.txt"),
    "D": Source(
        title="the AI infrastructure study series, days 8 and 9", kind="study notes", file="003_d5d34939ef33a7e8.txt"
    ),
    "E": Source(title="the chip-design digest", kind="a digest of news", file="004_b5301c97cd73f9ff.txt"),
}
"""By the letter that claims name. The files are those of the collection in which the claims were read."""

ARITHMETIC = 0.05
"""Relative tolerance of a number that follows from shapes and datasheets: two digits, rounded."""

MEASURED = 0.15
"""Relative tolerance of a number that hardware must reach: good kernels come within 15% of their roof."""

APPROXIMATE = 0.25
"""Relative tolerance of a number published as "about"."""

Bound = Literal["", "upper", "lower"]
"""Whether a value is exact (empty), or the most or the least that it can be."""


class Unmeasured(Exception):
    """A run holds nothing to judge by. The message is the reason that a reader sees."""


class NoPrediction(Exception):
    """The model cannot predict a value. The message names the missing number."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published number or range, in SI units. `low == high` for a single number, infinity for an open end."""

    what: str
    low: float
    high: float
    unit: str
    tolerance: float = ARITHMETIC
    """Relative. It is added at both ends of the range."""
    ours: bool = False
    """Whether the claim's text says it in words alone, such as `few` or `nearly free`, and this project chose the
    number."""

    def covers(self, value: float) -> bool:
        return self.low * (1 - self.tolerance) <= value <= self.high * (1 + self.tolerance)


def number(what: str, value: float, unit: str, tolerance: float = ARITHMETIC) -> Published:
    """A single published number."""
    return Published(what=what, low=value, high=value, unit=unit, tolerance=tolerance)


def our_range(what: str, low: float, high: float, unit: str, tolerance: float = 0) -> Published:
    """The range that this project chose for what the claim's text says in words alone."""
    return Published(what=what, low=low, high=high, unit=unit, tolerance=tolerance, ours=True)


@dataclass(frozen=True, kw_only=True)
class RecordId:
    """Where a measured value came from."""

    op: str
    impl: str
    case_id: str
    run_id: str
    flags: tuple[str, ...] = ()


def record_ids(records: Iterable[Record]) -> tuple[RecordId, ...]:
    return tuple(
        RecordId(op=r.op, impl=r.impl, case_id=r.case_id, run_id=r.run_id, flags=tuple(r.flags)) for r in records
    )


@dataclass(frozen=True, kw_only=True)
class PublishedRows:
    """Rows of others' tables behind a value: how many of one part, software, version and table."""

    part: str
    software: str
    version: str
    source: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One predicted or measured value beside one published number, at one setting."""

    published: Published
    value: float
    setting: Setting = field(default_factory=dict)
    how: str
    """The formula in words, or what was measured and what it was divided by."""
    records: tuple[RecordId, ...] = ()
    rows: tuple[PublishedRows, ...] = ()
    """Others' measurements that the value was computed from."""
    on_gpu: bool = True
    bound: Bound = ""

    @property
    def measured(self) -> bool:
        """By us or by others."""
        return bool(self.records or self.rows)

    @property
    def holds(self) -> bool | None:
        """Whether the published number fits. None if the value is a bound that leaves it open."""
        published, fits = self.published, self.published.covers(self.value)
        if not self.bound:
            return fits
        if self.bound == "upper":
            beyond, endless = self.value < published.low, published.low in (0, -math.inf)
        else:
            beyond, endless = self.value > published.high, published.high == math.inf
        if fits:
            return True if endless else None
        return False if beyond else None

    @property
    def setting_key(self) -> frozenset[tuple[str, str]]:
        return frozenset(self.setting.items())

    def replaced_by(self, measured: Iterable[Comparison]) -> bool:
        """Whether one of these measures the same number at this setting, perhaps with the device's name added."""
        return any(m.published.what == self.published.what and self.setting_key <= m.setting_key for m in measured)


Predict = Callable[[], Sequence["Comparison | NoPrediction"]]
"""Values at all settings. A `NoPrediction` among them tells why a published number is compared with nothing."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One published claim, with functions that predict and measure its numbers. They depend on their arguments alone.

    `how` says how the claim is judged: M measured, P predicted, X across devices, S simulated, V by others' tables.
    """

    id: str
    """A letter and a number. The numbers of a letter have no gap."""
    text: str
    """What was published, in our own words."""
    plain: str
    """The same as a statement for someone outside the field."""
    source: str
    """Letters of `SOURCES`."""
    how: str
    published: tuple[Published, ...]
    setting: str
    """What is assumed where the text does not say, and what is varied."""
    predict: Predict | None = None
    measure: Callable[[MeasuredPart], list[Comparison]] | None = None
    """What one run measured. Raises `Unmeasured`."""
    across: Callable[[list[MeasuredPart]], list[Comparison]] | None = None
    """What runs of at least two different GPUs measured together. Raises `Unmeasured`."""
    by_others: Callable[[Others], list[Comparison]] | None = None
    """What published tables say where no run of ours does. Raises `Unmeasured`."""
    never: str = ""
    """Why the claim cannot be measured here at all."""
    any_part: bool = False
    """Whether the claim names no GPU and no number of one. A run on a CPU then judges it where no run is on a GPU, and
    the verdict says so."""

    @property
    def needs_measurement(self) -> bool:
        return bool({"M", "X"} & set(self.how.split())) or bool(self.never)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`status` counts measurements if the claim needs them. `predicted_status` is the model's alone."""

    claim: Claim
    status: Status
    condition: str = ""
    """The settings at which the claim holds (DEPENDS), or where each of its numbers holds (FAILS)."""
    reason: str = ""
    """Why the claim is NOT MEASURED: what is missing, or what bounds leave open."""
    predicted_status: Status | None
    """None without a prediction, or if bounds leave open what it says."""
    predicted_condition: str = ""
    predicted: tuple[Comparison, ...]
    measured: tuple[Comparison, ...] | None
    """None if nothing was measured. Values of a CPU run are listed, but they judge only claims about any part."""
    on_this_cpu: bool = False
    """Whether runs on a CPU judge."""
    published: tuple[Comparison, ...] = ()
    """Values from others' tables. They judge where no run of ours does."""
    gap: str = ""
    """What could not be predicted, and why."""

    @property
    def evidence(self) -> tuple[Comparison, ...]:
        """The measured values that judge: those of our GPU runs or a CPU run, or else those that others published."""
        return tuple(c for c in self.measured or () if c.on_gpu or self.on_this_cpu) or self.published

    @property
    def by(self) -> Evidence:
        """By whose evidence the verdict is given."""
        if self.status == "NOT MEASURED":
            return ""
        if not self.evidence:
            return "PREDICTED"
        return "PUBLISHED" if self.evidence is self.published else "MEASURED"

    @property
    def rows(self) -> tuple[PublishedRows, ...]:
        """Others' rows behind a PUBLISHED verdict, each table once with the most rows that one value used of it."""
        found: dict[tuple[str, ...], PublishedRows] = {}
        for used in (r for c in self.evidence for r in c.rows):
            key = (used.part, used.software, used.version, used.source)
            if key not in found or found[key].count < used.count:
                found[key] = used
        return tuple(found.values())
