"""A whole lease without a GPU: the campaign's own order, budgets, schedule and files, with a pretended H200 and clock.

Steps, shares, time limits, resume, the order of cases, the run's file and the report are the real code. The machine is
pretended: a launch takes what the datasheet's model predicts, and everything around it the times stated below. They
are estimates for 16 cores that no GPU has confirmed yet. Two kernels are really compiled here, for the estimate of
compiling all. What the machine here lacks ends the rehearsal before any of it: no minute is paid yet.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from bench import machine
from bench.devices import DeviceSpec, find
from bench.errors import BadRequest, describe
from bench.inspection import ncu
from bench.inspection.counters import Choice
from bench.measure import precompile, runner
from bench.measure.worker import Job, Ready, Receiver, Worker
from bench.operate.campaign import gate, steps, tuning
from bench.operate.campaign.outcome import CampaignOutcome, Progress
from bench.predict.roofline import predict_from_datasheet
from bench.records import Record, now
from kernels.op import Impl, Target, discover, implementations

PART = "h200"
CORES = 16
CALLS = 6
"""The rehearsal ends after so many calls, whatever is left then."""

START_S = 12.0
"""A process that loads torch and opens the device."""
DOCTOR_S = 20.0
SELFCHECK_S = 45.0
GATE_ENTRY_S = 0.55
"""One implementation and case in the gate, its compilation included."""
CASE_S = 0.6
"""What a case takes beside its implementations: inputs, references, final check."""
IMPL_S = 0.25
"""Preparing, gate and capture of one implementation."""
SAMPLING_S = 0.1
TORCH_COMPILE_S = 5.0
CLASS_S = 3.0
"""Tuning one shape class: a heat, a final, and a check on two other cases."""
COUNT_S = 2.0
"""One launch under ncu, with its replays."""
MEMORY_PER_PROCESS = 1 << 30
MEMORY_BASE = 4 << 30
DISK_BYTES = 4 << 30
"""Triton's and torch's caches, the records and the report."""

LACKS = ("compiler", "headers", "memory", "disk")


def check_machine(lacks: Sequence[str] = ()) -> None:
    """BadRequest for the first thing that this machine lacks, or is pretended to lack."""
    if unknown := [name for name in lacks if name not in LACKS]:
        raise BadRequest(f"unknown lack {unknown[0]!r}; known: {', '.join(LACKS)}")
    processes = min(machine.usable_cores(), precompile.PROCESSES)
    need = MEMORY_BASE + processes * MEMORY_PER_PROCESS
    memory = 0 if "memory" in lacks else machine.memory_bytes()
    disk = 0 if "disk" in lacks else shutil.disk_usage(tempfile.gettempdir()).free
    for lacking, why in (
        ("compiler" in lacks or machine.c_compiler() is None, "no C compiler, which Triton needs for every kernel"),
        (
            "headers" in lacks or not machine.python_headers(),
            "no Python.h, which every kernel's launcher includes",
        ),
        (memory < need, f"{memory / 2**30:.0f} GiB of memory; {processes} compilers need {need / 2**30:.0f}"),
        (disk < DISK_BYTES, f"{disk / 2**30:.0f} GiB of free disk; caches and records need {DISK_BYTES / 2**30:.0f}"),
    ):
        if lacking:
            raise BadRequest(f"not fit to be rented for: {why}")


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What must be compiled for a suite: how many kernels, and seconds of one as measured here."""

    count: int
    seconds: float

    def wall_s(self) -> float:
        return START_S + self.count * self.seconds / min(CORES, precompile.PROCESSES)


def compile_two(suite: str, target: Target) -> Kernels:
    """List the kernels of a suite, and compile the first and the last of them without a cache."""
    from triton import knobs

    from bench.inspection.codegen import build

    suites = ["quick", "full"] if suite == "full" else [suite]
    tasks, failed = build.collect(None, [target], suites)
    if failed:
        raise BadRequest(f"{failed[0].op} {failed[0].impl}, {failed[0].case_id}: {failed[0].error}")
    took = []
    with knobs.compilation.scope():
        knobs.compilation.always_compile = True
        for task in (tasks[0], tasks[-1]):
            impl = next(i for i in implementations(task.op)[0] if i.name == task.impl)
            launch = build.launches(discover()[task.op], impl, task.case, target)[task.index]
            began = time.perf_counter()
            build.compiled(launch, target.sm)
            took.append(time.perf_counter() - began)
    return Kernels(count=len(tasks), seconds=sum(took) / len(took))


