"""The gate of a campaign: several worker processes check every implementation, and a fault costs one entry.

An entry is an implementation with a case that it supports. Its verdict is a line of `gate.jsonl`.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.measure.case import Settings
from bench.measure.worker import POLL_S, Job, Receiver, Worker
from bench.records import Record, Status, mend_tail
from kernels.op import Case, Op

if TYPE_CHECKING:
    from bench.operate.campaign.steps import Request

FILE = "gate.jsonl"

PROCESSES = 8
"""At most so many check at once: each holds its own context on the part, about half a GB."""

LONGEST_HANG_S = 60.0
"""An entry of the gate takes seconds. One that takes no step for this long hangs, and a third of the gate's time is the
most that it may cost."""


def check_all(directory: Path, asked: Request, limit_s: float) -> bool:
    """Check what has no verdict yet. False where the time was up before the end.

    An entry that hangs is failed, and a later call does not try it again. If the time is up first, it is failed where
    it took no step for half of the hang limit; otherwise it is open.
    """
    ends = time.monotonic() + limit_s
    hang_s = min(asked.hang_s, LONGEST_HANG_S, limit_s / 3)
    gate = Gate(directory)
    shares = max(1, min(PROCESSES, machine.usable_cores() // 2))
    with tempfile.TemporaryDirectory(prefix="decodebench-") as folder:
        workers = [
            Worker(device=asked.device, catalogue=asked.catalogue, hang_s=hang_s, output=Path(folder) / str(n))
            for n in range(shares)
        ]
        try:
            waiting = deque(jobs(asked, workers[0].ready.impls, verdicts(directory)))
            while time.monotonic() < ends:
                for worker in workers:
                    while waiting and not worker.busy:
                        if job := gate.without_hanging(waiting.popleft()):
                            worker.begin(job, gate)
                busy = [worker for worker in workers if worker.busy]
                if not busy:
                    return True
                wait([worker.fileno() for worker in busy], POLL_S)
                waiting.extendleft(left for worker in busy if (left := worker.step(0.0)))
            for worker in workers:
                worker.give_up(hang_s / 2)
        finally:
            for worker in workers:
                worker.kill()
    return False


def jobs(asked: Request, impls: Mapping[str, Mapping[str, bool]], done: list[dict[str, Any]]) -> Iterator[Job]:
    """All implementations of all `gate_cases`, but for those in `done`."""
    known = {(verdict["op"], verdict["impl"], verdict["case_id"]) for verdict in done}
    ops: dict[str, Op] = importlib.import_module(asked.catalogue).discover()
    for op in ops.values():
        for case in gate_cases(op, asked.suite):
            left = tuple(impl for impl in impls[op.name] if (op.name, impl, case.id) not in known)
            if left:
                yield Job(op=op.name, case=case, impls=left, settings=Settings(timed=False))


def gate_cases(op: Op, suite: str) -> list[Case]:
    """The small edgy `test` cases, and of every kind (types, layouts, lengths) in the suite its smallest case."""
    smallest: dict[tuple[str, ...], Case] = {}
    for case in sorted(op.cases(suite), key=lambda case: op.work(case).bytes):
        kind = tuple(v for k, v in case.as_dict().items() if isinstance(v, str) and k not in ("model", "layer"))
        smallest.setdefault(kind, case)
    found = [*op.cases("test"), *smallest.values()]
    return list({case.id: case for case in found}.values())


class Gate(Receiver):
    """Writes a line for each verdict; an implementation that does not support a case gets none."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        mend_tail(self._path)
        self._hanging = hanging(directory)

    def without_hanging(self, job: Job) -> Job | None:
        """The job without what hung in another case: a second hang would cost as much time and tell nothing new."""
        hung = [name for name in job.impls if (job.op, name) in self._hanging]
        for name in hung:
            self.write(job, name, "failed", f"not tried: {self._hanging[job.op, name]}")
        return job.only([name for name in job.impls if name not in hung])

    def record(self, job: Job, record: Record) -> None:
        if record.status != "refused":
            self.write(job, record.impl, record.status, record.reason)

    def lost(self, job: Job, name: str, status: Status, reason: str) -> None:
        self.write(job, name, "failed", reason, hangs=status == "timeout")

    def write(self, job: Job, impl: str, status: Status, reason: str | None, *, hangs: bool = False) -> None:
        line: dict[str, Any] = {"op": job.op, "impl": impl, "case_id": job.case.id, "status": status, "reason": reason}
        if hangs:
            line["hangs"] = True
            self._hanging[job.op, impl] = why_not_again(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def hanging(directory: Path) -> dict[tuple[str, str], str]:
    """(op, implementation) of what hung, and why it is not tried again."""
    return {(v["op"], v["impl"]): why_not_again(v) for v in verdicts(directory) if v.get("hangs")}


def why_not_again(verdict: Mapping[str, Any]) -> str:
    return f"it hung in the gate, in {verdict['case_id']}: {verdict['reason']}"


def verdicts(directory: Path) -> list[dict[str, Any]]:
    """What the gate has found so far; a line that a kill cut short is left out."""
    path = directory / FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
