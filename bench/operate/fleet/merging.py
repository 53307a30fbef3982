"""Shards of one run (`run --shard i/n`, on equal parts) as one run file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BadRequest
from bench.files import new_directory, write_text
from bench.records import FILE
from bench.run import Run, load_run

ALIKE = ("suite", "decodebench", "code_digest")
"""Entries of the header in which all shards must agree."""


def merge(shards: Sequence[Path], out: Path) -> Path:
    """Write the lines of all shards into a new directory, and return it. BadRequest where they do not belong together.

    The merged run is complete if every shard is, and all n shards are there.
    """
    runs = [load_run(path) for path in shards]
    first = runs[0]
    for run in runs[1:]:
        if run.device_name != first.device_name:
            raise BadRequest(f"{run.path} was measured on {run.device_name}, {first.path} on {first.device_name}")
        for name in ALIKE:
            if run.header.get(name) != first.header.get(name):
                raise BadRequest(f"{run.path} and {first.path} differ in {name}: they are no shards of one run")
    found = [shard_of(run) for run in runs]
    count = found[0][1]
    if len({each[1] for each in found}) > 1 or len(set(found)) < len(found):
        said = ", ".join(f"{index + 1}/{n}" for index, n in found)
        raise BadRequest(f"these shards are not parts of one run: {said}")
    whole = len(found) == count and all(run.complete for run in runs)
    lines = [line for run in runs for line in lines_of(run)]
    lines += [json.dumps({"kind": "end"})] if whole else []
    directory = new_directory(out)
    write_text(directory / FILE, "\n".join(lines) + "\n")
    return directory


def shard_of(run: Run) -> tuple[int, int]:
    index, count = (run.header.get("request") or {}).get("shard", (0, 1))
    return index, count


def lines_of(run: Run) -> list[str]:
    """The lines of a run's file that can be read, without its `end`."""
    found = []
    for text in (run.path / FILE).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            kind = json.loads(text)["kind"]
        except (ValueError, TypeError, KeyError):
            continue
        if kind != "end":
            found.append(text)
    return found
