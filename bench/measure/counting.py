"""Hardware counters, put into a run beside its times."""

from __future__ import annotations

from pathlib import Path

from bench.inspection import counters
from bench.records import Writer
from bench.run import load_run


def count_into(
    directory: Path,
    *,
    suite: str | None = None,
    ops: tuple[str, ...] = (),
    impls: tuple[str, ...] = (),
    case: str = "",
    timeout_s: float = counters.TIMEOUT_S,
) -> counters.Counts | counters.CountersDenied:
    """Read counters, of the run's suite unless another is asked for, and add them as notes; a denial is noted once.

    What the run's notes hold already is not counted again.
    """
    run = load_run(directory)
    done = tuple((n["op"], n["impl"], n["case_id"]) for n in run.notes if n["note"] == "counters")
    choice = counters.Choice(suite=suite or run.header["suite"], ops=ops, impls=impls, case=case, done=done)
    found = counters.count(choice, timeout_s=timeout_s)
    if isinstance(found, counters.CountersDenied):
        denied = {"note": "counters denied", "reason": found.reason}
        notes = [] if denied in run.notes else [denied]
    else:
        notes = [{"note": "counters", **counted.as_dict()} for counted in found.counted]
    writer = Writer(directory)
    for note in notes:
        writer.append("note", note)
    writer.close()
    return found
