"""Two runs, case by case: first how their headers differ, then what became faster or slower.

Two runs of one part are compared by the ratio of median times. Where the roof was read around the samples of both, the
times are counted in such reads. For runs of two parts, the ratio is compared with the ratio of their measured read
roofs: a memory-bound case that follows the roof has the same ratio. Pure; never imports torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.errors import BadRequest
from bench.judge.busyness import banner
from bench.judge.resolution import SAME, resolutions, side
from bench.records import comparable
from bench.run import Run, flatten, load_run
from bench.stats import Interval, median_interval, ratio_interval
from bench.units import difference, measured, percent, ratio, si

COMPARED = ("device", "target", "suite", "request", "decodebench", "environment")
"""The parts of a run's header that ought to agree, the most important first."""

PASSING = {
    "environment.time",
    "environment.gpu.memory_used_bytes",
    "environment.gpu.processes",
    "request.argv",
    "request.repeat",
}
"""Entries that differ between any two runs, or that do not affect a time."""

Verdict = Literal["slower", "undecided", "same", "faster"]
ORDER: tuple[Verdict, ...] = ("slower", "undecided", "same", "faster")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An entry of the headers that differs between the runs. It is empty where it is absent."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, kw_only=True)
class Match:
    """One case of one implementation in both runs."""

    op: str
    impl: str
    case_id: str
    a: Interval
    b: Interval
    ratio: Interval
    """The time in b over the time in a."""
    expected: float
    """The ratio as it ought to be: 1 on one part; on two parts, a's read roof over b's."""
    flags: tuple[str, ...]
    resolution: float = 0.0
    """How far two measurements of the same thing may differ in either run, in this op."""

    @property
    def relative(self) -> Interval:
        """The ratio over the expected ratio: above 1, b is slower than it ought to be."""
        r, e = self.ratio, self.expected
        return Interval(low=r.low / e, median=r.median / e, high=r.high / e)

    @property
    def verdict(self) -> Verdict:
        """`same`: the whole interval lies within `SAME` of 1.

        `faster`, `slower`: the whole interval lies outside of that, and farther from 1 than the resolution. Else
        `undecided`.
        """
        relative = self.relative
        if relative.low >= 1 - SAME and relative.high <= 1 + SAME:
            return "same"
        found = side(relative, self.resolution)
        return "undecided" if found is None else "faster" if found == "below" else "slower"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Run b compared with run a."""

    a: Run
    b: Run
    differences: tuple[Difference, ...]
    matches: tuple[Match, ...]
    only_a: tuple[tuple[str, str, str], ...]
    """(op, impl, case_id) of times that only a has."""
    only_b: tuple[tuple[str, str, str], ...]
    redefined: tuple[tuple[str, str, str], ...]
    """Cases that are left out, because their compulsory bytes or FLOPs differ: the same name stands for other work."""
    roofs: tuple[float | None, float | None]
    """The measured read roofs of a and b, in B/s."""
    resolutions: Mapping[str, float]
    """By op, how far two measurements of the same thing may differ in either run."""

    @property
    def one_part(self) -> bool:
        return self.a.device_name == self.b.device_name

    @property
    def exit_code(self) -> int:
        """0: nothing is slower; 1: something is slower; 2: nothing could be compared. For two parts never 1."""
        if not self.matches:
            return 2
        return int(self.one_part and any(m.verdict == "slower" for m in self.matches))


def compare(run_a: Run | Path | str, run_b: Run | Path | str) -> Comparison:
    """Compare what both runs timed; repetitions are pooled. BadRequest where a comparison would mean nothing."""
    a, b = (run if isinstance(run, Run) else load_run(run) for run in (run_a, run_b))
    if a.on_gpu != b.on_gpu:
        which = ("a GPU", "a CPU") if a.on_gpu else ("a CPU", "a GPU")
        raise BadRequest(f"cannot compare: {a.path} was measured on {which[0]} and {b.path} on {which[1]}")
    roofs = (read_roof(a), read_roof(b))
    expected = 1.0
    if a.device_name != b.device_name:
        if roofs[0] is None or roofs[1] is None:
            lacking = a.path if roofs[0] is None else b.path
            raise BadRequest(
                f"cannot compare {a.device_name} with {b.device_name}: {lacking} holds no read of `stream`, so its "
                "roof is not known; run it again with --op stream"
            )
        expected = roofs[0] / roofs[1]
    in_a, in_b = a.repetitions(), b.repetitions()
    apart = resolutions(a, b)
    matches, redefined = [], []
    for key in in_a:
        if key not in in_b:
            continue
        ours, theirs = in_a[key], in_b[key]
        if ours[0].work != theirs[0].work:
            redefined.append(key)
            continue
        in_one_unit = comparable([*ours, *theirs])
        both = (in_one_unit[: len(ours)], in_one_unit[len(ours) :])
        matches.append(
            Match(
                op=key[0],
                impl=key[1],
                case_id=key[2],
                a=median_interval(np.concatenate([r.ordered for r in ours])),
                b=median_interval(np.concatenate([r.ordered for r in theirs])),
                ratio=ratio_interval(np.concatenate(both[1]), np.concatenate(both[0])),
                expected=expected,
                flags=tuple(dict.fromkeys(flag for record in [*ours, *theirs] for flag in record.flags)),
                resolution=apart.get(key[0], 0.0),
            )
        )
    return Comparison(
        a=a,
        b=b,
        differences=tuple(header_differences(a, b)),
        matches=tuple(matches),
        only_a=tuple(key for key in in_a if key not in in_b),
        only_b=tuple(key for key in in_b if key not in in_a),
        redefined=tuple(redefined),
        roofs=roofs,
        resolutions=apart,
    )


def read_roof(run: Run) -> float | None:
    return run.ceilings.read_roof if run.ceilings else None


def header_differences(a: Run, b: Run) -> Iterator[Difference]:
    """Every entry that differs in the parts of the headers that are compared."""
    for name in COMPARED:
        in_a, in_b = (dict(flatten(name, run.header.get(name))) for run in (a, b))
        for entry in dict.fromkeys([*in_a, *in_b]):
            if entry not in PASSING and in_a.get(entry) != in_b.get(entry):
                yield Difference(name=entry, a=in_a.get(entry, ""), b=in_b.get(entry, ""))


def lines(comparison: Comparison) -> list[str]:
    """What must be read before the table: both runs, how they differ, what is missing, and the verdicts counted."""
    c = comparison
    found = [f"a: {c.a.device_name}, {c.a.path}", f"b: {c.b.device_name}, {c.b.path}"]
    for run, name in ((c.a, "a"), (c.b, "b")):
        if busy := banner(run):
            found.append(f"{name}: {busy}")
        if not run.complete:
            found.append(f"{name} is a partial run")
        found += [f"{name}: {warning}" for warning in run.warnings]
    found += [f"differs: {d.name}: {d.a or 'absent'} -> {d.b or 'absent'}" for d in c.differences]
    if not c.one_part and c.roofs[0] and c.roofs[1]:
        roofs = f"{si(c.roofs[0], 'B/s')} and {si(c.roofs[1], 'B/s')}"
        found.append(
            f"two parts: times are compared with the measured read roofs, {roofs}: a case that follows the roof "
            f"takes {c.roofs[0] / c.roofs[1]:.2f} times as long on b"
        )
    for keys, name in ((c.only_a, "a"), (c.only_b, "b")):
        if keys:
            found.append(f"only {name} has a time: {len(keys)} cases, e.g. {' '.join(keys[0])}")
    if c.redefined:
        found.append(f"{len(c.redefined)} redefined cases are left out, e.g. {' '.join(c.redefined[0])}")
    if c.resolutions:
        each = ", ".join(
            f"{op} {percent(by, 1) if math.isfinite(by) else 'unknown'}" for op, by in c.resolutions.items()
        )
        found.append(
            f"undecided: the difference may be less than {percent(SAME)}, or less than the same thing measured twice "
            f"in one run differs: {each}"
        )
    if not c.matches:
        return [*found, "cannot compare: no case of one implementation has a time in both runs"]
    counts = Counter(m.verdict for m in c.matches)
    return [*found, f"of {len(c.matches)} times: " + ", ".join(f"{counts[v]} {v}" for v in ORDER if counts[v])]


def main_table(comparison: Comparison) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Headers and rows of strings. Slower cases come first, and larger changes before smaller ones."""
    headers = ["op", "case", "implementation", "a", "b", "b / a", "verdict", "flags"]
    if not comparison.one_part:
        headers.insert(6, "against the roofs")
    rows: list[Sequence[str]] = []
    for m in sorted(comparison.matches, key=lambda m: (ORDER.index(m.verdict), -abs(m.relative.median - 1))):
        row = [m.op, m.case_id, m.impl, measured(m.a), measured(m.b), ratio(m.ratio), m.verdict, ", ".join(m.flags)]
        if not comparison.one_part:
            row.insert(6, difference(m.relative))
        rows.append(row)
    return headers, rows


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Everything, for JSON, in seconds and B/s. The end of an unbounded interval is None."""
    c = comparison
    return {
        "a": str(c.a.path),
        "b": str(c.b.path),
        "one_part": c.one_part,
        "differences": [asdict(d) for d in c.differences],
        "read_roofs": list(c.roofs),
        "resolutions": {op: bounded(by) for op, by in c.resolutions.items()},
        "only_a": [list(key) for key in c.only_a],
        "only_b": [list(key) for key in c.only_b],
        "redefined": [list(key) for key in c.redefined],
        "matches": [
            {
                "op": m.op,
                "impl": m.impl,
                "case_id": m.case_id,
                "a_s": m.a.median,
                "b_s": m.b.median,
                "ratio": m.ratio.median,
                "low": m.ratio.low,
                "high": bounded(m.ratio.high),
                "expected": m.expected,
                "verdict": m.verdict,
                "flags": list(m.flags),
            }
            for m in c.matches
        ],
        "exit_code": c.exit_code,
    }


def bounded(value: float) -> float | None:
    """The value for JSON, which has no infinity."""
    return value if math.isfinite(value) else None
