"""What a claim is, and how one is judged: published numbers against predicted and measured ones, setting by setting.

A claim's text seldom names its whole setting (model, precision, batch, context ...). So a prediction is made at every
setting of a declared grid, and a published number holds at those settings where it is within its tolerance. The
verdict follows from the grid alone:

- `HOLDS`: every published number fits at every setting; `DEPENDS`: they fit together at some settings, which are the
  condition; `FAILS`: at none
- numbers of one claim that share no setting (the SRAM of one chip and the bandwidth of another) get a factor that tells
  them apart (`the`, `phase`, `machine`), and with it the claim is judged part by part: it holds for some of them; the
  condition of `DEPENDS` then ends with the numbers that fit at no setting
- a value that is only a bound decides where the published number is beyond it, or has no other end to miss; all else
  it leaves open, and a setting with a number left open neither fits nor fails
- a measured value replaces the predicted one of the same setting; settings that were not measured keep the prediction,
  beside the values of each device where several measured something of the claim
- a claim to be measured that was not, on the kind of device it is about, is `NOT MEASURED`, whatever is predicted
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from bench.ceilings import Ceilings
from bench.devices import DEVICES
from bench.judge.claims.settings import Setting, describe
from bench.records import Record, Run

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

Bound = Literal["", "upper", "lower"]
"""Whether a value is the thing itself (empty), or the most or the least that it can be."""


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
    bound: Bound = ""

    @property
    def measured(self) -> bool:
        return bool(self.records)

    @property
    def holds(self) -> bool | None:
        """Whether the published number fits; None where a bound leaves it open."""
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
    def place(self) -> frozenset[tuple[str, str]]:
        """The setting, hashable."""
        return frozenset(self.setting.items())

    def replaced_by(self, measured: Iterable[Comparison]) -> bool:
        """Whether one of these measures the same number at this setting (and names the device perhaps)."""
        return any(m.published.what == self.published.what and self.place <= m.place for m in measured)


DEVICE = "device"
"""The factor that tells apart what several devices measured."""


def predictions_beside(predicted: Sequence[Comparison], evidence: Sequence[Comparison]) -> list[Comparison]:
    """The predictions that no evidence replaces; where devices are told apart, beside what each of them measured."""
    kept = []
    for device in dict.fromkeys(c.setting.get(DEVICE) for c in evidence):
        mine = [c for c in evidence if c.setting.get(DEVICE) == device]
        where = {DEVICE: device} if device else {}
        kept += [replace(c, setting=where | c.setting) for c in predicted if not c.replaced_by(mine)]
    return kept


def record_ids(records: Iterable[Record]) -> tuple[RecordId, ...]:
    return tuple(
        RecordId(op=r.op, impl=r.impl, case_id=r.case_id, run_id=r.run_id, flags=tuple(r.flags)) for r in records
    )


class Measured:
    """The usable records of one run: `ok`, with samples, and with no flag that the time may be too short.

    The others are shown elsewhere and judge nothing here.
    """

    def __init__(self, run: Run) -> None:
        facts = run.header.get("device", {})
        self.device: str = facts.get("name", "unknown device")
        self.part = DEVICES.get(facts.get("key") or "")
        """What the table knows of this part, None for one that it does not hold."""
        self.name: str = self.part.name if self.part else self.device
        """As predictions name the part, else as its driver does."""
        self.on_gpu = run.on_gpu
        self.records = [r for r in run.records if r.status == "ok" and r.seconds and not r.may_be_too_short]
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


def seconds(record: Record) -> float:
    """Median seconds of a record that has samples."""
    value = record.seconds
    assert value is not None
    return value


def by_number(comparisons: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    """The comparisons of each published number, in the order in which the numbers first appear."""
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(comparison.published.what, []).append(comparison)
    return groups


def settle(comparisons: Sequence[Comparison]) -> tuple[Status | None, str]:
    """The verdict of a non-empty set of comparisons, and its condition in words (empty for HOLDS).

    None where nothing fits and bounds leave some setting open; the words then say which numbers.
    """
    settings: dict[frozenset[tuple[str, str]], list[Comparison]] = {}
    for comparison in comparisons:
        settings.setdefault(comparison.place, []).append(comparison)
    good = [group for group in settings.values() if all(c.holds for c in group)]
    if len(good) == len(settings):
        return "HOLDS", ""
    numbers = by_number(comparisons)
    if good:
        where = describe([group[0].setting for group in good], [group[0].setting for group in settings.values()])
        by_hope = any(c.measured for c in comparisons) and not any(c.measured for group in good for c in group)
        nowhere = [what for what, mine in numbers.items() if all(c.holds is False for c in mine)]
        said = [where + (ONLY_PREDICTED if by_hope else ""), *_left_open(numbers)]
        return "DEPENDS", "; ".join(said + ([f"at no setting: {', '.join(nowhere)}"] if nowhere else []))
    if not all(any(c.holds is False for c in group) for group in settings.values()):
        return None, "; ".join(_left_open(numbers))
    parts = []
    for what, mine in numbers.items():
        fitting = [c.setting for c in mine if c.holds]
        if fitting and len(fitting) < len(comparisons):
            where = describe(fitting, [c.setting for c in mine]) or "every setting"
            parts.append(f"taken alone, {what} fits: {where}")
    return "FAILS", "; ".join(parts)


def _left_open(numbers: dict[str, list[Comparison]]) -> list[str]:
    """`an upper bound leaves open: the speed (batch 1)`, for either kind of bound that does."""
    found = []
    for bound, name in (("upper", "an upper bound"), ("lower", "a lower bound")):
        left = []
        for what, mine in numbers.items():
            some = [c.setting for c in mine if c.bound == bound and c.holds is None]
            where = describe(some, [c.setting for c in mine]) if some else ""
            left += [f"{what} ({where})" if where else what] if some else []
        if left:
            found.append(f"{name} leaves open: {', '.join(left)}")
    return found


ONLY_PREDICTED = " (predicted; nothing measured fits)"
"""Said of a condition that no measurement supports."""

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
    """Why it is NOT MEASURED: what is missing, or what bounds leave open."""
    predicted_status: Status | None
    """None without a prediction, or where bounds leave open what it says."""
    predicted_condition: str = ""
    predicted: tuple[Comparison, ...]
    measured: tuple[Comparison, ...] | None
    """None where nothing was measured. Values of a CPU run are listed and judge nothing."""
    gap: str = ""
    """What could not be predicted, and why."""

    @property
    def evidence(self) -> tuple[Comparison, ...]:
        """The measured values that judge: those of GPUs."""
        return _of_gpus(self.measured or ())


def _of_gpus(comparisons: Iterable[Comparison]) -> tuple[Comparison, ...]:
    return tuple(c for c in comparisons if c.on_gpu)


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
    def needs_measurement(self) -> bool:
        return bool({"M", "X"} & set(self.how.split())) or bool(self.never)

    def judge(self, runs: Sequence[Measured]) -> Verdict:
        """Pure: the same runs give the same verdict."""
        predicted, gap = self._predicted()
        predicted_status, predicted_condition = settle(predicted) if predicted else (None, "")
        measured, reason = self._measured(runs) if self.needs_measurement else ([], "")
        evidence = _of_gpus(measured)
        judged: list[Comparison] = []
        if not self.needs_measurement:
            judged, reason = predicted, f"no prediction: {gap}"
        elif evidence:
            judged = [*evidence, *predictions_beside(predicted, evidence)]
        status: Status = "NOT MEASURED"
        condition = ""
        if judged:
            decided, said = settle(judged)
            status, condition, reason = (decided, said, "") if decided else (status, "", said)
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
            return [], "the model does not cover this"
        try:
            given = self.predict()
        except NoPrediction as error:
            given = [error]
        gaps = dict.fromkeys(str(g) for g in given if isinstance(g, NoPrediction))
        return [c for c in given if isinstance(c, Comparison)], "; ".join(gaps)

    def _measured(self, runs: Sequence[Measured]) -> tuple[list[Comparison], str]:
        """All comparisons of all runs, and the reason why none of them counts.

        Where several GPUs measured something, each value gets the device's name, unless all name their part already.
        """
        if self.never:
            return [], self.never
        found: list[Comparison] = []
        reasons: list[str] = []
        if self.measure is not None:
            of_runs: list[tuple[Measured, Comparison]] = []
            for run in runs:
                try:
                    of_runs += [(run, replace(c, on_gpu=run.on_gpu)) for c in self.measure(run)]
                except Unmeasured as error:
                    reasons.append(str(error))
            several = len({run.device for run, _ in of_runs if run.on_gpu}) > 1
            if several and not all(run.name in c.setting.values() for run, c in of_runs):
                of_runs = [(run, replace(c, setting={DEVICE: run.device} | c.setting)) for run, c in of_runs]
            found += [c for _, c in of_runs]
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
