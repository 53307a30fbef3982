"""The tuning of a campaign: tune what lacks a configuration for this part, and bring home what was found.

Configurations are in `kernels/<op>/tuned.json` of a checkout that is lost with the rented machine. `gather` copies them
to the campaign's directory; `put_back` puts them into the checkout of the machine that the next call reaches.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kernels.common import tuned
from kernels.op import discover

FILE = "tuned.json"


class Printed:
    """A `search.Display` that prints. The campaign shows the last line only if the process fails."""

    def working(self, op: str, case_id: str) -> None: ...
    def note(self, text: str) -> None:
        print(text, flush=True)


def lacking(suite: str) -> list[str]:
    """Operations that have a shape class of the suite without an entry for this part. Loads torch."""
    from bench import machine
    from bench.operate.tune.prune import shape_classes, tunable

    target = machine.gpu_target()
    return list(
        dict.fromkeys(
            found.op
            for found in shape_classes(tunable("kernels.op", (), ()), suite, target)
            if tuned.lookup(found.op, found.impl, target.name, found.name) is None
        )
    )


def tune_lacking(task: dict[str, Any]) -> dict[str, Any]:
    """Tune what lacks a configuration until the time is up, in one search: one worker and one pool of compilers.

    This runs in a child process; what it returns is the child's answer.
    """
    from bench.operate.tune import search

    waiting = lacking(task["suite"])
    if not waiting or task["budget_s"] <= 0:
        return {"left": waiting, "lines": []}
    request = search.Request(
        device=task["device"],
        suite=task["suite"],
        ops=tuple(waiting),
        budget_s=task["budget_s"],
        hang_s=task["hang_s"],
        only_new=True,
    )
    outcomes = search.tune(request, Printed()).outcomes
    unreached = {o.pruned.shape_class.op for o in outcomes if o.status == "not reached"}
    return {"left": [op for op in waiting if op in unreached], "lines": [o.lines()[0] for o in outcomes]}


def gather(path: Path, root: Path = tuned.ROOT) -> int:
    """Copy the entries of all operations into one file, if there are any. Returns how many there are."""
    tuned.entries.cache_clear()  # another process may have written
    found = {op: list(tuned.entries(op, root).values()) for op in discover()}
    found = {op: entries for op, entries in found.items() if entries}
    if found:
        path.write_text(json.dumps(found, indent=1) + "\n")
    return sum(map(len, found.values()))


def put_back(path: Path, root: Path = tuned.ROOT) -> None:
    """Write gathered entries into the checkout, except those whose part, implementation and class have one there."""
    gathered = json.loads(path.read_text()) if path.is_file() else {}
    for op, entries in gathered.items():
        known = tuned.entries(op, root)
        new = {key: entry for entry in entries if (key := tuple(entry[name] for name in tuned.KEY)) not in known}
        if new:
            tuned.write(op, new, root)
