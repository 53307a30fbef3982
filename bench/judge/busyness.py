"""Was the machine busy with other things while a run measured? Then no number of the run should be quoted.

Only runs on a host tell: their records hold what other programs and other machines had of the usable cores.
"""

from __future__ import annotations

from bench.run import Run
from bench.units import percent

BUSY = 0.1
"""From this share of the cores on, a run counts as disturbed: its kernels want all cores all the time."""


def taken_by_others(run: Run) -> float | None:
    """The share of the usable cores that others had while the run measured; None if its records do not tell."""
    seen = [r.telemetry["host"] for r in (*run.records, *run.repeats) if r.is_timed and r.telemetry.get("host")]
    whole = sum(host["duration_s"] for host in seen)
    if not whole:
        return None
    return sum((host["others"] + host["stolen"]) * host["duration_s"] for host in seen) / whole


def banner(run: Run) -> str:
    """What stands above everything else that is said of a run on a busy machine; empty for any other run."""
    share = taken_by_others(run)
    if share is None or share < BUSY:
        return ""
    return f"The machine was busy: {percent(share)} of the CPU was taken by others; do not quote these numbers."
