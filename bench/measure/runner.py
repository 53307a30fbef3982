"""A run: a worker does job after job of a schedule, and all that it reports is written down.

This is the parent process. It imports neither torch nor triton, owns the run file, and survives whatever happens in the
worker.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
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
from bench.errors import BadRequest, require
from bench.files import Lock, new_directory, remove_if_empty
from bench.measure.precompile import precompile
from bench.measure.schedule import DEFAULT_SUITES, Request, check_names, resolve_request, schedule_jobs
from bench.measure.settings import THROTTLE_RETRIES
from bench.measure.worker import Job, Receiver, Worker
from bench.records import Record, Status, Writer, as_line, now
from bench.run import Run, load_run
from kernels.op import Op, Target

COMPILED_SHAPES = 3
"""Of each operation, so many shapes of an implementation that torch.compile builds: each takes 3 to 6 s."""

LASTING = 3
"""After so many cases in a row that stayed throttled, another try of the next would not help. The same holds at the end
of a run for cases that stay disturbed."""

AGAIN_SHARE = 0.25
"""Without a budget, disturbed cases are measured again for at most this share of the time that the run has taken."""


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
        """Records with which a run must not count as a success: wrong, broken, or faster than possible."""
        return [r for r in self.records if r.status in ("wrong", "failed", "timeout") or "impossible" in r.flags]


class Pretence(Protocol):
    """What a rehearsal puts in the place of the worker, the compilers and the clock."""

    def worker(self) -> Worker: ...
    def compile(self, jobs: Sequence[Job], budget_s: float | None) -> None: ...
    def clock(self) -> float: ...


def run(
    request: Request, out: Path, resume: Path | None, display: Display, pretence: Pretence | None = None
) -> Outcome:
    """Measure what is asked for into a new directory below `out`, or go on in `resume`.

    BadRequest for what the user can mend. A keyboard interrupt ends the run early; what was measured is kept.
    """
    ops: dict[str, Op] = importlib.import_module(request.catalogue).discover()
    check_names(request, ops)
    lock = Lock(resume) if resume and resume.is_dir() else None
    try:
        return _run(request, ops, out, resume, display, pretence)
    finally:
        if lock:
            lock.release()


def _run(
    request: Request,
    ops: dict[str, Op],
    out: Path,
    resume: Path | None,
    display: Display,
    pretence: Pretence | None,
) -> Outcome:
    earlier = load_run(resume) if resume else None
    if earlier:
        request = resolve_request(request, earlier)
    options: dict[str, Any] = {"device": request.device, "catalogue": request.catalogue, "hang_s": request.hang_s}
    worker = pretence.worker() if pretence else Worker(**options, tell=display.note)
    writer = lock = None
    try:
        ready = worker.ready
        require("implementation", request.impls, sorted({name for names in ready.impls.values() for name in names}))
        target, environment = ready.target, ready.environment
        request = dataclasses.replace(request, suite=request.suite or DEFAULT_SUITES[target.kind])
        spec = machine.device_spec(target, environment["gpu"] or {}) if target.kind == "cuda" else None
        if earlier:
            refuse_changes(earlier, environment, machine.source_digest(tuned=False) if request.retuned else None)
        code = environment["git"]["sha"] or environment["source_digest"]
        directory = resume or new_run_directory(out, ready.slug, code)
        lock = None if resume else Lock(directory)
        run_id = earlier.header.get("run_id", directory.name) if earlier else directory.name
        try:
            known = (ops, ready.impls, earlier, run_id, spec, ready.by_torch_compile)
            jobs, done = schedule_jobs(request, *known, on_host=target.kind == "cpu")
        except BadRequest:
            if not resume:
                remove_if_empty(directory, directory.parent)
            raise
        writer = Writer(directory)
        writer.append("run", header(request, run_id, target, spec, environment))
        for name, missing in ready.missing.items():
            for module in missing if not request.ops or name in request.ops else ():
                writer.append("note", {"note": "missing", "op": name, **asdict(module)})
        display.begin(target, directory, len(jobs) + done, done)
        session = Session(request, ops, worker, writer, display, earlier, pretence)
        session.serve(jobs, target)
        if not session.outcome.interrupted:
            writer.append("end", {"at": now()})
        return session.outcome
    finally:
        worker.kill()
        if writer:
            writer.close()
        if lock:
            lock.release()


def taken_by_others(record: Record) -> float:
    """The share of a host's cores that other programs and other machines had while this was measured."""
    host = record.telemetry.get("host") or {}
    return host.get("others", 0.0) + host.get("stolen", 0.0)


def why_not_again(record: Record) -> str:
    return f"not tried: it hung in {record.case_id}: {record.reason}"


