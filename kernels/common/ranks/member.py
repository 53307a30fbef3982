"""What every rank of a group does, in whichever process it is: meet the others, do its part, tell how long it took.

A rank counts the phases that it has passed in memory that all ranks share. Waiting is polling these counts, with
`sched_yield` in between: the kernel's scheduler orders memory, so what a rank wrote before it counted is seen after.
"""

from __future__ import annotations

import importlib
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernels.common.ranks.segment import words

LIMIT_S = 10.0
"""So long a rank waits for the others before it gives them up. A collective takes milliseconds."""

CONTROL_BYTES = 4096
STRIDE = 8
"""The counts of two ranks are 64 bytes apart, in cache lines of their own."""

PHASES = 3
"""Phases of a launch: the ranks have met, the ranks have added up, the ranks have finished."""

POLLS = 200
"""Polls between two looks at the clock and at the other processes: about half a millisecond."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """A prepared launch of a case. `x` and `y` are the bytes of all ranks' inputs and outputs, which they share."""

    x: mmap.mmap
    y: mmap.mmap
    case: dict[str, Any]
    shots: int
    """1 or 2, where there is a choice."""


class Member:
    """One rank. `look(phase, since)` is called now and then while it waits, and raises to end the waiting."""

    def __init__(self, rank: int, ranks: int, control: mmap.mmap, look: Callable[[int, float], None]) -> None:
        self.rank, self.ranks, self.look = rank, ranks, look
        self.counts = words(control, "i8")[: STRIDE * ranks : STRIDE]
        self.seconds = words(control, "f8")[CONTROL_BYTES // 16 :][: STRIDE * ranks : STRIDE]
        self.launches = 0

    def reach(self, phase: int, *, wait: bool = True) -> None:
        """Count a phase of this launch, 1 to `PHASES`, and wait until all ranks have counted it."""
        goal = PHASES * self.launches + phase
        os.sched_yield()
        self.counts[self.rank] = goal
        since, polls = time.monotonic(), 0
        while wait and self.counts.min() < goal:
            os.sched_yield()
            polls += 1
            if polls % POLLS == 0:
                self.look(goal, since)
        os.sched_yield()

    def behind(self, goal: int) -> list[int]:
        """The ranks that have counted the fewest phases, if any has not reached the goal."""
        least = int(self.counts.min())
        return [r for r in range(self.ranks) if self.counts[r] == least] if least < goal else []

    def launch(self, part: Callable[[], None], *, wait: bool) -> None:
        """One launch: meet, do this rank's part, tell its seconds. `wait`: return when all have finished."""
        self.reach(1)
        start = time.perf_counter()
        part()
        self.seconds[self.rank] = time.perf_counter() - start
        self.reach(PHASES, wait=wait)
        self.launches += 1


Way = Callable[[Member, str], Callable[[Message], Callable[[], None]]]
"""How ranks do it. `way(member, folder)` joins them, and they may use an empty folder to find each other; what it
returns makes of a message the part of one rank."""


def way(name: str, dtype: str) -> Way:
    """`package.module:function`. The module's `warm(dtype)` imports or compiles what it needs, which takes seconds."""
    module, function = name.split(":")
    loaded = importlib.import_module(module)
    loaded.warm(dtype)
    found: Way = getattr(loaded, function)
    return found
