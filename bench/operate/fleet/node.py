"""One machine of a fleet: a process for each of its shares, and what they report as a stream of events.

An event is a dict of plain JSON values, and carries `share` where it is about one:

- `{"kind": "start"}` may come first, where the others come only when all is measured
- `{"kind": "node", "host", "shares"}` comes before what is about shares: what the machine has
- `{"kind": "at", "share", "done", "total", "what"}`: progress
- `{"kind": "records", "share", "text"}`: whole lines of the share's run file, in order, that were not sent before
- `{"kind": "end", "share", "code", "said", "summary"}`: how the process ended, and what it measured in brief

So records travel through whatever carries the events, and no disk is shared.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine
from bench.errors import BadRequest, describe
from bench.judge.fleet.summary import summarize
from bench.measure.schedule import Request
from bench.measure.worker import ending
from bench.operate.fleet.shares import Share, find
from bench.records import FILE
from bench.run import load_run

Event = dict[str, Any]

POLL_S = 0.25

SHARE_PROCESS = "bench.operate.fleet.share_process"
"""The module that measures one share."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every share measures."""

    request: Request
    cpu_shares: int = 1
    in_turn: bool = False
    """One share after the other, so that each has the machine alone; else all at once."""
    have: Mapping[str, str] = field(default_factory=dict)
    """By share, the text of the run file that an earlier call has collected. The run goes on from there."""
    finished: tuple[str, ...] = ()
    """Shares that have nothing left to measure."""


def measure(task: Task, stop: threading.Event | None = None) -> Iterator[Event]:
    """Measure all shares of this machine. Whoever stops listening, or sets `stop`, ends the processes."""
    shares = find(task.request.device, task.cpu_shares)
    yield {"kind": "node", "host": host(), "shares": [dataclasses.asdict(share) for share in shares]}
    events: queue.Queue[Event] = queue.Queue()
    left = [share for share in shares if share.name not in task.finished]
    with tempfile.TemporaryDirectory(prefix="decodebench-") as folder:
        watches = [Watch(share, task, Path(folder) / share.name, events) for share in left]
        try:
            for group in [[watch] for watch in watches] if task.in_turn else [watches]:
                for watch in group:
                    watch.start()
                waiting = len(group)
                while waiting:
                    if stop and stop.is_set():
                        return
                    try:
                        event = events.get(timeout=POLL_S)
                    except queue.Empty:
                        continue
                    waiting -= event["kind"] == "end"
                    yield event
        finally:
            for watch in watches:
                watch.kill()


def host() -> str:
    """The machine's name. In a pod it is that of the machine below, where `fleet render kubernetes` asks for it."""
    return os.environ.get("NODE_NAME") or platform.node() or "this-machine"


class Watch(threading.Thread):
    """Starts the process of one share, and turns what it writes into events until it has ended."""

    def __init__(self, share: Share, task: Task, folder: Path, events: queue.Queue[Event]) -> None:
        super().__init__(daemon=True)
        self.share, self.task, self.folder, self.events = share, task, folder, events
        self._process: subprocess.Popen[bytes] | None = None
        self._sent, self._at = 0, ""

    def run(self) -> None:
        code, said = None, ""
        try:
            process = self._process = self.begin()
            while process.poll() is None:
                self.report()
                with_patience(process)
            self.report(last=True)
            code, said = process.returncode, self.said()
        except Exception as error:  # whatever it is: without an end the node would wait for this share for ever
            self.kill()
            said = describe(error)
        self.tell("end", code=code, said=said, summary=self.summary())

    def begin(self) -> subprocess.Popen[bytes]:
        self.folder.mkdir()
        resume = None
        if earlier := self.task.have.get(self.share.name):
            resume = self.folder / "runs" / "part" / "run"
            resume.mkdir(parents=True)
            (resume / FILE).write_text(earlier, encoding="utf-8")
            self._sent = (resume / FILE).stat().st_size
        description = {
            "request": dataclasses.asdict(dataclasses.replace(self.task.request, device=self.share.device)),
            "cores": self.share.cores,
            "out": str(self.folder / "runs"),
            "resume": str(resume) if resume else None,
            "at": str(self.folder / "at"),
        }
        path = self.folder / "task.json"
        path.write_text(json.dumps(description))
        with (self.folder / "output").open("w") as output:
            return subprocess.Popen(
                [sys.executable, "-m", SHARE_PROCESS, str(path)],
                cwd=machine.ROOT,
                env={**os.environ, **self.share.variables},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def file(self) -> Path | None:
        return next((self.folder / "runs").glob(f"*/*/{FILE}"), None)

    def report(self, *, last: bool = False) -> None:
        """Send the lines and the progress that are new. A half-written line waits for its end or for `last`."""
        at = self.folder / "at"
        if at.is_file() and (now := at.read_text()) != self._at:
            self._at = now
            self.tell("at", **json.loads(now))
        if file := self.file():
            with file.open("rb") as handle:
                handle.seek(self._sent)
                found = handle.read()
            whole = found if last else found[: found.rfind(b"\n") + 1]
            if whole:
                self._sent += len(whole)
                self.tell("records", text=whole.decode(errors="replace"))

    def said(self) -> str:
        process = self._process
        return "" if process is None or process.returncode == 0 else ending(process.returncode, self.folder / "output")

    def summary(self) -> dict[str, Any] | None:
        file = self.file()
        try:
            return summarize(load_run(file)) if file else None
        except BadRequest:
            return None

    def tell(self, kind: str, **content: Any) -> None:
        self.events.put({"kind": kind, "share": self.share.name, **content})

    def kill(self) -> None:
        process = self._process
        if process and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def with_patience(process: subprocess.Popen[bytes]) -> None:
    """Wait a moment, or until the process has ended."""
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return
