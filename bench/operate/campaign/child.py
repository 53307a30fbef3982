"""A step of a campaign that loads torch, in a process of its own: `doctor`, `tune`, `selfcheck`.

The parent starts a `Child` with a task as a JSON file. The child writes what it found into the file that the task
names, so that the output of libraries does not mix with it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from bench import machine
from bench.measure.worker import ending
from bench.operate.parent import end_with_parent


class Child:
    """The parent's end of one task, which runs in a process group of its own."""

    def __init__(self, folder: Path, task: dict[str, Any]) -> None:
        path, self._output = folder / "task.json", folder / "output"
        path.write_text(json.dumps(task))
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.operate.campaign.child", str(path)],
                cwd=machine.ROOT,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def wait(self, limit_s: float) -> bool:
        """Did it end by itself in time? If not, or on an interrupt here, it is killed with all that it started."""
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        return True

    def end(self) -> str:
        """How it ended: `exit code 1: <the last line that it printed>`."""
        return ending(self._process.poll(), self._output)


def child(task: dict[str, Any]) -> None:
    Path(task["answer"]).write_text(json.dumps(look(task)))


def look(task: dict[str, Any]) -> dict[str, Any]:
    """What the step found."""
    from bench.operate import doctor, selfcheck
    from bench.operate.campaign.tuning import tune_lacking

    if task["step"] == "tune":
        return tune_lacking(task)
    found = doctor.diagnose() if task["step"] == "doctor" else selfcheck.selfcheck(task["device"])
    return {"exit_code": found.exit_code, "verdict": found.verdict, "found": found.as_dict()}


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    child(json.loads(Path(sys.argv[1]).read_text()))