def refuse_changes(earlier: Run, environment: dict[str, Any], code: str | None = None) -> None:
    """BadRequest unless machine, software and code are those with which the run began.

    `code` is the digest of the code without configurations, where these may differ.
    """
    before, after = facts(earlier.header.get("environment") or {}), facts(environment)
    if None in (before.get("gpu board"), after.get("gpu board")):  # an older run, or a driver that does not tell
        before["gpu board"] = after["gpu board"] = None
    if code and code == earlier.header.get("code_digest"):
        before["source_digest"] = after["source_digest"]
    changed = [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]
    if changed:
        raise BadRequest(f"can't resume {earlier.path}: {'; '.join(changed)}. Start a new run instead")


def facts(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an environment on which measurements depend, as one flat dict."""
    gpu = environment.get("gpu") or {}
    return {
        **{name: environment.get(name) for name in ("cpu", "cores", "python", "cuda", "source_digest")},
        **{f"gpu {name}": gpu.get(name) for name in ("name", "driver", "board")},
        **(environment.get("packages") or {}),
    }


def new_run_directory(out: Path, slug: str, code: str) -> Path:
    """Create `<out>/<device>/<UTC>-<git sha>`; outside a checkout, the digest of the sources stands for the sha.

    A run that begins in the same second gets a directory of its own, with `-2` behind the name.
    """
    return new_directory(out / slug / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{code[:7]}")


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
        "code_digest": machine.source_digest(tuned=False),
    }


def device_facts(target: Target, spec: DeviceSpec | None) -> dict[str, Any]:
    """The part, and the published numbers from which this run predicts."""
    facts: dict[str, Any] = {"key": spec.key if spec else None, "name": target.name}
    if spec:
        facts["memory_bandwidth"] = asdict(spec.memory_bandwidth) if spec.memory_bandwidth else None
        facts["peaks"] = {pipe: asdict(peak) for pipe, peak in spec.peaks.items()}
    return facts


class Session(Receiver):
    """The loop over jobs. It writes the file, and predicts from the ceilings measured so far."""

    def __init__(
        self,
        request: Request,
        ops: Mapping[str, Op],
        worker: Worker,
        writer: Writer,
        display: Display,
        earlier: Run | None,
        pretence: Pretence | None = None,
    ) -> None:
        self._pretence = pretence
        self.request, self.ops = request, ops
        self.worker, self.writer, self.display = worker, writer, display
        self.outcome = Outcome(directory=writer.path.parent)
        before = [*earlier.records, *earlier.repeats] if earlier else []
        self.outcome.records = [record for record in before if record.status != "skipped"]
        self._paired = {note["op"] for note in earlier.notes if note["note"] == "aa"} if earlier else set()
        self._hanging = {(op, impl): why for op, impl, why in request.hanging}
        self._hanging |= {(r.op, r.impl): why_not_again(r) for r in self.outcome.records if r.status == "timeout"}
        self._throttled_in_a_row, self._last_timed = 0, ("", "", 0)
        self._replaceable: dict[tuple[str, str, str, int], Record] = {}
        self._begun = self.clock()
        self._deadline = self._begun + (request.budget_s or math.inf)

    def clock(self) -> float:
        return self._pretence.clock() if self._pretence else time.monotonic()

    def compile(self, jobs: Sequence[Job], target: Target) -> None:
        request = self.request
        if self._pretence:
            self._pretence.compile(jobs, request.budget_s)
        else:
            precompile(jobs, request.catalogue, target, machine.usable_cores(), self.display.note, request.budget_s)

    def serve(self, jobs: Sequence[Job], target: Target) -> None:
        queue = deque(jobs)
        try:
            self.compile(jobs, target)
            while queue and self.clock() <= self._deadline:
                if (job := self.worth_measuring(queue.popleft())) and (left := self.measure(job, queue)):
                    queue.appendleft(left)
            self.skip(queue)
            if not queue:
                self.serve_disturbed(jobs)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            self.writer.append("note", {"note": "interrupted", "at": now()})

    def measure(self, job: Job, later: Iterable[Job]) -> Job | None:
        """Have a job done. Returns what a fault left of it."""
        self.display.working(job.op, job.case.id)
        ceilings = Ceilings.from_records(self.outcome.records)
        aa = self.pairs(job, later)
        settings = dataclasses.replace(job.settings, ceilings=ceilings, aa=aa, retries=self.retries)
        return self.worker.do(dataclasses.replace(job, settings=settings), self)

    def serve_disturbed(self, jobs: Iterable[Job]) -> None:
        """Measure the cases again that others disturbed, in the time that is left. The calmer times count."""
        now_s = self.clock()
        limit = min(self._deadline, now_s + AGAIN_SHARE * (now_s - self._begun))
        if self.request.budget_s is not None:
            limit = self._deadline
        disturbed = {(r.op, r.impl, r.case_id, r.repeat): r for r in self.outcome.records if "disturbed" in r.flags}
        in_a_row = 0
        for job in jobs:
            keys = {name: (job.op, name, job.case.id, job.settings.repeat) for name in job.impls}
            self._replaceable = {key: disturbed[key] for key in keys.values() if key in disturbed}
            again = job.only([name for name, key in keys.items() if key in disturbed])
            if again is None:
                continue
            if in_a_row >= LASTING or self.clock() > limit:
                break
            self.measure(again, ())
            in_a_row = in_a_row + 1 if self._replaceable else 0
        self._replaceable = {}

    def worth_measuring(self, job: Job) -> Job | None:
        """The job without what is known to cost too much. That is recorded as refused."""
        refused = {name: why for name in job.impls if (why := self.too_costly(job, name))}
        for name, why in refused.items():
            self.lost(job, name, "refused", why)
        return job.only([name for name in job.impls if name not in refused])

    def too_costly(self, job: Job, name: str) -> str | None:
        """Why an implementation is not tried in a case: it hung in another one, or it has compiled enough shapes."""
        if why := self._hanging.get((job.op, name)):
            return why
        if name not in self.worker.ready.by_torch_compile.get(job.op, ()):
            return None
        compiled = [r for r in self.outcome.records if (r.op, r.impl, r.repeat) == (job.op, name, job.settings.repeat)]
        if sum(r.status != "refused" for r in compiled) < COMPILED_SHAPES:
            return None
        return (
            f"torch.compile takes seconds for each shape: no more than {COMPILED_SHAPES} of an operation are measured"
        )

    @property
    def retries(self) -> int:
        """How often a case is measured again at once if it was throttled: not at all while that lasts."""
        return 0 if self._throttled_in_a_row >= LASTING else THROTTLE_RETRIES

    def watch_throttling(self, record: Record) -> None:
        """Count the cases that stayed throttled since the last one that did not."""
        key = (record.op, record.case_id, record.repeat)
        if record.samples_s and key != self._last_timed:
            self._last_timed = key
            self._throttled_in_a_row = self._throttled_in_a_row + 1 if "throttled" in record.flags else 0

    def pairs(self, job: Job, later: Iterable[Job]) -> bool:
        """Is one implementation of this case timed twice, for the A/A difference?

        Once per op, in the first case in which it succeeds. A ceiling begins with an empty launch, so it is not done
        there before its largest case.
        """
        if job.op in self._paired:
            return False
        op = self.ops[job.op]

        def size(each: Job) -> int:
            return op.work(each.case).bytes

        return not op.is_ceiling or all(size(job) >= size(each) for each in later if each.op == job.op)

    def skip(self, jobs: Collection[Job]) -> None:
        """Record the jobs for which there was no time, and tell how many cases they are and how to go on."""
        known = {(*record.key, record.repeat) for record in self.outcome.records}
        for job in jobs:
            for name in job.impls:
                # an earlier time stays, although another configuration is better
                if (job.op, name, job.case.id, job.settings.repeat) not in known:
                    self.lost(job, name, "skipped", "the time budget was used up")
        if cases := len({(job.op, job.case.id) for job in jobs}):
            self.display.note(
                f"time was up: {cases} case{'s are' if cases > 1 else ' is'} not measured; "
                f"go on with: decodebench run --resume {self.outcome.directory}"
            )

    # ---- what the worker reports

    def prediction(self, job: Job, line: dict[str, Any]) -> None:
        self.writer.append("prediction", line)

    def note(self, job: Job, line: dict[str, Any]) -> None:
        self._paired.add(job.op)
        self.writer.append("note", line)

    def record(self, job: Job, record: Record) -> None:
        key = (record.op, record.impl, record.case_id, record.repeat)
        if (earlier := self._replaceable.get(key)) is not None:
            if not record.is_timed or taken_by_others(record) >= taken_by_others(earlier):
                return
            self.outcome.records.remove(earlier)
            if "disturbed" not in record.flags:
                del self._replaceable[key]
        self.watch_throttling(record)
        if record.status == "timeout":
            self._hanging[record.op, record.impl] = why_not_again(record)
        self.writer.append("record", as_line(record))
        self.outcome.records.append(record)
        self.display.record(record)

    def lost(self, job: Job, name: str, status: Status, reason: str) -> None:
        record = Record(
            op=job.op,
            impl=name,
            ours=self.worker.ready.impls[job.op][name],
            case_id=job.case.id,
            case=job.case.as_dict(),
            status=status,
            reason=reason,
            work=asdict(self.ops[job.op].work(job.case)),
            seed=job.settings.seed,
            repeat=job.settings.repeat,
            measured_at=now(),
            run_id=job.settings.run_id,
        )
        self.record(job, record)
