"""Drive the worker process through a plan, and keep every line that it earns.

The parent process: imports neither torch nor triton, owns the run file, survives whatever happens in the worker.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import multiprocessing
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from bench import __version__, machine
from bench.ceilings import Ceilings
from bench.devices import DeviceSpec
from bench.errors import BadRequest, unknown
from bench.measure.precompile import precompile
from bench.measure.schedule import Request, check_names, plan, settle
from bench.measure.worker import MARKER_BYTES, Job, main
from bench.records import Record, Status, Writer, as_line, now
from bench.run import Run, load_run
from kernels.op import Op, Target

START_S = 180.0
"""A worker imports torch and opens the device; on a cold disk that takes its time."""


class Display(Protocol):
    """Where progress is shown."""

    def begin(self, target: Target, directory: Path, total: int, done: int) -> None: ...
    def working(self, op: str, case_id: str) -> None: ...
    def record(self, record: Record) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(kw_only=True)
class Outcome:
    """What a run came to."""

    directory: Path
    records: list[Record] = field(default_factory=list)
    interrupted: bool = False

    @property
    def faults(self) -> list[Record]:
        """Records that a run must not end well with: wrong, broken, or faster than possible."""
        return [r for r in self.records if r.status in ("wrong", "failed", "timeout") or "impossible" in r.flags]


class Worker:
    """One worker process and the line to it."""

    def __init__(self, request: Request) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, far_end = context.Pipe()
        self._marker = context.Array("c", MARKER_BYTES, lock=False)
        self._process = context.Process(
            target=main, args=(far_end, self._marker, request.device, request.catalogue), daemon=True
        )
        self._process.start()
        far_end.close()
        self.hang_s = request.hang_s

    @property
    def marker(self) -> tuple[str, str]:
        """The implementation at work and its phase."""
        _, _, rest = self._marker.value.decode(errors="replace").partition("\t")
        impl, _, phase = rest.partition("\t")
        return impl, phase

    def send(self, content: Any) -> bool:
        """False where the worker has died; `receive` then tells how."""
        try:
            self._connection.send(content)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self, patience_s: float | None = None) -> tuple[str, Any]:
        """The next message; `("died", reason)` or `("hangs", reason)` when none will come."""
        limit = patience_s or self.hang_s
        seen, since = self._marker.value, time.monotonic()
        while True:
            try:
                if self._connection.poll(0.2):
                    return self._connection.recv()
            except (EOFError, ConnectionResetError):
                self._process.join(5)
                return "died", f"the worker process died ({exit_text(self._process.exitcode)})"
            if self._marker.value != seen:
                seen, since = self._marker.value, time.monotonic()
            if time.monotonic() - since > limit:
                return "hangs", f"no progress for {limit:.0f} s"

    def kill(self) -> None:
        self._process.kill()
        self._process.join(5)
        self._connection.close()


def exit_text(code: int | None) -> str:
    """`signal 9`, `exit code 1`."""
    if code is None:
        return "still running"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def run(request: Request, out: Path, resume: Path | None, display: Display) -> Outcome:
    """Measure what is asked for into a new directory below `out`, or go on in `resume`.

    BadRequest for what the user can mend. A keyboard interrupt ends the run early; what was measured is kept.
    """
    ops: dict[str, Op] = importlib.import_module(request.catalogue).discover()
    check_names(request, ops)
    earlier = load_run(resume) if resume else None
    worker, ready = start_worker(request)
    writer = None
    try:
        target: Target = ready["target"]
        request = settle(request, target, earlier)
        spec = machine.device_spec(target, ready["environment"]["gpu"] or {}) if target.kind == "cuda" else None
        if earlier:
            refuse_changes(earlier, ready["environment"])
        code = ready["environment"]["git"]["sha"] or ready["environment"]["source_digest"]
        directory = resume or new_directory(out, ready["slug"], code)
        run_id = earlier.header["run_id"] if earlier else directory.name
        jobs, done = plan(request, ops, ready["impls"], earlier, run_id, spec)
        writer = Writer(directory)
        writer.append("run", header(request, run_id, target, spec, ready["environment"]))
        for name, missing in ready["missing"].items():
            for module in missing if not request.ops or name in request.ops else ():
                writer.append("note", {"note": "missing", "op": name, **asdict(module)})
        display.begin(target, directory, len(jobs) + done, done)
        session = Session(request, ops, ready["impls"], worker, writer, display, earlier)
        session.serve(jobs, target)
        if not session.outcome.interrupted:
            writer.append("end", {"at": now()})
        session.outcome.directory = directory
        worker = session.worker
        return session.outcome
    finally:
        worker.kill()
        if writer:
            writer.close()


def count_into(directory: Path, request: Request) -> list[str]:
    """Read hardware counters and add them to the run; returns what to tell the user. Denied counters are a line."""
    from bench.inspection import counters

    suite = load_run(directory).header["suite"]
    found = counters.count(counters.Choice(suite=suite, ops=request.ops, impls=request.impls, case=request.case))
    writer = Writer(directory)
    if isinstance(found, counters.CountersDenied):
        writer.append("note", {"note": "counters denied", "reason": found.reason})
    else:
        for counted in found.counted:
            writer.append("note", {"note": "counters", **counted.as_dict()})
    writer.close()
    return found.lines()


def start_worker(request: Request) -> tuple[Worker, dict[str, Any]]:
    worker = Worker(request)
    kind, content = worker.receive(START_S)
    if kind != "ready":
        worker.kill()
        raise BadRequest(str(content))
    known = {name for names in content["impls"].values() for name in names}
    for name in request.impls:
        if name not in known:
            worker.kill()
            raise unknown("implementation", name, sorted(known))
    return worker, content


def hand_over(job: Job, worker: Worker, request: Request) -> Worker:
    """The worker that has the job: this one or, if it died while it had nothing to do, a fresh one.

    Compilers beside it may have taken the memory; no implementation is to blame.
    """
    if worker.send(job):
        return worker
    worker.kill()
    fresh, _ = start_worker(request)
    fresh.send(job)
    return fresh


def refuse_changes(earlier: Run, environment: dict[str, Any]) -> None:
    """A run is resumed on the same machine with the same software and code, or not at all."""
    before, after = facts(earlier.header["environment"]), facts(environment)
    changed = [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    if changed:
        raise BadRequest(f"can't resume {earlier.path}: {'; '.join(changed)}. Start a new run instead")


def facts(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an environment on which measurements depend, flat."""
    gpu = environment.get("gpu") or {}
    return {
        **{name: environment.get(name) for name in ("cpu", "cores", "python", "cuda", "source_digest")},
        **{f"gpu {name}": gpu.get(name) for name in ("name", "driver")},
        **(environment.get("packages") or {}),
    }


