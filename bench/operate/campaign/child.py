"""A step of a campaign that loads torch, in a process of its own: `doctor`, `tune`, `selfcheck`, one share of the gate.

The parent (`steps.py`) gives a task as a JSON file. What was found is in the file that the task names,
so that whatever libraries print does not get between.
"""

from __future__ import annotations

import faulthandler
import importlib
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.operate.campaign.tuning import tune_lacking
from kernels.op import Impl, Op, Target


def child(task: dict[str, Any]) -> None:
    if task["step"] == "gate":
        gate(task)
        return
    Path(task["answer"]).write_text(json.dumps(tune_lacking(task) if task["step"] == "tune" else look(task)))


def look(task: dict[str, Any]) -> dict[str, Any]:
    """What `doctor` or `selfcheck` found."""
    from bench.operate import doctor, selfcheck

    found = doctor.diagnose() if task["step"] == "doctor" else selfcheck.selfcheck(task["device"])
    return {"exit_code": found.exit_code, "verdict": found.verdict, "found": found.as_dict()}


def entries(catalogue: str, suite: str, target: Target) -> Iterator[tuple[Op, Impl, Any]]:
    """What the gate looks at, the same in every process: all implementations of all `gate_cases`."""
    registry = importlib.import_module(catalogue)
    for op in registry.discover().values():
        for case in gate_cases(op, suite):
            for impl in registry.implementations(op.name)[0]:
                if impl.supports(case, target) is None:
                    yield op, impl, case


def gate_cases(op: Op, suite: str) -> list[Any]:
    """The small edgy `test` cases, and of every kind (types, layouts, lengths) in the suite its smallest case."""
    smallest: dict[tuple[str, ...], Any] = {}
    for case in sorted(op.cases(suite), key=lambda case: op.work(case).bytes):
        kind = tuple(v for k, v in case.as_dict().items() if isinstance(v, str) and k not in ("model", "layer"))
        smallest.setdefault(kind, case)
    found = [*op.cases("test"), *smallest.values()]
    return list({case.id: case for case in found}.values())


def gate(task: dict[str, Any]) -> None:
    """Check every `of`-th entry beginning with `share`, but for those in `done`; each verdict is one line of `answer`.

    What is at work stands in `marker`, so that the parent can tell whose fault the end of this process was: an entry
    that takes longer than `hang_s` ends it, and so does one that loses the device.
    """
    from bench import machine
    from bench.errors import describe
    from bench.measure.case import Broken, recover_device
    from bench.measure.gate import check

    target = machine.detect(task["device"])
    done = {tuple(key) for key in task["done"]}
    everything = entries(task["catalogue"], task["suite"], target)
    for op, impl, case in itertools.islice(everything, task["share"], None, task["of"]):
        key = (op.name, impl.name, case.id)
        if key in done:
            continue
        Path(task["marker"]).write_text(json.dumps(key))
        faulthandler.dump_traceback_later(task["hang_s"], exit=True)
        lost = False
        try:
            reason = check(op, impl, case, target).reason
            status = "wrong" if reason else "ok"
        except Exception as error:
            status, reason = "failed", describe(error)
            if target.kind == "cuda":
                try:
                    recover_device(error)
                except Broken:
                    lost = True
        faulthandler.cancel_dump_traceback_later()
        append(Path(task["answer"]), verdict(key, status, reason))
        Path(task["marker"]).write_text("")
        if lost:
            sys.exit(1)


def verdict(key: tuple[str, str, str], status: str, reason: str | None) -> dict[str, Any]:
    return {"op": key[0], "impl": key[1], "case_id": key[2], "status": status, "reason": reason}


def append(path: Path, line: dict[str, Any]) -> None:
    """One line in one write, so that several processes can share the file."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def end_with_parent() -> None:
    """Killed, the campaign can end nobody: this process and what it started would hold the GPU beside the next one.

    Nothing is ever sent through standard input; it ends with the parent.
    """
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    child(json.loads(Path(sys.argv[1]).read_text()))
