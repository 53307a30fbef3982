"""How the machines of a fleet are reached. An engine knows its nodes, and runs `node.measure` on one of them.

Ray and submitit are optional (`pip install decodebench[fleet]`); each is imported when its engine is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from bench import machine
from bench.errors import BadRequest, unknown
from bench.operate.fleet import node
from bench.operate.fleet.node import Event, Task

STATE_S = 5.0
"""How often Slurm is asked for the states of all jobs that wait in the queue."""


class Engine(Protocol):
    start_within_s: float
    """So long a node may take until its first event. Then it is given up for this call."""

    def nodes(self) -> list[str]:
        """The names of the machines, the same in every call."""

    def run(self, name: str, task: Task) -> Iterator[Event]:
        """The events of this node. Any exception says that the node was lost."""

    def close(self) -> None: ...


@dataclass
class Local:
    """This machine alone."""

    stop: threading.Event = field(default_factory=threading.Event)
    start_within_s: float = 600.0

    def nodes(self) -> list[str]:
        return [node.host()]

    def run(self, name: str, task: Task) -> Iterator[Event]:
        return node.measure(task, self.stop)

    def close(self) -> None:
        self.stop.set()


@dataclass
class Ray:
    """The nodes of a Ray cluster: an existing one by its address, else one on this machine.

    A node's task takes all GPUs of the node, so Ray gives them to nobody else. The records come back as the items of a
    streaming generator. Ray copies this project's code to the nodes; they need its dependencies.
    """

    address: str | None = None
    start_within_s: float = 600.0

    def __post_init__(self) -> None:
        # under `uv run`, Ray would start each of its workers by `uv run` too, in a copy of this directory
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        self._ray = optional("ray", "ray")
        runtime = {"working_dir": str(machine.ROOT), "excludes": ["reports", "build", ".*", "tests"]}
        if not self._ray.is_initialized():
            shipped = {"runtime_env": runtime} if self.address else {}
            # without an address Ray would look for a cluster that began here earlier, which may be dead
            address = self.address or "local"
            self._ray.init(address=address, log_to_driver=False, configure_logging=False, **shipped)
        self._nodes: dict[str, dict[str, Any]] = {}

    def nodes(self) -> list[str]:
        """By host name; where several nodes have one name, by the name and their number."""
        alive = sorted((n for n in self._ray.nodes() if n["Alive"]), key=lambda n: (n["NodeName"], n["NodeID"]))
        hosts = [n["NodeManagerHostname"] for n in alive]
        for i, (host, each) in enumerate(zip(hosts, alive, strict=True)):
            self._nodes[host if hosts.count(host) == 1 else f"{host}-{hosts[:i].count(host)}"] = each
        return list(self._nodes)

    def run(self, name: str, task: Task) -> Iterator[Event]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        found = self._nodes[name]
        gpus = found["Resources"].get("GPU", 0)
        remote = self._ray.remote(node.measure).options(
            num_gpus=gpus,
            num_cpus=0 if gpus else found["Resources"].get("CPU", 0),
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(found["NodeID"], soft=False),
        )
        for reference in remote.remote(task):
            yield self._ray.get(reference)

    def close(self) -> None:
        self._ray.shutdown()


@dataclass
class Slurm:
    """Jobs of Slurm through submitit, one for each node. A job's events come back when it ends.

    `count` jobs are submitted. `pinned` names the host on which a job must go on, by the job's name.
    """

    folder: Path
    count: int = 1
    partition: str | None = None
    gpus_per_node: int = 8
    minutes: int = 60
    pinned: Mapping[str, str] = field(default_factory=dict)
    cluster: str = "slurm"
    start_within_s: float = 4 * 3600.0
    """A queue may be long."""

    def __post_init__(self) -> None:
        self._submitit = optional("submitit", "submitit")
        self._waiting: dict[str, Any] = {}
        self._asking = threading.Lock()
        self._asked = -math.inf

    def nodes(self) -> list[str]:
        return [f"job{i}" for i in range(self.count)]

    def run(self, name: str, task: Task) -> Iterator[Event]:
        executor = self._submitit.AutoExecutor(folder=self.folder / "slurm", cluster=self.cluster)
        executor.update_parameters(timeout_min=self.minutes, nodes=1, tasks_per_node=1)
        if self.cluster == "slurm":
            asked = {"nodelist": self.pinned[name]} if name in self.pinned else {}
            executor.update_parameters(
                gpus_per_node=self.gpus_per_node,
                slurm_partition=self.partition,
                slurm_additional_parameters={"exclusive": True, **asked},
            )
        job = self._waiting[name] = executor.submit(all_events, task)
        while not self.has_started(job):
            time.sleep(min(1.0, STATE_S))
        del self._waiting[name]
        yield {"kind": "start"}
        yield from job.result()

    def has_started(self, job: Any) -> bool:
        """Does the job run, or has it ended?

        submitit asks Slurm less and less often, up to every 10 minutes, and would take a job that has started for one
        that waits. So Slurm is asked here: one call for all jobs, whichever of them wants to know.
        """
        with self._asking:
            if time.monotonic() - self._asked >= STATE_S:
                job.get_info(mode="force")
                self._asked = time.monotonic()
        return job.done() or job.state == "RUNNING"

    def close(self) -> None:
        """Jobs that have not started are taken out of the queue."""
        for job in [*self._waiting.values()]:
            job.cancel(check=False)


def all_events(task: Task) -> list[Event]:
    return list(node.measure(task))


def optional(module: str, package: str) -> ModuleType:
    """BadRequest with the command that installs it, where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise BadRequest(f"this engine needs {package}: pip install {package}") from None


def engine(name: str, folder: Path, **options: Any) -> Engine:
    """The engine of this name. `options` that it does not know are an error where they are set."""
    kinds: dict[str, type] = {"local": Local, "ray": Ray, "slurm": Slurm}
    if name not in kinds:
        raise unknown("engine", name, kinds)
    known = {f.name for f in dataclasses.fields(kinds[name])}
    given = {key: value for key, value in options.items() if value is not None}
    if strange := sorted(set(given) - known):
        raise BadRequest(f"--{strange[0].replace('_', '-')} is not for the engine {name}")
    return kinds[name](**({"folder": folder} if "folder" in known else {}), **given)