@dataclass
class Clock:
    """Pretended time, and what it was spent on."""

    now: float = 0.0
    spent: list[tuple[float, float, str]] = field(default_factory=list)
    """(begin, seconds, what)."""

    def spend(self, seconds: float, what: str) -> None:
        self.spent.append((self.now, seconds, what))
        self.now += seconds


class Machine:
    """The pretended H200: a `runner.Pretence`."""

    def __init__(self, suite: str, kernels: Kernels | None, hangs: tuple[str, str] | None) -> None:
        self.spec: DeviceSpec = find(PART)
        self.target = dataclasses.replace(self.spec.target(), name=self.spec.driver_names[0])
        self.time = Clock()
        self.hangs = hangs
        self.kernels = kernels or compile_two(suite, self.spec.target())
        self._compiled = False
        environment = machine.environment()
        gpu = {"name": self.target.name, "driver": "rehearsed", "unavailable": {}}
        impls = {name: implementations(name) for name in discover()}
        self.ready = Ready(
            target=self.target,
            environment={**environment, "gpu": gpu, "cores": CORES},
            slug=f"rehearsed-{machine.device_slug(self.target)}",
            impls={name: {impl.name: impl.ours for impl in found} for name, (found, _) in impls.items()},
            missing={name: missing for name, (_, missing) in impls.items()},
            by_torch_compile={
                name: tuple(impl.name for impl in found if impl.by_torch_compile) for name, (found, _) in impls.items()
            },
        )

    def clock(self) -> float:
        return self.time.now

    def worker(self) -> Worker:
        self.time.spend(START_S, "the worker starts")
        return cast(Worker, Hand(self))

    def compile(self, jobs: Sequence[Job], budget_s: float | None) -> None:
        """All kernels in the first call; later ones are in Triton's cache."""
        limit = precompile.LIMIT_S if budget_s is None else min(precompile.LIMIT_S, budget_s / 4)
        if len(jobs) >= precompile.FEWEST_JOBS and not self._compiled:
            self.time.spend(min(limit, self.kernels.wall_s()), f"{self.kernels.count} kernels are compiled")
            self._compiled = True

    def refusal(self, op: str, impl: Impl, case: Any) -> str | None:
        """Why an implementation does not run here; a peer that asks the absent device is taken to run."""
        if discover()[op].link_bytes:
            return "needs several GPUs, and a rehearsal pretends one"
        try:
            return impl.supports(case, self.target)
        except Exception:
            return None


class Hand:
    """Stands for the worker process: each case advances the clock, and each implementation gets a record."""

    def __init__(self, at: Machine) -> None:
        self._at, self.ready = at, at.ready

    def kill(self) -> None: ...

    def do(self, job: Job, receiver: Receiver) -> Job | None:
        op, found = discover()[job.op], []
        for impl in job.chosen(implementations(job.op)[0]):
            refusal = self._at.refusal(job.op, impl, job.case)
            found.append((impl, refusal))
        ready = [impl for impl, refusal in found if refusal is None]
        seconds = CASE_S + sum(IMPL_S + SAMPLING_S + TORCH_COMPILE_S * impl.by_torch_compile for impl in ready)
        self._at.time.spend(seconds if ready else 0.01, job.op)
        for impl, refusal in found:
            fields: dict[str, Any] = {"op": job.op, "impl": impl.name, "ours": impl.ours, "case_id": job.case.id}
            fields |= {"case": job.case.as_dict(), "work": dataclasses.asdict(op.work(job.case)), "measured_at": now()}
            fields |= {"seed": job.settings.seed, "repeat": job.settings.repeat, "run_id": job.settings.run_id}
            receiver.record(job, Record(**fields, **self.outcome(impl, job, refusal)))
        return None

    def outcome(self, impl: Impl, job: Job, refusal: str | None) -> dict[str, Any]:
        if refusal is not None:
            return {"status": "refused", "reason": refusal}
        try:
            stages = tuple(impl.stages(job.case, self._at.target))
            predicted = predict_from_datasheet(stages, self._at.spec)
        except Exception as error:
            return {"status": "failed", "reason": describe(error)}
        seconds = max(predicted.seconds, 1e-6)
        return {
            "status": "ok",
            "stages": [dataclasses.asdict(stage) for stage in stages],
            "prediction": {"datasheet": dataclasses.asdict(predicted), "measured": None, "at": now()},
            "samples_s": [seconds * (1 + 1e-4 * (i % 7)) for i in range(60)],
            "stop": "converged",
        }