def new_directory(out: Path, slug: str, code: str) -> Path:
    """`<out>/<device>/<UTC>-<git sha>`; outside a checkout, the sources' digest."""
    return out / slug / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{code[:7]}"


def header(
    request: Request, run_id: str, target: Target, spec: DeviceSpec | None, environment: dict[str, Any]
) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "started": now(),
        "suite": request.suite,
        "argv": list(request.argv),
        "request": asdict(request),
        "target": asdict(target),
        "device": device_facts(target, spec),
        "decodebench": __version__,
        "environment": environment,
    }


def device_facts(target: Target, spec: DeviceSpec | None) -> dict[str, Any]:
    """The part and the published numbers that predictions of this run were made from."""
    facts: dict[str, Any] = {"key": spec.key if spec else None, "name": target.name}
    if spec:
        facts["memory_bandwidth"] = asdict(spec.memory_bandwidth) if spec.memory_bandwidth else None
        facts["peaks"] = {pipe: asdict(peak) for pipe, peak in spec.peaks.items()}
    return facts


class Session:
    """The loop over jobs: keeps the worker alive, the file written, and the ceilings known."""

    def __init__(
        self,
        request: Request,
        ops: Mapping[str, Op],
        impls: Mapping[str, Mapping[str, bool]],
        worker: Worker,
        writer: Writer,
        display: Display,
        earlier: Run | None,
    ) -> None:
        self.request, self.ops, self.impls = request, ops, impls
        self.worker, self.writer, self.display = worker, writer, display
        self.outcome = Outcome(directory=writer.path.parent)
        before = [*earlier.records, *earlier.repeats] if earlier else []
        self.outcome.records = [record for record in before if record.status != "skipped"]
        self._paired = {note["op"] for note in earlier.notes if note["note"] == "aa"} if earlier else set()
        self._deadline = time.monotonic() + (request.budget_s or math.inf)

    def serve(self, jobs: Sequence[Job], target: Target) -> None:
        queue = deque(jobs)
        try:
            request = self.request
            precompile(jobs, request.catalogue, target, machine.usable_cores(), self.display.note, request.budget_s)
            while queue and time.monotonic() <= self._deadline:
                job = queue.popleft()
                self.display.working(job.op, job.case.id)
                rest = self.do(job, aa=self.pairs(job, queue))
                if rest.impls:
                    queue.appendleft(rest)
            self.skip(queue)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            self.writer.append("note", {"note": "interrupted", "at": now()})

    def pairs(self, job: Job, later: Iterable[Job]) -> bool:
        """Is this the case of its op of which one implementation is entered twice?

        The first of which that succeeds; of a ceiling none before its largest: it begins with an empty launch.
        """
        if job.op in self._paired:
            return False
        op = self.ops[job.op]

        def size(each: Job) -> int:
            return op.work(each.case).bytes

        return not op.is_ceiling or all(size(job) >= size(each) for each in later if each.op == job.op)

    def do(self, job: Job, *, aa: bool) -> Job:
        """Run one job; returns what is left of it after a fault, with no implementations if nothing is."""
        ceilings = Ceilings.from_records(self.outcome.records)
        worker = hand_over(dataclasses.replace(job, ceilings=ceilings, aa=aa), self.worker, self.request)
        if worker is not self.worker:
            self.worker = worker
            self.display.note("the worker process died while it waited; going on with a fresh worker")
        left = list(job.impls)
        while True:
            kind, content = self.worker.receive()
            if kind == "prediction":
                self.writer.append("prediction", {"run_id": job.run_id, "repeat": job.repeat, **content})
                self.worker.send("on disk")
            elif kind == "record":
                self.keep(content)
                left.remove(content.impl)
            elif kind == "note":
                self._paired.add(job.op)
                self.writer.append("note", content)
            elif kind == "done":
                return dataclasses.replace(job, impls=())
            else:
                return dataclasses.replace(job, impls=tuple(self.blame(job, left, kind, content)))

    def blame(self, job: Job, left: list[str], kind: str, reason: str) -> list[str]:
        """The worker is lost: record whose fault it was, start another; returns who is still to be measured."""
        guilty, phase = self.worker.marker
        self.worker.kill()
        nobody_yet = left == list(job.impls)
        blamed = [guilty] if guilty in left else list(left) if nobody_yet else []
        for name in blamed:
            status: Status = "timeout" if kind == "hangs" else "failed"
            self.keep(self.lost_record(job, name, status, f"{reason} during {phase or 'the start'}"))
            left.remove(name)
        self.display.note(f"{job.op} {job.case.id}: {reason}; going on with a fresh worker")
        self.worker, _ = start_worker(self.request)
        return left

    def keep(self, record: Record) -> None:
        self.writer.append("record", as_line(record))
        self.outcome.records.append(record)
        self.display.record(record)

    def skip(self, jobs: Collection[Job]) -> None:
        """Record what there was no time for, and tell how many cases, and how to go on."""
        for job in jobs:
            for name in job.impls:
                self.keep(self.lost_record(job, name, "skipped", "the time budget was used up"))
        if cases := len({(job.op, job.case.id) for job in jobs}):
            self.display.note(
                f"time was up: {cases} case{'s are' if cases > 1 else ' is'} not measured; "
                f"go on with: decodebench run --resume {self.outcome.directory}"
            )

    def lost_record(self, job: Job, impl: str, status: Status, reason: str) -> Record:
        """A record made by the parent, for what the worker could not report itself."""
        op = self.ops[job.op]
        return Record(
            op=job.op,
            impl=impl,
            ours=self.impls[job.op][impl],
            case_id=job.case.id,
            case=job.case.as_dict(),
            status=status,
            reason=reason,
            work=asdict(op.work(job.case)),
            seed=job.seed,
            repeat=job.repeat,
            measured_at=now(),
            run_id=job.run_id,
        )
