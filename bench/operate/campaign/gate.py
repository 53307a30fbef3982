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


def check_all(directory: Path, asked: Request, limit_s: float) -> bool:
    """Check what has no verdict yet. False where the time was up before the end."""
    ends = time.monotonic() + limit_s
    gate = Gate(directory / FILE, asked.hang_s)
    shares = max(1, min(PROCESSES, machine.usable_cores() // 2))
    with tempfile.TemporaryDirectory(prefix="decodebench-") as folder:
        workers = [
            Worker(device=asked.device, catalogue=asked.catalogue, hang_s=asked.hang_s, output=Path(folder) / str(n))
            for n in range(shares)
        ]
        try:
            waiting = deque(jobs(asked, workers[0].ready.impls, verdicts(directory)))
            while time.monotonic() < ends:
                for worker in workers:
                    if waiting and not worker.busy:
                        worker.begin(waiting.popleft(), gate)
                busy = [worker for worker in workers if worker.busy]
                if not busy:
                    return True
                wait([worker.fileno() for worker in busy], POLL_S)
                waiting.extendleft(left for worker in busy if (left := worker.step(0.0)))
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

    def __init__(self, path: Path, hang_s: float) -> None:
        self._path, self._hang_s = path, hang_s
        mend_tail(path)

    def record(self, job: Job, record: Record) -> None:
        if record.status != "refused":
            self.write(job, record.impl, record.status, record.reason)

    def lost(self, job: Job, name: str, status: Status, reason: str) -> None:
        self.write(job, name, "failed", f"no verdict within {self._hang_s:.0f} s" if status == "timeout" else reason)

    def write(self, job: Job, impl: str, status: Status, reason: str | None) -> None:
        line = {"op": job.op, "impl": impl, "case_id": job.case.id, "status": status, "reason": reason}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def verdicts(directory: Path) -> list[dict[str, Any]]:
    """What the gate has found so far; a line that a kill cut short is left out."""
    path = directory / FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
