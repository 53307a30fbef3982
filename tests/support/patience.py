"""How long a test waits for what another process does, on a machine that may have more to do."""

from __future__ import annotations

import os

from bench.machine import usable_cores

MOST_S = 280.0
"""A little less than the limit of a test."""


def patience(quiet_s: float) -> float:
    """A limit for what takes `quiet_s` where nothing else runs: twice as long, and as often as processes wait for each
    core."""
    waiting = os.getloadavg()[0] / usable_cores()
    return min(MOST_S, 2 * quiet_s * max(1.0, waiting))
