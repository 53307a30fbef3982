"""What a run can tell apart: the same thing measured twice at once (A/A), and what that leaves of a difference.

Never imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from bench.run import Run
from bench.stats import Interval, ratio_interval

SAME = 0.01
"""Two times are the same if the whole interval of their ratio is within this of 1."""


def pairs(run: Run) -> Iterator[tuple[dict[str, Any], Interval]]:
    """Everything that the run measured twice on purpose: its note, and the second's time over the first's."""
    for note in run.notes:
        if note.get("note") == "aa":
            first, second = note["samples_s"]
            yield note, ratio_interval(second, first)


def reach(ratio: Interval) -> float:
    """How far from 1 the interval of a ratio reaches: of a pair, the largest difference that may mean nothing.

    Half the time and twice the time are equally far.
    """
    return max(1 / ratio.low if ratio.low > 0 else math.inf, ratio.high, ratio.low, 1.0) - 1


def resolutions(*runs: Run) -> dict[str, float]:
    """By op, the farthest that a pair of any of the runs reaches. An op without a pair has none."""
    found: dict[str, float] = {}
    for run in runs:
        for note, ratio in pairs(run):
            found[note["op"]] = max(reach(ratio), found.get(note["op"], 0.0))
    return found


def side(ratio: Interval, resolution: float) -> Literal["below", "above"] | None:
    """On which side of 1 the whole interval lies, by more than `SAME` and than the resolution; None if on neither."""
    margin = 1 + max(SAME, resolution)
    if ratio.high < 1 / margin:
        return "below"
    return "above" if ratio.low > margin else None
