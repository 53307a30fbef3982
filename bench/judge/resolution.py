"""Which differences a run can resolve: it measures the same thing twice at once (A/A), and those times differ too.

Never imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from bench.records import in_reads
from bench.run import Run
from bench.stats import Interval, ratio_interval

SAME = 0.01
"""Two times are the same if the whole interval of their ratio lies within this distance of 1."""


def pairs(run: Run) -> Iterator[tuple[dict[str, Any], Interval]]:
    """Every A/A pair of the run: its note, and the time of the second over the time of the first."""
    for note in run.notes:
        if note.get("note") == "aa":
            first, second = note["samples_s"]
            if roofs := note.get("roof"):
                first, second = in_reads(first, roofs[0]), in_reads(second, roofs[1])
            yield note, ratio_interval(second, first)


def reach(ratio: Interval) -> float:
    """How far from 1 the interval of a ratio reaches. For an A/A pair, a smaller difference may mean nothing.

    Half the time and twice the time are equally far from 1.
    """
    return max(1 / ratio.low if ratio.low > 0 else math.inf, ratio.high, ratio.low, 1.0) - 1


def resolutions(*runs: Run) -> dict[str, float]:
    """For each op, how far its A/A pairs reach in any of the runs. An op without a pair is not in it."""
    found: dict[str, float] = {}
    for run in runs:
        for note, ratio in pairs(run):
            found[note["op"]] = max(reach(ratio), found.get(note["op"], 0.0))
    return found


def side(ratio: Interval, resolution: float) -> Literal["below", "above"] | None:
    """The side of 1 on which the whole interval lies, farther than `SAME` and the resolution; None for neither side."""
    margin = 1 + max(SAME, resolution)
    if ratio.high < 1 / margin:
        return "below"
    return "above" if ratio.low > margin else None
