"""Offline tuning: find configurations that beat the reasoned ones on this part, and write them down with the evidence.

`prune.py` drops on the host what need not be timed. The survivors race on the GPU, through the same gate, rotating
copies and interleaved timer as in a measured run. First come heats of a few candidates and the default, then a final of
the best of all heats and the default, with fresh samples. A winner must beat the default by more than `GAIN` with its
whole interval, and must not lose to it on other cases of its class. A measured run only reads what is written here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from bench import machine
from bench.devices.driver import cuda_problem
from bench.errors import BadRequest
from bench.inspection.targets import compile_targets
from bench.measure.schedule import HANG_S, halving, round_robin
from bench.operate.tune.prune import DEFAULT, Pruned, ShapeClass, fallen_lines, prune, shape_classes, tunable
from bench.operate.tune.track import Times, Track
from bench.records import Record
from bench.stats import Interval, ratio_interval
from kernels.common import tuned
from kernels.op import Config, Impl, Op, Target, config_text

GAIN = 0.01
"""The least gain that is worth a line in a file: twice the half-width that sampling aims at."""

HEAT = 6
"""How many candidates are timed together with the default. More would hold more outputs and graphs at once."""

FINALISTS = 3
CHECKED = 2
"""On so many further cases of the class, a winner must not be slower than the default."""

HEAT_CAP_S = 0.15
"""Sampling seconds per candidate in a heat. The median is then known to about 1%, enough to drop the slow ones."""

VOID = {"impossible"}
"""A time with one of these flags does not count."""


class Display(Protocol):
    """Where progress is shown; `bench.terminal.progress.Live` is one."""

    def working(self, op: str, case_id: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be tuned."""

    device: str = "auto"
    suite: str = "quick"
    ops: tuple[str, ...] = ()
    impls: tuple[str, ...] = ()
    budget_s: float | None = None
    """After this long no further class is begun."""
    pace_s: float | None = None
    """After half of this in one class, no further heat is begun, so that many classes have a turn."""
    cap_s: float = 0.5
    """Sampling seconds per finalist and case."""
    dry_run: bool = False
    """Only compile, for the parts of `sms` or for all that are known; needs no GPU."""
    sms: tuple[int, ...] = ()
    only_new: bool = False
    """Leave out classes that have an entry for this part."""
    without: tuple[tuple[str, str, str], ...] = ()
    """(op, implementation, class) of what is left out too."""
    workers: int = 0
    """How many processes compile; 0: one per usable core."""
    hang_s: float = HANG_S
    catalogue: str = "kernels.op"
    root: Path = tuned.ROOT
    """Where `<op>/tuned.json` is written."""


Race = Callable[[ShapeClass, Any, Sequence[Config], float], Times]
"""(class, case, configurations, sampling seconds of each) -> for each its record, or why there is none."""

