"""Where configurations race: a worker process with the GPU, replaced when one of them takes it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.measure.runner import Worker, hand_over, start_worker
from bench.measure.schedule import Request
from bench.measure.worker import Job
from bench.operate.tune.sift import ShapeClass
from bench.records import Record
from kernels.op import Config, Target, config_text

Times = dict[Config, Record | str]
"""By configuration: its record, or why there is none."""


class Track:
    """The worker process with the GPU: races run there, and a crash costs one configuration."""

    def __init__(self, catalogue: str, hang_s: float, device: str = "cuda") -> None:
        self._request = Request(device=device, hang_s=hang_s, catalogue=catalogue)
        self._worker: Worker
        self._worker, ready = start_worker(self._request)
        self.target: Target = ready["target"]
        self.environment: dict[str, Any] = ready["environment"]

    def race(self, shape_class: ShapeClass, case: Any, configs: Sequence[Config], cap_s: float) -> Times:
        """One record per configuration, or what became of the worker that it ran in."""
        named = {f"{shape_class.impl} {config_text(config)}": config for config in configs}
        found: Times = {}
        while named:
            left = self._attempt(shape_class, case, named, cap_s, found)
            named = {name: config for name, config in named.items() if name in left}
        return found

    def _attempt(
        self, shape_class: ShapeClass, case: Any, named: Mapping[str, Config], cap_s: float,
        found: Times,
    ) -> list[str]:  # fmt: skip
        """Race once; returns who must race again because another one took the worker with it."""
        job = Job(
            op=shape_class.op,
            case=case,
            impls=(shape_class.impl,),
            configs=tuple(named.values()),
            cap_s=cap_s,
            seed=0,
            repeat=0,
            run_id="",
            aa=False,
            spec=None,
            ceilings=None,
        )
        self._worker = hand_over(job, self._worker, self._request)
        left = list(named)
        while True:
            kind, content = self._worker.receive()
            if kind == "prediction":
                self._worker.send("seen")
            elif kind == "record":
                found[named[content.impl]] = content
                left.remove(content.impl)
            elif kind == "done":
                return []
            elif kind != "note":
                guilty, phase = self._worker.marker
                self._worker.kill()
                self._worker, _ = start_worker(self._request)
                blamed = [guilty] if guilty in left else left
                found.update({named[name]: f"{content} during {phase or 'the start'}" for name in blamed})
                return [name for name in left if name not in blamed]

    def close(self) -> None:
        self._worker.kill()
