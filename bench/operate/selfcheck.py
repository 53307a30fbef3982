"""Is our timer right? Clocks that others wrote time the same launches, and each is compared with ours.

On a GPU: Triton's `do_bench` and `do_bench_cudagraph`, torch's profiler, and NVBench where `cuda-bench` is installed.
On a CPU: `torch.utils.benchmark.Timer` and `timeit`. All clocks take turns over the same rotating copies. The time that
a clock gives for an empty kernel is its floor: what it adds to every launch. What is judged is the disagreement that
remains after the floors are subtracted. A one-sided clock is judged on the side on which it cannot err.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench import machine
from bench.errors import describe
from bench.measure.copies import tensor_bytes
from bench.measure.memory import free_memory
from bench.measure.timing import GraphTimer, HostTimer, Timer, plan_rotation
from bench.operate.clocks import CPU_CLOCKS, GPU_CLOCKS, OURS, Clock, Missing, Other, Subject, ours
from kernels.op import Op, Target, discover, implementations

AIM = 0.02
"""Clocks should agree within this share, on kernels that take at least `JUDGED_S`."""
JUDGED_S = 200e-6
"""Shorter kernels are shown and not judged: a floor moves by microseconds from launch to launch, 2% of 200 us are 4."""

ROUNDS = 3
"""Every clock times every subject so many times, in turns. Medians are compared."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One clock on one subject. Disagreements are shares of our time: (theirs - ours) / ours."""

    subject: str
    clock: str
    ours_s: float
    theirs_s: float | None = None
    disagreement: float | None = None
    without_floor: float | None = None
    """The disagreement after the floors of the two clocks are subtracted; None without a floor."""
    resolution: float
    """How much ours varied between the rounds: (largest - smallest) / median."""
    within: bool | None = None
    """Within `AIM`? None if it is not judged: the kernel is too short, ours varied by more than `AIM`, or a one-sided
    clock differs to the side on which it must."""
    note: str
    """Why the clock gave no time, or the known cause of its disagreement."""
    errs: Literal["", "up", "down"] = ""
    """The side on which a one-sided clock errs."""

    @property
    def judged(self) -> float | None:
        """The disagreement that counts: without the floors where they are known."""
        return self.disagreement if self.without_floor is None else self.without_floor

    @property
    def mark(self) -> str:
        if self.within is None:
            if self.ours_s < JUDGED_S:
                return "short"
            return "unsteady" if self.resolution > AIM else "one-sided"
        return "ok" if self.within else "BEYOND"


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """All rows. Exit code 0: every clock that could be judged agrees. 1: one does not, or none could be judged."""

    device: str
    rows: tuple[Row, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    """Operations that could not be timed, and why."""

    @property
    def exit_code(self) -> int:
        judged = [row.within for row in self.rows if row.within is not None]
        return 0 if judged and all(judged) else 1

    @property
    def verdict(self) -> str:
        judged = [row for row in self.rows if row.within is not None]
        one_sided = [row for row in self.rows if row.disagreement is not None and row.mark == "one-sided"]
        unsteady = [row for row in self.rows if row.disagreement is not None and row.mark == "unsteady"]
        found = "nothing could be judged"
        if judged:
            share = sum(row.within is True for row in judged)
            found = f"{share} of {len(judged)} steady comparisons within {AIM:.0%}; the largest is {furthest(judged)}"
        elif not unsteady and not one_sided:
            found += ": the kernels are too short, or no other clock can be used"
        if one_sided:
            found += (
                f"; {len(one_sided)} by one-sided clocks differ to the side on which they must, which proves nothing"
            )
        if unsteady:
            were = "was" if len(unsteady) == 1 else "were"
            found += (
                f"; {len(unsteady)} {were} too unsteady to judge, the largest {furthest(unsteady)}: "
                "check again on an idle machine"
            )
        return f"{self.device}: {found}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "aim": AIM, "verdict": self.verdict}

    def lines(self) -> list[str]:
        """For a terminal: one line per comparison, each clock's note once, the verdict last."""
        shown: list[str] = []
        notes: dict[str, str] = {}
        for row in self.rows:
            if row.theirs_s is None or row.disagreement is None:
                notes[row.clock] = f"not used: {row.note}"
                continue
            notes[row.clock] = row.note
            rest = "" if row.without_floor is None else f", {row.without_floor:+6.1%} without its floor"
            shown.append(
                f"{row.mark:<9} {row.subject:<44} {row.clock:<20} {row.theirs_s * 1e6:11.2f} us, "
                f"ours {row.ours_s * 1e6:11.2f} us: {row.disagreement:+6.1%}{rest}"
            )
        notes |= {name: f"not timed: {reason}" for name, reason in self.skipped.items()}
        return [*shown, *(f"{name}: {note}" for name, note in notes.items()), self.verdict]


def furthest(rows: Iterable[Row]) -> str:
    """The largest disagreement, and its clock and subject."""
    row = max(rows, key=lambda row: abs(row.judged or 0.0))
    return f"{row.judged:+.1%} ({row.clock} on {row.subject})"


# ---- comparing


def compare(
    subjects: Iterable[Subject],
    clocks: Mapping[str, Other],
    *,
    our_clock: Clock = ours,
    rounds: int = ROUNDS,
) -> list[Row]:
    """Time each subject with ours and with each other clock in turn. A clock that fails gets a row with the reason."""
    times: dict[str, dict[str, list[float]]] = {}
    gone: dict[tuple[str, str], str] = {}
    floor: str | None = None
    for subject in subjects:
        taken = times[subject.name] = {name: [] for name in (OURS, *clocks)}
        floor = subject.name if subject.floor else floor
        for _ in range(rounds):
            taken[OURS].append(our_clock(subject))
            for name, other in clocks.items():
                if (subject.name, name) in gone:
                    continue
                try:
                    taken[name].append(other.clock(subject))
                except Exception as error:
                    gone[subject.name, name] = str(error) if isinstance(error, Missing) else describe(error)
        subject.timer.close()
    medians = {
        subject: {clock: statistics.median(values) for clock, values in taken.items() if values}
        for subject, taken in times.items()
    }
    floors = medians.get(floor or "", {})
    return [
        row(
            subject,
            clock,
            medians[subject],
            floors if subject != floor else {},
            spread(times[subject][OURS]),
            gone.get((subject, clock)),
            other,
        )
        for subject in medians
        for clock, other in clocks.items()
    ]


def spread(values: list[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)


def row(
    subject: str,
    clock: str,
    medians: Mapping[str, float],
    floors: Mapping[str, float],
    resolution: float,
    missing: str | None,
    other: Other,
) -> Row:
    own, theirs = medians[OURS], medians.get(clock)
    if missing is not None or theirs is None:
        return Row(
            subject=subject, clock=clock, ours_s=own, resolution=resolution, note=missing or "no time", errs=other.errs
        )
    difference = theirs - own
    added = floors[clock] - floors[OURS] if clock in floors and OURS in floors else None
    left = (difference - (added or 0.0)) / own
    known = (other.errs == "up" and left > AIM) or (other.errs == "down" and left < -AIM)
    return Row(
        subject=subject,
        clock=clock,
        ours_s=own,
        theirs_s=theirs,
        disagreement=difference / own,
        without_floor=None if added is None else left,
        resolution=resolution,
        within=abs(left) <= AIM if own >= JUDGED_S and resolution <= AIM and not known else None,
        errs=other.errs,
        note=other.note,
    )


# ---- what is timed


def make_subject(op: Op, case: Any, target: Target, floor: bool = False) -> Subject:
    """The first implementation that supports the case, ours before peers, launched on rotating copies."""
    found, _ = implementations(op.name)
    impl = next((impl for impl in found if impl.supports(case, target) is None), None)
    if impl is None:
        raise Missing(f"no implementation of {op.name} supports {case.id} here")
    copies = [op.inputs(case, target.device, 0)]
    # half the memory of a run: the other clocks need buffers too
    rotation = plan_rotation(tensor_bytes(copies[0]), op.work(case).bytes, target, free_memory(target) // 2)
    # an empty kernel has nothing to keep cold, and on a CPU the caches are the same for every clock
    count = 2 if floor or target.kind != "cuda" else rotation.copies
    copies += [op.inputs(case, target.device, seed) for seed in range(1, count)]
    launches = [impl.prepare(case, copy, target) for copy in copies]
    turns = itertools.cycle(launches)
    timer: Timer = GraphTimer(launches) if target.kind == "cuda" else HostTimer(launches)
    return Subject(name=f"{op.name} {case.id} {impl.name}", turn=lambda: next(turns)(), timer=timer, floor=floor)


def nearest(op: Op, suite: str, size: float, target: Target) -> Any:
    """The supported case of a suite whose compulsory bytes have the ratio to `size` that is nearest to 1."""
    found, _ = implementations(op.name)
    cases = [
        case
        for case in op.cases(suite)
        if op.work(case).bytes and any(impl.supports(case, target) is None for impl in found)
    ]
    if not cases:
        raise Missing(f"no case of {op.name} in the suite {suite} is supported here")
    return min(cases, key=lambda case: abs(math.log(op.work(case).bytes / size)))


def subjects(target: Target, skipped: dict[str, str]) -> Iterator[Subject]:
    """An empty kernel, two reads, one projection, one attention; smaller ones on a CPU. Made one at a time."""
    ops = discover()
    gpu = target.kind == "cuda"
    sizes = (64 << 20, 1 << 30) if gpu else (4 << 20, 64 << 20)

    def stream(**fields: Any) -> Callable[[], Any]:
        return lambda: ops["stream"].case_type(**fields)

    def of_suite(name: str) -> Callable[[], Any]:
        return lambda: nearest(ops[name], "quick" if gpu else "smoke", sizes[0], target)

    wanted = [
        ("stream", stream(kind="launch", size=4), True),
        *(("stream", stream(kind="read", size=size), False) for size in sizes),
        *((name, of_suite(name), False) for name in ("ffn_gemv", "attention_decode")),
    ]
    for name, case, floor in wanted:
        try:
            subject = make_subject(ops[name], case(), target, floor)
        except Exception as error:
            skipped[name] = str(error) if isinstance(error, Missing) else describe(error)
            continue
        yield subject


def selfcheck(device: str = "auto") -> SelfCheck:
    target = machine.detect(device)
    skipped: dict[str, str] = {}
    clocks = GPU_CLOCKS if target.kind == "cuda" else CPU_CLOCKS
    rows = compare(subjects(target, skipped), clocks)
    return SelfCheck(device=target.name, rows=tuple(rows), skipped=skipped)