Status = Literal["tuned", "default stands", "failed", "not reached"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one shape class. `config` and `evidence` get written down; they are empty unless it was timed."""

    pruned: Pruned
    status: Status
    config: Config = DEFAULT
    evidence: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    wrong: tuple[tuple[Config, str], ...] = ()
    """Candidates that compiled, and then failed the gate or crashed, and why."""

    @property
    def key(self) -> tuple[str, str]:
        """Implementation and class: what names an entry among those of an op and a part."""
        return self.pruned.shape_class.impl, self.pruned.shape_class.name

    def lines(self) -> list[str]:
        head = f"{self.pruned.shape_class.label}: {self.status}"
        if self.evidence:
            head += f" {config_text(self.config)}" if self.status == "tuned" else ""
            gain = percent(self.evidence["gain"], *self.evidence["gain_interval"])
            head += f", {gain} over the default on {self.evidence['case_id']}"
            runner_up = self.evidence["runner_up"]
            head += f"; runner-up {config_text(tuple(runner_up['config'].items()))}" if runner_up else ""
        if self.why:
            head += f" ({self.why})"
        return [head, *fallen_lines((*self.pruned.fallen, *self.wrong))]

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.pruned.as_dict(),
            "status": self.status,
            "config": dict(self.config),
            "evidence": self.evidence,
            "why": self.why,
            "wrong": [{"config": dict(config), "reason": reason} for config, reason in self.wrong],
        }


@dataclass(frozen=True, kw_only=True)
class TuneReport:
    """What a tuning came to: outcomes on a GPU, or, of a dry run, what was pruned for each part."""

    part: str
    outcomes: tuple[Outcome, ...] = ()
    pruned: tuple[Pruned, ...] = ()
    files: tuple[Path, ...] = ()
    interrupted: bool = False

    def lines(self) -> list[str]:
        written = [f"written: {path}" for path in self.files]
        rows: list[Outcome | Pruned] = [*self.outcomes, *self.pruned]
        return [line for row in rows for line in row.lines()] + written

    def as_dict(self) -> dict[str, Any]:
        return {
            "part": self.part,
            "outcomes": [outcome.as_dict() for outcome in self.outcomes],
            "sifted": [row.as_dict() for row in self.pruned],
            "files": [str(path) for path in self.files],
            "interrupted": self.interrupted,
        }


def percent(gain: float, low: float, high: float) -> str:
    return f"{gain:+.1%} [{low:+.1%}, {high:+.1%}]"


def tune(request: Request, display: Display) -> TuneReport:
    """Tune what is asked for. BadRequest for what the user can mend: no GPU, unknown names, nothing to tune."""
    chosen = tunable(request.catalogue, request.ops, request.impls)
    if request.dry_run:
        return dry_run(request, chosen, display)
    without = "`--dry-run` compiles and prunes the candidates without one"
    if request.device == "cpu":
        raise BadRequest(f"tuning times kernels on an NVIDIA GPU; {without}")
    if reason := cuda_problem():
        raise BadRequest(f"tuning needs an NVIDIA GPU: {reason}; {without}")
    track = Track(request.catalogue, request.hang_s)
    try:
        return search(request, chosen, track.target, track.environment, track.race, display)
    finally:
        track.close()


def dry_run(request: Request, chosen: Sequence[tuple[Op, Impl]], display: Display) -> TuneReport:
    """Prune for every part of `request.sms`. The parts need not be here."""
    known = compile_targets()
    unknown = [sm for sm in request.sms if sm not in known]
    if unknown:
        raise BadRequest(f"sm_{unknown[0]} is unknown; known: {', '.join(map(str, known))}")
    targets = [known[sm] for sm in request.sms or known]
    found = [row for target in targets for row in pruned(request, wanted(request, chosen, target), target, display)]
    return TuneReport(part=", ".join(target.name for target in targets), pruned=tuple(found))


def wanted(request: Request, chosen: Sequence[tuple[Op, Impl]], target: Target) -> list[ShapeClass]:
    """The classes in the order in which they are tuned."""
    classes = shape_classes(chosen, request.suite, target)
    if request.only_new:
        classes = [c for c in classes if (target.name, c.impl, c.name) not in tuned.entries(c.op, request.root)]
    return in_turns([c for c in classes if (c.op, c.impl, c.name) not in request.without])


def pruned(request: Request, classes: Sequence[ShapeClass], target: Target, display: Display) -> Iterable[Pruned]:
    def progress(done: int, total: int) -> None:
        display.working("compiling", f"for sm_{target.sm}, {done} of {total}")

    return prune(classes, target, request.catalogue, request.workers or machine.usable_cores(), progress)


def search(
    request: Request,
    chosen: Sequence[tuple[Op, Impl]],
    target: Target,
    environment: Mapping[str, Any],
    race: Race,
    display: Display,
    clock: Callable[[], float] = time.monotonic,
) -> TuneReport:
    """Prune and race class after class until the budget is used up. An outcome is on disk before the next begins."""
    deadline = clock() + request.budget_s if request.budget_s else None
    outcomes: list[Outcome] = []
    files: dict[Path, None] = {}
    classes = wanted(request, chosen, target)
    interrupted, why = False, "the budget was used up"
    for row in pruned(request, classes, target, display):
        if interrupted or (deadline is not None and clock() > deadline):
            outcomes.append(Outcome(pruned=row, status="not reached", why=why))
            break
        display.working(row.shape_class.op, f"{row.shape_class.impl} [{row.shape_class.name}]")
        ends = clock() + request.pace_s / 2 if request.pace_s else math.inf

        def late(ends: float = ends) -> bool:
            return clock() > ends

        try:
            outcome = search_class(row, request.cap_s, race, late=late)
        except KeyboardInterrupt:
            interrupted, why = True, "interrupted"
            outcome = Outcome(pruned=row, status="not reached", why=why)
        outcomes.append(outcome)
        display.note(outcome.lines()[0])
        if outcome.evidence:
            files[write(outcome, target, environment, request.root)] = None
    reached = {outcome.pruned.shape_class.label for outcome in outcomes}
    for left in classes:
        if left.label not in reached:
            row = Pruned(shape_class=left, sm=target.sm, survivors=(), fallen=())
            outcomes.append(Outcome(pruned=row, status="not reached", why=why))
    return TuneReport(part=target.name, outcomes=tuple(outcomes), files=tuple(files), interrupted=interrupted)


def in_turns(classes: Sequence[ShapeClass]) -> list[ShapeClass]:
    """One class of each operation, then the next of each, so that every operation has some if the time ends early.

    Those with most bytes come first: the suite spends most of its time in them, and launches decide least there.
    """
    of_op: dict[str, list[ShapeClass]] = {}
    for shape_class in sorted(classes, key=lambda c: -c.bytes):
        of_op.setdefault(shape_class.op, []).append(shape_class)
    return round_robin(of_op.values())


def search_class(row: Pruned, cap_s: float, race: Race, late: Callable[[], bool] = lambda: False) -> Outcome:
    """Heats, the final, and the check on other cases, for one class. When it is `late`, no further heat begins."""
    if row.error:
        return Outcome(pruned=row, status="failed", why=row.error)
    if not row.survivors[1:]:
        return Outcome(pruned=row, status="default stands", why="no candidate survived the compiler")
    shape_class = row.shape_class
    first, *others = shape_class.cases
    wrong: dict[Config, str] = {}

    def run(case: Any, configs: Sequence[Config], seconds: float) -> dict[Config, Record]:
        """The records that have a time; the others are added to `wrong`."""
        times = race(shape_class, case, configs, seconds)
        wrong.update({config: reason for config, found in times.items() if (reason := untimed(found))})
        return {c: found for c, found in times.items() if isinstance(found, Record) and c not in wrong}

    ratios: dict[Config, float] = {}
    candidates = row.survivors[1:]
    tried = 0
    for heat in in_heats(candidates):
        if tried and late():
            break
        tried += len(heat)
        timed = run(first, [DEFAULT, *heat], HEAT_CAP_S)
        if DEFAULT not in timed:
            break
        ratios |= {c: seconds(r) / seconds(timed[DEFAULT]) for c, r in timed.items() if c != DEFAULT}
    finalists = sorted(ratios, key=ratios.__getitem__)[:FINALISTS]
    final = run(first, [DEFAULT, *finalists], cap_s) if DEFAULT not in wrong else {}
    if DEFAULT not in final:
        return Outcome(pruned=row, status="failed", why=f"the default: {wrong[DEFAULT]}", wrong=tuple(wrong.items()))
    ranked = sorted(final, key=lambda config: seconds(final[config]))
    winner = ranked[0]
    gain = ratio_interval(final[DEFAULT].samples_s, final[winner].samples_s)
    why = ""
    if winner != DEFAULT and gain.low <= 1 + GAIN:
        why = f"{config_text(winner)}: {signed(gain)} is no gain of {GAIN:.0%} beyond doubt"
    checks: dict[str, Interval] = {}
    for case in [others[i] for i in halving(len(others))[:CHECKED]] if winner != DEFAULT and not why else []:
        timed = run(case, [DEFAULT, winner], cap_s)
        if len(timed) < 2:
            why = f"on {case.id}: {'; '.join(f'{config_text(c)}: {wrong[c]}' for c in (DEFAULT, winner) if c in wrong)}"
            break
        checks[case.id] = ratio_interval(timed[DEFAULT].samples_s, timed[winner].samples_s)
        if checks[case.id].high < 1 - GAIN:
            why = f"{config_text(winner)} loses on {case.id}: {signed(checks[case.id])}"
            break
    config = DEFAULT if why else winner
    return Outcome(
        pruned=row,
        status="default stands" if config == DEFAULT else "tuned",
        config=config,
        evidence=evidence(first.id, final, config, checks if config != DEFAULT else {}, tried),
        why=why,
        wrong=tuple(wrong.items()),
    )


def untimed(record: Record | str) -> str:
    """Why a record's time does not count; empty if it does."""
    if isinstance(record, str):
        return record
    if record.status != "ok":
        return f"{record.status}: {record.reason}"
    void = sorted(VOID & set(record.flags))
    return ", ".join(void) or ("" if len(record.samples_s) > 1 else "too few samples")


def in_heats(candidates: Sequence[Config]) -> Iterator[Sequence[Config]]:
    for first in range(0, len(candidates), HEAT):
        yield candidates[first : first + HEAT]


def seconds(record: Record) -> float:
    assert record.seconds is not None
    return record.seconds


def signed(gain: Interval) -> str:
    return percent(gain.median - 1, gain.low - 1, gain.high - 1)


def evidence(
    case_id: str, final: Mapping[Config, Record], config: Config, checks: Mapping[str, Interval], tried: int
) -> dict[str, Any]:
    """What the final showed. Times are intervals in seconds; gains are time of the default / time - 1.

    `launches` says what ran, as `Record.config` does, so that a later change of the plan shows.
    """

    def timing(of: Config) -> dict[str, Any]:
        interval = final[of].interval
        assert interval
        return {"config": dict(of), "seconds": asdict(interval), "samples": len(final[of].samples_s)}

    chosen, default = final[config], final[DEFAULT]
    second = min((c for c in final if c != config), key=lambda c: seconds(final[c]), default=None)
    gain = ratio_interval(default.samples_s, chosen.samples_s)
    return {
        "case_id": case_id,
        "seconds": timing(config)["seconds"],
        "samples": len(chosen.samples_s),
        "bytes_per_s": chosen.bytes / seconds(chosen),
        "launches": chosen.config.get("launches", []),
        "default": {**timing(DEFAULT), "launches": default.config.get("launches", [])},
        "gain": gain.median - 1,
        "gain_interval": [gain.low - 1, gain.high - 1],
        "runner_up": timing(second) if second is not None else None,
        "tried": tried,
        "flags": sorted({*chosen.flags, *default.flags}),
        "also_on": [
            {"case_id": case, "gain": check.median - 1, "gain_interval": [check.low - 1, check.high - 1]}
            for case, check in checks.items()
        ],
    }


def write(outcome: Outcome, target: Target, environment: Mapping[str, Any], root: Path) -> Path:
    """Write an outcome, and where it was found, into its op's file."""
    git = environment["git"]
    packages = environment["packages"]
    entry = {
        "part": target.name,
        "impl": outcome.pruned.shape_class.impl,
        "shape_class": outcome.pruned.shape_class.name,
        "config": dict(outcome.config),
        "evidence": {
            **outcome.evidence,
            "driver": (environment.get("gpu") or {}).get("driver"),
            "torch": packages["torch"],
            "triton": packages["triton"],
            "date": datetime.now(UTC).date().isoformat(),
            "git": f"{git['sha']}{'+' if git['dirty'] else ''}" if git["sha"] else environment["source_digest"],
        },
    }
    op = outcome.pruned.shape_class.op
    return tuned.write(op, {(target.name, *outcome.key): entry}, root)
