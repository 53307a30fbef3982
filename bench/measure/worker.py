"""The process in which cases run, and its supervisor: a fault there costs one implementation of one case.

`Worker` is the parent's end and never imports torch; `serve` is the process. The parent sends jobs. The process answers
with messages `(kind, content)`: `ready` or `unfit` once, then for each job any number of `prediction` (it goes on when
the parent has written it down), `record` and `note`, and one `done`. Which implementation is at work stands in a few
bytes of shared memory, so that the parent can tell whose fault a crash or a hang was.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench import machine
from bench.devices.driver import open_gpu_or_none
from bench.errors import BadRequest, describe
from bench.measure.case import Broken, measure
from bench.measure.memory import free_memory
from bench.measure.roof import lazy_roof
from bench.measure.settings import Settings
from bench.measure.telemetry import HostSampler, Sampler
from bench.records import Record, Status
from kernels.op import Case, Config, Impl, Missing, Target, config_text

MARKER_BYTES = 256

START_S = 180.0
"""A worker imports torch and opens the device; on a cold disk that takes its time."""

POLL_S = 0.2
"""How often the parent looks whether a worker that sends nothing still makes progress."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One case with the implementations that are still to be measured."""

    op: str
    case: Case
    impls: tuple[str, ...]
    configs: tuple[Config, ...] = ()
    """For the offline tuner: the one implementation in each of these configurations."""
    settings: Settings = field(default_factory=Settings)

    @property
    def entries(self) -> dict[str, Config]:
        """What gets a record: its name, and the configuration if `configs` has any."""
        if not self.configs:
            return dict.fromkeys(self.impls, ())
        (impl,) = self.impls
        return {f"{impl} {config_text(config)}": config for config in self.configs}

    def only(self, names: Collection[str]) -> Job | None:
        """The job with these entries alone, None without any."""
        if not self.configs:
            return replace(self, impls=tuple(names)) if names else None
        configs = tuple(config for name, config in self.entries.items() if name in names)
        return replace(self, configs=configs) if configs else None

    def chosen(self, impls: Collection[Impl]) -> list[Impl]:
        found = [impl for impl in impls if impl.name in self.impls]
        return [impl.configured(config) for impl in found for config in self.configs] if self.configs else found


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a worker process finds where it runs."""

    target: Target
    environment: dict[str, Any]
    slug: str
    """The machine's name in paths."""
    impls: Mapping[str, Mapping[str, bool]]
    """By operation and implementation: is it ours?"""
    missing: Mapping[str, tuple[Missing, ...]]
    by_torch_compile: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By operation: the implementations that take seconds to compile for each shape."""


class Receiver:
    """Who hears, in the parent, what comes of a job."""

    def prediction(self, job: Job, line: dict[str, Any]) -> None:
        """The measurement begins when this returns."""

    def note(self, job: Job, line: dict[str, Any]) -> None: ...

    def record(self, job: Job, record: Record) -> None:
        raise NotImplementedError

    def lost(self, job: Job, name: str, status: Status, reason: str) -> None:
        """The process died or hung while this entry was at work."""
        raise NotImplementedError


# ---- the parent's end


class Worker:
    """A worker process that is replaced when a fault takes it, and the dialogue with it.

    `do` sees a job through; `begin` and `step` do the same beside other workers. `tell` is told in words of each
    replacement. What the process prints goes to the file `output`, or where the parent prints.
    """

    def __init__(
        self,
        *,
        device: str,
        catalogue: str,
        hang_s: float,
        tell: Callable[[str], None] = lambda text: None,
        output: Path | None = None,
    ) -> None:
        self._device, self._catalogue, self._output = device, catalogue, output
        self._hang_s, self._tell = hang_s, tell
        self._ready: Ready | None = None
        self._job: Job | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, far_end = context.Pipe()
        self._marker = context.Array("c", MARKER_BYTES, lock=False)
        arguments = (far_end, self._marker, self._device, self._catalogue, self._output)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        far_end.close()
        self._up = False
        self._progressed()

    def _progressed(self) -> None:
        self._seen, self._since = self._marker.value, time.monotonic()

    @property
    def ready(self) -> Ready:
        """What the process found; waits until the first one is up. BadRequest where it cannot serve."""
        while self._ready is None:
            self._receive(POLL_S)
        return self._ready

    @property
    def busy(self) -> bool:
        return self._job is not None

    def do(self, job: Job, receiver: Receiver) -> Job | None:
        """Have a job done. Where a fault took the process, returns what is left of the job, for another call."""
        self.begin(job, receiver)
        left = None
        while self.busy:
            left = self.step(POLL_S)
        return left

    def begin(self, job: Job, receiver: Receiver) -> None:
        """Hand over a job. A process that died while it had nothing to do is replaced, and nobody is blamed: compilers
        beside it may have taken the memory."""
        if not self._send(job):
            self._replace("the worker process died while it waited")
            self._send(job)
        self._job, self._receiver, self._left = job, receiver, list(job.entries)
        self._progressed()

    def step(self, patience_s: float) -> Job | None:
        """Pass on one message of the job, if one comes in time. Where a fault ended the job, returns what is left."""
        assert self._job
        job, message = self._job, self._receive(patience_s)
        if message is None:
            return None
        kind, content = message
        if kind == "prediction":
            self._receiver.prediction(job, content)
            self._send("written")
        elif kind == "record":
            self._receiver.record(job, content)
            self._left.remove(content.impl)
        elif kind == "note":
            self._receiver.note(job, content)
        else:
            self._job = None
            if kind != "done":
                return self._blame(job, "timeout" if kind == "hangs" else "failed", content)
        return None

    def give_up(self, stalled_s: float) -> None:
        """End the process now. An entry that was at work and took no step for `stalled_s` is reported as a hang."""
        silent_s = time.monotonic() - self._since
        if self._job and self._up and silent_s >= stalled_s and self._marker.value == self._seen:
            self._guilty(self._job, "timeout", f"no progress for {silent_s:.0f} s when the time was up")
        self._job = None
        self.kill()

    def _blame(self, job: Job, status: Status, reason: str) -> Job | None:
        """Report whose fault it was, and replace the process. Returns the job with all others that have no record."""
        blamed = self._guilty(job, status, reason)
        self._replace(f"{job.op} {job.case.id}: {reason}")
        return job.only([name for name in self._left if name not in blamed])

    def _guilty(self, job: Job, status: Status, reason: str) -> list[str]:
        """Report the entry at work, or all if none had begun, and return their names."""
        _, guilty, phase = (*self._marker.value.decode(errors="replace").split("\t"), "", "")[:3]
        untouched = self._left == list(job.entries)
        blamed = [guilty] if guilty in self._left else list(self._left) if untouched else []
        for name in blamed:
            self._receiver.lost(job, name, status, f"{reason} during {phase or 'the start'}")
        return blamed

    def _replace(self, reason: str) -> None:
        self.kill()
        self._tell(f"{reason}; going on with a fresh worker")
        self._start()

    def _send(self, content: Any) -> bool:
        """False where the process has died; `_receive` then tells how."""
        try:
            self._connection.send(content)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _receive(self, patience_s: float) -> tuple[str, Any] | None:
        """The next message of a job, None if there is none yet; `("died", why)` or `("hangs", why)` if none will come.

        Hears before that that the process is up. BadRequest where it is not fit to serve.
        """
        limit = self._hang_s if self._up else START_S
        message = None
        try:
            if self._connection.poll(patience_s):
                message = self._connection.recv()
                self._progressed()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            message = "died", f"the worker process died ({ending(self._process.exitcode, self._output)})"
        if self._marker.value != self._seen:
            self._progressed()
        if message is None and time.monotonic() - self._since > limit:
            message = "hangs", f"no progress for {limit:.0f} s"
        if message is None or self._up:
            return message
        kind, content = message
        if kind != "ready":
            self.kill()
            raise BadRequest(content)
        self._ready, self._up = content, True
        return None

    def fileno(self) -> int:
        """For `multiprocessing.connection.wait`: ready when there is something to hear."""
        return self._connection.fileno()

    def kill(self) -> None:
        self._process.kill()
        self._process.join(5)
        self._connection.close()


def ending(code: int | None, output: Path | None) -> str:
    """How a process ended: `signal 9`, or `exit code 1: <the last line of its output>`."""
    how = "still running" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
    printed = output.read_text(errors="replace").strip() if output and output.exists() else ""
    return f"{how}: {printed.splitlines()[-1].strip()[:300]}" if printed else how


# ---- the process


class Pipe:
    """A `case.Listener` at the other end of a connection."""

    def __init__(self, connection: Connection, marker: Any) -> None:
        self._connection, self._marker = connection, marker
        self._steps = 0

    def entering(self, impl: str, phase: str) -> None:
        self._steps += 1
        self._marker.value = f"{self._steps}\t{impl}\t{phase}".encode()[: MARKER_BYTES - 1]

    def prediction(self, line: dict[str, Any]) -> None:
        self._connection.send(("prediction", line))
        self._connection.recv()

    def record(self, record: Record) -> None:
        self._connection.send(("record", record))

    def note(self, line: dict[str, Any]) -> None:
        self._connection.send(("note", line))


def serve(connection: Connection, marker: Any, device: str, catalogue: str, output: Path | None) -> None:
    """Serve jobs until the parent is gone. `catalogue` is the module that knows ops and their implementations."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if output:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    machine.let_waiting_threads_sleep()
    machine.want_large_pages()
    try:
        registry = importlib.import_module(catalogue)
        target = machine.detect(device)
        machine.keep_products_exact()
        ops = registry.discover()
        impls = {name: registry.implementations(name) for name in ops}
        ready = Ready(
            target=target,
            environment=machine.environment(),
            slug=machine.device_slug(target),
            impls={name: {impl.name: impl.ours for impl in found} for name, (found, _) in impls.items()},
            missing={name: missing for name, (_, missing) in impls.items()},
            by_torch_compile={
                name: tuple(impl.name for impl in found if impl.by_torch_compile) for name, (found, _) in impls.items()
            },
        )
    except Exception as error:
        connection.send(("unfit", str(error) if isinstance(error, BadRequest) else describe(error)))
        return
    # a collection then leaves out the hundreds of thousands of objects that torch's modules hold for good
    gc.collect()
    gc.freeze()
    connection.send(("ready", ready))
    gpu = open_gpu_or_none() if target.kind == "cuda" else None
    pipe = Pipe(connection, marker)
    roof = lazy_roof(catalogue, target)
    while (job := next_job(connection)) is not None:
        pipe.entering("", "")  # nobody yet: what the last job's implementations did is over
        watch = (lambda: Sampler(gpu)) if target.kind == "cuda" else HostSampler
        settings = replace(job.settings, memory_bytes=free_memory(target), telemetry=watch, roof=roof)
        try:
            measure(ops[job.op], job.case, job.chosen(impls[job.op][0]), target, settings, pipe)
        except Broken:
            return
        connection.send(("done", None))


def end_with_parent() -> None:
    """End this process when its parent ends. A killed parent cannot do it, and a launch that never returns would hold
    the GPU from then on."""
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(1)


def next_job(connection: Connection) -> Job | None:
    try:
        return connection.recv()
    except EOFError:
        return None
