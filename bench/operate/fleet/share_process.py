"""The process that measures one share: a run, told by a task in a JSON file. It ends with the process that started it.

It writes its progress as JSON into the file `at`, for the node that watches it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from bench.files import write_text
from bench.measure import runner
from bench.measure.schedule import request_from
from bench.operate.parent import end_with_parent
from bench.records import Record
from kernels.op import Target


class Progress:
    """Writes how many cases are begun, of how many, and which is at work."""

    def __init__(self, path: Path) -> None:
        self.path, self.done, self.total = path, -1, 0

    def begin(self, target: Target, directory: Path, total: int, done: int) -> None:
        self.total, self.done = total, done - 1

    def working(self, op: str, case_id: str) -> None:
        self.done += 1
        write_text(self.path, json.dumps({"done": self.done, "total": self.total, "what": f"{op} {case_id}"}))

    def record(self, record: Record) -> None: ...

    def note(self, text: str) -> None:
        print(text, flush=True)


def measure(task: dict[str, Any]) -> int:
    """Exit code 0: measured, 1: something is wrong or broken, 130: interrupted."""
    if task["cores"]:
        os.sched_setaffinity(0, task["cores"])
    resume = Path(task["resume"]) if task["resume"] else None
    outcome = runner.run(request_from(task["request"]), Path(task["out"]), resume, Progress(Path(task["at"])))
    for record in outcome.faults:
        print(f"{record.op} {record.case_id} {record.impl}: {record.status}: {record.reason or record.flags}")
    return 130 if outcome.interrupted else int(bool(outcome.faults))


def main() -> int:
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        return measure(json.loads(Path(sys.argv[1]).read_text()))
    except ValueError as error:  # BadRequest is one
        print(error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
