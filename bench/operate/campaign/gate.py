"""The gate of a campaign: every implementation checked in several processes, a fault costing one entry.

The entries and the check itself are in `bench/operate/campaign/child.py`; verdicts are lines of `gate.jsonl`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

from bench import machine
from bench.errors import BadRequest
from bench.measure import runner
from bench.operate.campaign import child

FILE = "gate.jsonl"

PROCESSES = 8
"""At most as many check at once: each holds its own context on the part, about half a GB."""


class Asked(Protocol):
    """What the gate needs of a campaign's request."""

    @property
    def device(self) -> str: ...
    @property
    def suite(self) -> str: ...
    @property
    def catalogue(self) -> str: ...
    @property
    def hang_s(self) -> float: ...


def check_all(directory: Path, asked: Asked, limit_s: float) -> bool:
    """Check what has no verdict yet. False where the time was up before the end."""
    shares = max(1, min(PROCESSES, machine.usable_cores() // 2))
    ends = time.monotonic() + limit_s
    with tempfile.TemporaryDirectory(prefix="decodebench-") as folder:
        running = {n: Share(directory, asked, n, shares, Path(folder)) for n in range(shares)}
        try:
            while running and time.monotonic() < ends:
                time.sleep(0.1)
                for n in [n for n, share in running.items() if share.ended()]:
                    del running[n]
        finally:
            for share in running.values():
                share.child.kill()
    return not running


class Share:
    """One share of the entries, checked to its end, with a fresh process after each fault."""

    def __init__(self, directory: Path, asked: Asked, share: int, shares: int, folder: Path) -> None:
        self._answer = directory / FILE
        self._hang_s = asked.hang_s
        self._folder = folder / str(share)
        self._folder.mkdir()
        self._marker = self._folder / "marker"
        self._task = {
            "step": "gate",
            "device": asked.device,
            "catalogue": asked.catalogue,
            "suite": asked.suite,
            "answer": str(self._answer.resolve()),
            "marker": str(self._marker),
            "share": share,
            "of": shares,
            "hang_s": asked.hang_s,
        }
        self.child = self._start()

    def _start(self) -> Child:
        self._before = verdicts(self._answer.parent)
        self._marker.write_text("")
        done = [[v["op"], v["impl"], v["case_id"]] for v in self._before]
        return Child(self._folder, {**self._task, "done": done})

    def ended(self) -> bool:
        """Is all checked? Whoever took the process with it gets its verdict, and the others a new process."""
        status = self.child.status
        if status is None or status == 0:
            return status == 0
        words, at_work = self.child.words, self._marker.read_text()
        if at_work:
            hung = words.startswith("Timeout")
            reason = f"no verdict within {self._hang_s:.0f} s" if hung else f"its process ended ({self.child.end()})"
            child.append(self._answer, child.verdict(json.loads(at_work), "failed", reason))
        elif len(verdicts(self._answer.parent)) == len(self._before):
            raise BadRequest(f"the gate ended ({self.child.end()})")
        self.child = self._start()
        return False


def verdicts(directory: Path) -> list[dict[str, Any]]:
    """What the gate has found so far; a line that a kill cut short is left out."""
    path = directory / FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


class Child:
    """One task of `bench/operate/campaign/child.py` in a process group of its own."""

    def __init__(self, folder: Path, task: dict[str, Any]) -> None:
        path, self._output = folder / "task.json", folder / "output"
        path.write_text(json.dumps(task))
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.operate.campaign.child", str(path)],
                cwd=machine.ROOT, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, process_group=0,
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    @property
    def words(self) -> str:
        """All that it printed."""
        return self._output.read_text(errors="replace").strip()

    def wait(self, limit_s: float) -> bool:
        """Did it end by itself in time? Otherwise, and where this process is interrupted, it is ended."""
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.kill()
        return True

    def kill(self) -> None:
        """End it with all that it started, if it runs."""
        if self.status is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def end(self) -> str:
        """How it ended: `exit code 1: <its last words>`."""
        last = self.words.splitlines()[-1:] or ["it said nothing"]
        return f"{runner.exit_text(self.status)}: {last[0].strip()[:300]}"