class Rehearsed(steps.Campaign):
    """A campaign whose steps advance the pretended clock; `measure` is the real one on the pretended machine."""

    def __init__(self, request: steps.Request, directory: Path, display: runner.Display, on: Machine) -> None:
        self.pretence = self.on = on
        super().__init__(request, directory, display)

    def doctor(self, progress: Progress, limit_s: float) -> None:
        self.on.time.spend(min(DOCTOR_S, limit_s), "doctor")
        progress.state, progress.found = "done", ["fit, as rehearsed"]

    def gate(self, progress: Progress, limit_s: float) -> None:
        """Several processes share the entries. One that hangs holds one of them until it is given up."""
        shares = max(1, min(gate.PROCESSES, CORES // 2))
        all_entries = sum(
            self.on.refusal(op.name, impl, case) is None
            for op in discover().values()
            for case in gate.gate_cases(op, self.request.suite)
            for impl in implementations(op.name)[0]
        )
        left = progress.result.get("left", all_entries)
        hang_s = min(self.request.hang_s, gate.LONGEST_HANG_S, limit_s / 3) if self.on.hangs and left else 0.0
        time_s = max(0.0, (limit_s - START_S) * shares - hang_s)
        done = min(left, int(time_s / GATE_ENTRY_S))
        # the other processes go on, so the hang lasts longer than they only where little is left to check
        self.on.time.spend(START_S + max((done * GATE_ENTRY_S + hang_s) / shares, hang_s), "gate")
        if self.on.hangs and left:
            op, impl = self.on.hangs
            job = Job(op=op, case=discover()[op].cases("test")[0], impls=(impl,))
            gate.Gate(self.directory).lost(job, impl, "timeout", f"no progress for {hang_s:.0f} s during check")
        progress.result = {"left": left - done}
        progress.state = "open" if left > done else "done"
        progress.found = [f"{done} entries checked, {left - done} left"]

    def tune(self, progress: Progress, limit_s: float) -> None:
        classes = len(tuning.classes_of(steps.quick_of(self.request.suite), self.on.target))
        left = progress.result.get("left", classes)
        budget_s = limit_s - tuning.START_S
        class_s = min(CLASS_S, tuning.pace_s(budget_s, classes))
        done = min(left, -int(-budget_s // class_s))
        self.on.time.spend(START_S + done * class_s, "tune")
        progress.result = {"left": left - done}
        progress.state = "open" if left > done else "done"
        progress.found = [f"{done} classes tuned, {left - done} of {classes} left"]

    def selfcheck(self, progress: Progress, limit_s: float) -> None:
        self.on.time.spend(min(SELFCHECK_S, limit_s), "selfcheck")
        if limit_s < SELFCHECK_S:
            raise BadRequest(f"selfcheck was not done after its {limit_s:.0f} s")
        progress.state, progress.found = "done", ["the clocks agree, as rehearsed"]

    def counters(self, progress: Progress, limit_s: float) -> None:
        """No launch begins after half of the time."""
        from bench.inspection.counters_child import choose

        launches = progress.result.get("left")
        if launches is None:
            launches = len(choose(Choice(suite=steps.quick_of(self.request.suite)), self.on.target))
        done = min(launches, int((limit_s / 2 - START_S) / COUNT_S))
        self.on.time.spend(START_S + done * COUNT_S, "counters")
        progress.result = {"left": launches - done}
        progress.state = "open" if launches > done else "done"
        progress.found = [f"{done} launches counted, {launches - done} left"]


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The schedule, minute by minute, of each call until nothing was left."""

    kernels: Kernels
    ncu_command: str
    calls: tuple[CampaignOutcome, ...]
    took_s: tuple[float, ...]
    minutes: tuple[tuple[str, ...], ...]
    budget_s: float
    exit_code: int = 0
    """A lack of the machine is a `BadRequest` instead."""

    @property
    def left(self) -> list[str]:
        return self.calls[-1].left

    def lines(self) -> list[str]:
        shown = [
            f"a rehearsal on a pretended {PART.upper()} with {CORES} cores: times are estimates, nothing was measured",
            f"to compile for sm_90: {self.kernels.count} kernels, {self.kernels.seconds:.1f} s each on one core here, "
            f"about {self.kernels.wall_s():.0f} s there",
            f"counters: {self.ncu_command}",
            f"time-outs: an entry that hangs {gate.LONGEST_HANG_S:.0f} s or a third of the gate's share; "
            f"compiling {precompile.LIMIT_S:.0f} s or a quarter of the measurement's; "
            f"tuning {tuning.LIMIT_S:.0f} s of a call",
        ]
        for number, (outcome, took, minutes) in enumerate(zip(self.calls, self.took_s, self.minutes, strict=True), 1):
            shown += ["", f"call {number}: {took:.0f} of {self.budget_s:.0f} s", *minutes]
            shown += [f"  {name}: {step.state}: {'; '.join(step.found)}" for name, step in outcome.steps.items()]
            shown.append(f"  left out: {', '.join(outcome.left) or 'nothing'}")
            total = sum(outcome.files.values())
            shown.append(f"  to bring home: {len(outcome.files)} files, {total / 1e6:.1f} MB")
        return shown

    def as_dict(self) -> dict[str, Any]:
        return {
            "part": PART,
            "kernels": dataclasses.asdict(self.kernels),
            "ncu": self.ncu_command,
            "calls": [
                {
                    "seconds": round(took, 1),
                    "minutes": list(minutes),
                    "steps": {name: dataclasses.asdict(step) for name, step in outcome.steps.items()},
                    "left": outcome.left,
                    "files": outcome.files,
                }
                for outcome, took, minutes in zip(self.calls, self.took_s, self.minutes, strict=True)
            ],
            "left": self.left,
        }


def rehearse(
    request: steps.Request,
    display: runner.Display,
    *,
    lacks: Sequence[str] = (),
    kernels: Kernels | None = None,
    hangs: tuple[str, str] | None = None,
    calls: int = CALLS,
) -> Rehearsal:
    """Go through calls with the budget of the request until nothing is left. BadRequest where the machine lacks what a
    lease needs. `kernels` is what there is to compile, where it is known; `hangs` (op, implementation) hangs."""
    check_machine(lacks)
    on = Machine(request.suite, kernels, hangs)
    outcomes, took, minutes = [], [], []
    with tempfile.TemporaryDirectory(prefix="decodebench-") as folder:
        root = Path(folder) / "tuned"
        asked = dataclasses.replace(request, device="cuda", root=root)
        for _ in range(calls):
            on.time = Clock(now=on.time.now)
            began = on.time.now
            outcomes.append(steps.go_through(Rehearsed(asked, Path(folder) / "out", display, on)))
            took.append(on.time.now - began)
            minutes.append(by_minute(on.time.spent, began))
            if not outcomes[-1].left:
                break
    command = ncu.command("ncu", ncu.metrics_to_ask(set()), Path("ncu.csv"), Path("plan.json"))
    return Rehearsal(
        kernels=on.kernels,
        ncu_command=" ".join(["ncu", *command[1 : command.index("--metrics")], "..."]),
        calls=tuple(outcomes),
        took_s=tuple(took),
        minutes=tuple(minutes),
        budget_s=request.budget_s,
    )


def by_minute(spent: Sequence[tuple[float, float, str]], began: float) -> tuple[str, ...]:
    """`  2:00  gate 12 s; measure: stream 5 cases 10 s`: what a minute was spent on, in the order in which it began."""
    minutes: dict[int, dict[str, float]] = {}
    begun: dict[int, Counter[str]] = {}
    for start, seconds, what in spent:
        at, ends = start - began, start - began + seconds
        begun.setdefault(int(at // 60), Counter())[what] += 1
        while at < ends:
            until = min(ends, 60 * (at // 60 + 1))
            minute = minutes.setdefault(int(at // 60), {})
            minute[what] = minute.get(what, 0.0) + until - at
            at = until
    ops = discover()

    def text(minute: int, what: str, seconds: float) -> str:
        number = begun.get(minute, Counter())[what]
        cases = f" {number} case{'s' * (number != 1)}" if what in ops and number else ""
        return f"{what}{cases} {seconds:.0f} s"

    return tuple(
        f"  {minute}:00  " + "; ".join(text(minute, what, seconds) for what, seconds in found.items())
        for minute, found in sorted(minutes.items())
        if any(round(seconds) for seconds in found.values())
    )
