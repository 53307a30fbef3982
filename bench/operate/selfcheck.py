"""Is our timer right? The same launches timed by clocks that others wrote, and how far each is from ours.

On a GPU: Triton's `do_bench` and `do_bench_cudagraph`, torch's profiler, and NVBench where `cuda-bench` is installed.
On a CPU: `torch.utils.benchmark.Timer` and `timeit`. All clocks take turns over the same rotating copies. The time
each of them gives for an empty kernel (its floor) is what it adds to every launch: what is left of a disagreement
without it is the part that nobody has explained.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import timeit
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import machine
from bench.errors import describe
from bench.measure.case import tensor_bytes
from bench.measure.timing import GraphTimer, HostTimer, Timer, plan_rotation, sample_interleaved
from bench.measure.worker import free_memory
from kernels.op import Launch, Op, Target, discover, implementations

AIM = 0.02
"""Clocks should agree within this share on kernels of at least `JUDGED_S`."""
JUDGED_S = 20e-6
"""Shorter ones are shown and not judged: there a clock's own floor decides."""

ROUNDS = 3
"""Every clock times every subject this often, taking turns; medians are compared."""

OURS = "decodebench"
CAP_S = 0.3
"""Seconds a clock spends on a subject in one round, where it can be told."""


class Missing(RuntimeError):
    """A clock that cannot be used here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is timed: `turn` launches on the next copy of the inputs, `timer` is ours over the same copies."""

    name: str
    turn: Launch
    timer: Timer
    floor: bool = False
    """An empty kernel: its time is what a clock adds to each launch."""


Clock = Callable[[Subject], float]
"""Seconds per launch."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One clock on one subject. Disagreements are shares of our time: (theirs - ours) / ours."""

    subject: str
    clock: str
    ours_s: float
    theirs_s: float | None
    disagreement: float | None
    without_floor: float | None
    """The same after what each of the two clocks adds to an empty kernel is taken off; None without a floor."""
    resolution: float
    """How far ours differed from itself between the rounds: (largest - smallest) / median."""
    within: bool | None
    """Within `AIM`; None where it is not judged: the kernel is too short, or ours itself varied by more."""
    note: str
    """Why the clock gave no time, or the known cause of its disagreement."""

    @property
    def mark(self) -> str:
        if self.within is None:
            return "short" if self.ours_s < JUDGED_S else "unsteady"
        return "ok" if self.within else "BEYOND"


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """All rows. Exit code 0: every clock that could be judged agrees; 1: one does not, or none could be judged."""

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
        unsteady = [row for row in self.rows if row.disagreement is not None and row.mark == "unsteady"]
        found = "nothing could be judged"
        if judged:
            share = sum(row.within is True for row in judged)
            found = f"{share} of {len(judged)} steady comparisons within {AIM:.0%}; the largest is {furthest(judged)}"
        elif not unsteady:
            found += ": the kernels are too short, or no other clock can be used"
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
                f"{row.mark:<8} {row.subject:<44} {row.clock:<20} {row.theirs_s * 1e6:11.2f} us, "
                f"ours {row.ours_s * 1e6:11.2f} us: {row.disagreement:+6.1%}{rest}"
            )
        notes |= {name: f"not timed: {reason}" for name, reason in self.skipped.items()}
        return [*shown, *(f"{name}: {note}" for name, note in notes.items()), self.verdict]


def furthest(rows: Iterable[Row]) -> str:
    """The largest disagreement, and where it was found."""
    row = max(rows, key=lambda row: abs(row.disagreement or 0.0))
    return f"{row.disagreement:+.1%} ({row.clock} on {row.subject})"


# ---- clocks


def ours(subject: Subject) -> float:
    samples = sample_interleaved({OURS: subject.timer}, cap_s=CAP_S)[OURS].samples_s
    return statistics.median(samples)


def triton_do_bench(subject: Subject) -> float:
    import triton.testing

    return triton.testing.do_bench(subject.turn, warmup=10, rep=50, return_mode="median") / 1e3


def triton_cudagraph(subject: Subject) -> float:
    import triton.testing

    return triton.testing.do_bench_cudagraph(subject.turn, rep=20, return_mode="median") / 1e3


