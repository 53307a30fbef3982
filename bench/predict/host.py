"""`predict --part cpu`: which run says what this machine can do?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.errors import BadRequest
from bench.machine import cpu_model, usable_cores
from bench.records import FILE
from bench.run import load_run

PART = "cpu"
"""The name of this machine among parts."""


def newest_run(reports: Path) -> Path:
    """The directory of the newest run under `reports` that measured the read roof of this machine's processor.

    A run counts if its processor has the same name and as many usable cores. Raises `BadRequest`, which says how to
    make a run, where there is none.
    """
    name, cores = cpu_model(), usable_cores()
    mine = []
    for file in reports.glob(f"*/*/{FILE}"):
        header = first_line(file)
        target = header.get("target") or {}
        if (target.get("kind"), target.get("name"), target.get("sm_count")) == ("cpu", name, cores):
            mine.append((str(header.get("started", "")), file.parent))
    for _, directory in sorted(mine, reverse=True):
        if load_run(directory).ceilings is not None:
            return directory
    raise BadRequest(
        f"no run under {reports}/ measured this machine ({name}, {cores} cores): make one with "
        "`decodebench run --device cpu --suite smoke`, or name one with --from"
    )


def first_line(file: Path) -> dict[str, Any]:
    """The header of a run; empty where it cannot be read."""
    try:
        with file.open(encoding="utf-8", errors="replace") as handle:
            found = json.loads(handle.readline())
    except (OSError, json.JSONDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("kind") == "run" else {}
