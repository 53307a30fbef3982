"""The tuning of a campaign: tune what lacks a configuration for this part, and bring home what was found.

Configurations are in `kernels/<op>/tuned.json` of a checkout that is lost with the rented machine. `gather` copies them
to the campaign's directory; `put_back` puts them into the checkout of the machine that the next call reaches.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import write_text
from bench.measure.schedule import cases_of
from kernels.common import tuned
from kernels.op import Target, discover, implementations

if TYPE_CHECKING:
    from bench.operate.tune.prune import ShapeClass
    from bench.operate.tune.search import Outcome

FILE = "tuned.json"

LIMIT_S = 60.0
"""At most so much of a call goes to tuning."""

START_S = 15.0
"""What torch, the worker and the compilers need of it to start, and the last class to finish."""

CALLS = 3
"""The number of calls that serve all classes."""

CAP_S = 0.2
"""Sampling seconds of a finalist and case. Most reach half a percent after 0.1 s."""


class Printed:
    """A `search.Display` that prints. The campaign shows the last line only if the process fails."""

    def working(self, op: str, case_id: str) -> None: ...
    def note(self, text: str) -> None:
        print(text, flush=True)


def lacking(suite: str) -> list[str]:
    """Operations that have a shape class of the suite without an entry for this part. Loads torch."""
    from bench import machine

    target = machine.gpu_target()
    return list(
        dict.fromkeys(
            found.op
            for found in classes_of(suite, target)
            if tuned.lookup(found.op, found.impl, target.name, found.name) is None
        )
    )


def classes_of(suite: str, target: Target) -> list[ShapeClass]:
    from bench.operate.tune.prune import shape_classes, tunable

    return shape_classes(tunable("kernels.op", (), ()), suite, target)


def pace_s(budget_s: float, classes: int) -> float:
    """Seconds for each of so many classes, so that `CALLS` calls serve all of them.

    A fifth is kept back, because the last heat of a class ends later than its pace.
    """
    return 0.8 * CALLS * budget_s / max(1, classes)


def tune_lacking(task: dict[str, Any]) -> dict[str, Any]:
    """Tune what lacks a configuration until the time is up, in one search: one worker and one pool of compilers.

    This runs in a child process; what it returns is the child's answer. `settled` are classes without an entry that
    need no other try: their default failed, or no candidate survived the compiler.
    """
    from bench import machine
    from bench.operate.tune import search

    waiting = lacking(task["suite"])
    if not waiting or task["budget_s"] <= 0:
        return {"left": waiting, "lines": [], "tuned": [], "settled": []}
    request = search.Request(
        device=task["device"],
        suite=task["suite"],
        ops=tuple(waiting),
        budget_s=task["budget_s"],
        hang_s=task["hang_s"],
        only_new=True,
        cap_s=CAP_S,
        pace_s=pace_s(task["budget_s"], len(classes_of(task["suite"], machine.gpu_target()))),
        without=tuple((op, impl, name) for op, impl, name in task["settled"]),
    )
    outcomes = search.tune(request, Printed()).outcomes
    unreached = {o.pruned.shape_class.op for o in outcomes if o.status == "not reached"}
    return {
        "left": [op for op in waiting if op in unreached],
        "lines": [o.lines()[0] for o in outcomes],
        "tuned": [entry for o in outcomes if o.status == "tuned" for entry in changed_cases(o, task["measured"])],
        "settled": [
            [o.pruned.shape_class.op, *o.key] for o in outcomes if not o.evidence and o.status != "not reached"
        ],
    }


def changed_cases(outcome: Outcome, suite: str) -> list[list[Any]]:
    """[op, implementation, case id, configuration] of each case of the suite that the outcome changes."""
    of = outcome.pruned.shape_class
    impl = next(impl for impl in implementations(of.op)[0] if impl.name == of.impl)
    assert impl.tuning
    return [
        [of.op, of.impl, case.id, dict(outcome.config)]
        for case in cases_of(discover()[of.op], suite)
        if impl.tuning.shape_class(case) == of.name
    ]


def gather(path: Path, root: Path = tuned.ROOT) -> int:
    """Copy the entries of all operations into one file, if there are any. Returns how many there are."""
    tuned.entries.cache_clear()  # another process may have written
    found = {op: list(tuned.entries(op, root).values()) for op in discover()}
    found = {op: entries for op, entries in found.items() if entries}
    if found:
        write_text(path, json.dumps(found, indent=1) + "\n")
    return sum(map(len, found.values()))


def put_back(path: Path, root: Path = tuned.ROOT) -> None:
    """Write gathered entries into the checkout, except those whose part, implementation and class have one there."""
    gathered = json.loads(path.read_text()) if path.is_file() else {}
    for op, entries in gathered.items():
        known = tuned.entries(op, root)
        new = {key: entry for entry in entries if (key := tuple(entry[name] for name in tuned.KEY)) not in known}
        if new:
            tuned.write(op, new, root)
