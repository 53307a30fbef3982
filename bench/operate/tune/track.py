"""Where configurations race: a worker process with the GPU, in which a crash costs one configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.measure.case import Settings
from bench.measure.worker import Job, Receiver, Worker
from bench.operate.tune.prune import ShapeClass
from bench.records import Record, Status
from kernels.op import Config

Times = dict[Config, Record | str]
"""By configuration: its record, or why there is none."""


class Track(Receiver):
    """Times configurations in a worker process; `target` and `environment` say where."""

    def __init__(self, catalogue: str, hang_s: float, device: str = "cuda") -> None:
        self._worker = Worker(device=device, catalogue=catalogue, hang_s=hang_s)
        self.target, self.environment = self._worker.ready.target, self._worker.ready.environment
        self._found: Times = {}

    def race(self, shape_class: ShapeClass, case: Any, configs: Sequence[Config], cap_s: float) -> Times:
        """One record per configuration, or what became of the worker that it ran in."""
        self._found = {}
        left: Job | None = Job(
            op=shape_class.op,
            case=case,
            impls=(shape_class.impl,),
            configs=tuple(configs),
            settings=Settings(cap_s=cap_s),
        )
        while left:
            left = self._worker.do(left, self)
        return self._found

    def record(self, job: Job, record: Record) -> None:
        self._found[job.entries[record.impl]] = record

    def lost(self, job: Job, name: str, status: Status, reason: str) -> None:
        self._found[job.entries[name]] = reason

    def close(self) -> None:
        self._worker.kill()