def torch_profiler(subject: Subject, launches: int = 24) -> float:
    """Durations of all device events over the number of launches."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    subject.turn()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(launches):
            subject.turn()
        torch.cuda.synchronize()
    spans = [e.time_range.elapsed_us() for e in profiled.events() if e.device_type == DeviceType.CUDA]
    if not spans:
        raise Missing("the profiler saw no kernel")
    return sum(spans) / 1e6 / launches


class NVBench:
    """NVBench's own loop: an L2 flush, a blocking kernel, one launch between two events; the median of its samples.

    Its registry keeps every benchmark for good, so what is registered only borrows the subject.
    """

    def __init__(self) -> None:
        self._borrowed: dict[str, Launch] = {}
        self._numbers = itertools.count()

    def __call__(self, subject: Subject) -> float:
        try:
            from cuda import bench
            from cuda.bench.results import BenchmarkResult
        except ImportError as error:
            raise Missing(f"{error}; pip install cuda-bench") from None
        import torch

        name = f"decodebench_{next(self._numbers)}"
        self._borrowed[name] = subject.turn

        def benchmark(state: Any) -> None:
            def launch(given: Any) -> None:
                with torch.cuda.stream(torch.cuda.ExternalStream(given.get_stream().addressof())):
                    self._borrowed[name]()

            state.exec(launch, batched=False)

        bench.register(benchmark).set_name(name)
        device = str(torch.cuda.current_device())
        try:
            with tempfile.TemporaryDirectory(prefix="decodebench-") as folder:
                file = str(Path(folder) / "nvbench.json")
                options = ["--devices", device, "--timeout", "5", "--benchmark", name, "--jsonbin", file]
                bench.run_all_benchmarks(["decodebench", "--quiet", *options])
                medians = BenchmarkResult.from_json(file)[name].centers(statistics.median)
        finally:
            del self._borrowed[name]
        found = [seconds for seconds in medians.values() if seconds is not None]
        if not found:
            raise Missing("NVBench kept no sample (it discards throttled ones)")
        return float(found[0])


def torch_timer(subject: Subject) -> float:
    import torch
    from torch.utils.benchmark import Timer as TorchTimer

    timer = TorchTimer("turn()", globals={"turn": subject.turn}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=CAP_S).median


def python_timeit(subject: Subject) -> float:
    timer = timeit.Timer(subject.turn)
    count = min(10_000, max(5, int(CAP_S / max(1e-6, timer.timeit(1)))))
    return statistics.median(timer.repeat(repeat=count, number=1))


GPU_CLOCKS: dict[str, tuple[Clock, str]] = {
    "do_bench": (
        triton_do_bench,
        "two events around each launch, whose latency counts (its floor); it clears the L2 by writing, "
        "so that dirty lines are written back while the kernel runs",
    ),
    "do_bench_cudagraph": (
        triton_cudagraph,
        "a graph of launches like ours, with the start of the graph in it; events a replay apart",
    ),
    "torch profiler": (
        torch_profiler,
        "device timestamps of the kernels alone: ramp and gaps between kernels are not in it",
    ),
    "NVBench": (
        NVBench(),
        "one launch between events behind a blocking kernel, the L2 cleared by writing as with do_bench",
    ),
}
CPU_CLOCKS: dict[str, tuple[Clock, str]] = {
    "torch Timer": (torch_timer, "blocks of launches: what interrupts one of them is in it"),
    "timeit": (python_timeit, "one launch at a time, as ours, without Python's garbage collector"),
}


# ---- comparing


def compare(
    subjects: Iterable[Subject],
    clocks: Mapping[str, tuple[Clock, str]],
    *,
    our_clock: Clock = ours,
    rounds: int = ROUNDS,
) -> list[Row]:
    """Time each subject with ours and each other clock in turn. A clock that fails is named with its reason."""
    times: dict[str, dict[str, list[float]]] = {}
    gone: dict[tuple[str, str], str] = {}
    floor: str | None = None
    for subject in subjects:
        taken = times[subject.name] = {name: [] for name in (OURS, *clocks)}
        floor = subject.name if subject.floor else floor
        for _ in range(rounds):
            taken[OURS].append(our_clock(subject))
            for name, (clock, _note) in clocks.items():
                if (subject.name, name) in gone:
                    continue
                try:
                    taken[name].append(clock(subject))
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
            note,
        )
        for subject in medians
        for clock, (_, note) in clocks.items()
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
    note: str,
) -> Row:
    own, theirs = medians[OURS], medians.get(clock)
    if missing is not None or theirs is None:
        return Row(
            subject=subject,
            clock=clock,
            ours_s=own,
            theirs_s=None,
            disagreement=None,
            without_floor=None,
            resolution=resolution,
            within=None,
            note=missing or "no time",
        )
    difference = theirs - own
    added = floors[clock] - floors[OURS] if clock in floors and OURS in floors else None
    return Row(
        subject=subject,
        clock=clock,
        ours_s=own,
        theirs_s=theirs,
        disagreement=difference / own,
        without_floor=None if added is None else (difference - added) / own,
        resolution=resolution,
        within=abs(difference) <= AIM * own if own >= JUDGED_S and resolution <= AIM else None,
        note=note,
    )


# ---- what is timed


def make_subject(op: Op, case: Any, target: Target, floor: bool = False) -> Subject:
    """The first implementation that supports the case, ours before peers, over rotating copies."""
    found, _ = implementations(op.name)
    impl = next((impl for impl in found if impl.supports(case, target) is None), None)
    if impl is None:
        raise Missing(f"no implementation of {op.name} supports {case.id} here")
    copies = [op.inputs(case, target.device, 0)]
    # half of what a run may take: the other clocks need buffers too
    rotation = plan_rotation(tensor_bytes(copies[0]), op.work(case).bytes, target, free_memory(target) // 2)
    # an empty kernel has nothing to keep cold, and on a CPU every clock finds the caches alike
    count = 2 if floor or target.kind != "cuda" else rotation.copies
    copies += [op.inputs(case, target.device, seed) for seed in range(1, count)]
    launches = [impl.prepare(case, copy, target) for copy in copies]
    turns = itertools.cycle(launches)
    timer: Timer = GraphTimer(launches) if target.kind == "cuda" else HostTimer(launches)
    return Subject(name=f"{op.name} {case.id} {impl.name}", turn=lambda: next(turns)(), timer=timer, floor=floor)


def nearest(op: Op, suite: str, size: float, target: Target) -> Any:
    """The supported case of a suite whose compulsory bytes are nearest to `size`, in ratio."""
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
    """An empty kernel, two reads, one projection, one attention; smaller on a CPU. Made one at a time."""
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
