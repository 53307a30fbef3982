"""The process in which cases run: a fault there costs one implementation of one case, never the run.

The parent (`runner.py`) never imports torch. It sends jobs; the worker answers with messages `(kind, content)`:
`ready` once, then for each job any number of `prediction` (acknowledged by the parent once it is on disk), `record`
and `note`, and one `done`. Which implementation is at work stands in a few bytes of shared memory, so that the
parent can tell whose fault a crash or a hang was.
"""

from __future__ import annotations

import importlib
import os
import signal
import threading
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from bench import machine
from bench.ceilings import Ceilings
from bench.devices import DeviceSpec
from bench.devices.driver import GpuSession, open_gpu_or_none
from bench.errors import BadRequest, describe
from bench.measure.case import Broken, Settings, measure
from bench.measure.telemetry import Sampler
from bench.records import Record
from kernels.op import Case, Config, Target

MARKER_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Job:
    """One case with the implementations that are still to be measured."""

    op: str
    case: Case
    impls: tuple[str, ...]
    cap_s: float
    seed: int
    repeat: int
    run_id: str
    aa: bool
    spec: DeviceSpec | None
    ceilings: Ceilings | None
    configs: tuple[Config, ...] = ()
    """For the offline tuner: each implementation in each of these configurations, named after it."""


class Pipe:
    """A `measure.Listener` at the other end of a connection."""

    def __init__(self, connection: Connection, marker: Any) -> None:
        self._connection, self._marker = connection, marker
        self._steps = 0

    def entering(self, impl: str, phase: str) -> None:
        self._steps += 1
        text = f"{self._steps}\t{impl}\t{phase}".encode()
        self._marker.value = text[: MARKER_BYTES - 1]

    def prediction(self, line: dict[str, Any]) -> None:
        self._connection.send(("prediction", line))
        self._connection.recv()

    def record(self, record: Record) -> None:
        self._connection.send(("record", record))

    def note(self, line: dict[str, Any]) -> None:
        self._connection.send(("note", line))


def main(connection: Connection, marker: Any, device: str, catalogue: str) -> None:
    """Serve jobs until None comes or the parent is gone. `catalogue` is the module that knows ops and their impls."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        registry = importlib.import_module(catalogue)
        target = machine.detect(device)
        ops = registry.discover()
        impls = {name: registry.implementations(name) for name in ops}
        connection.send(
            (
                "ready",
                {
                    "target": target,
                    "environment": machine.environment(),
                    "slug": machine.device_slug(target),
                    "impls": {name: {i.name: i.ours for i in found} for name, (found, _) in impls.items()},
                    "missing": {name: missing for name, (_, missing) in impls.items()},
                },
            )
        )
    except Exception as error:
        connection.send(("unfit", str(error) if isinstance(error, BadRequest) else describe(error)))
        return
    gpu = open_gpu_or_none() if target.kind == "cuda" else None
    pipe = Pipe(connection, marker)
    while (job := _next(connection)) is not None:
        pipe.entering("", "")  # nobody yet: what the last job's implementations did is over
        op = ops[job.op]
        chosen = [impl for impl in impls[job.op][0] if impl.name in job.impls]
        if job.configs:
            chosen = [impl.configured(config) for impl in chosen for config in job.configs]
        try:
            measure(op, job.case, chosen, target, _settings(job, target, gpu), pipe)
        except Broken:
            return
        connection.send(("done", None))


def end_with_parent() -> None:
    """Killed, the parent can end nobody: a launch that never returns would hold the GPU from then on."""
    parent = parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(1)


def _next(connection: Connection) -> Job | None:
    try:
        return connection.recv()
    except EOFError:
        return None


def _settings(job: Job, target: Target, gpu: GpuSession | None) -> Settings:
    return Settings(
        cap_s=job.cap_s,
        seed=job.seed,
        repeat=job.repeat,
        memory_bytes=free_memory(target),
        run_id=job.run_id,
        aa=job.aa,
        spec=job.spec,
        ceilings=job.ceilings,
        telemetry=lambda: Sampler(gpu),
    )


def free_memory(target: Target) -> int:
    """Bytes that a case's inputs may take: what the GPU has free, or half of what the host has."""
    if target.kind != "cuda":
        return machine.memory_bytes() // 2
    import torch

    free, _total = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
