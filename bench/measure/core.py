"""On a host, the same kernel over data that the caches of its cores hold: how long do its instructions take?

A host's core has few arithmetic units, and its compiler decides how many instructions a byte costs. So many kernels
wait for their own instructions and not for the memory. A prediction therefore takes the larger of two times, which know
nothing of the case's own time: its bytes at the rate of the memory, and its instructions where no memory is waited for.
`roof.py` measures the first, this file the second, both between the samples of the case. A virtual machine shares its
cores with others, so the second changes from one minute to the next, as the first does.

What is timed is a smaller case (`Op.smaller`) with the same inner loops, several launches in a row. The time of as many
empty launches is kept beside it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kernels.op import Impl, Launch, Op, Target, discover

IN_CACHE = 1 << 20
"""Bytes for each core. The L2 of a server's core holds 1 or 2 MiB, and where it holds less, an L3 stands behind it that
is several times faster than the memory. With less data, the start of a row, a sequence or a thread weighs too much."""

OF_THE_CACHE = 4
"""The cores together use at most this part of the last-level cache."""

LARGEST = 2
"""A smaller case may need so many times more bytes than asked for."""

ROW_S = 1.5e-4
"""Launches in a row take about so long, so that reading the clock is under a thousandth of it."""

MOST = 32
"""Launches in a row."""


@dataclass(kw_only=True)
class InCache:
    """One implementation of a smaller case. `sample` keeps what it times."""

    case_id: str
    times: float
    """The FLOPs of the whole case over those of the smaller one, or its bytes where it has no FLOPs."""
    launch: Launch
    empty: Launch
    clock: Callable[[], float] = time.perf_counter
    samples_s: list[float] = field(default_factory=list)
    empty_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.empty()
        self.launch()
        self.launch()
        self.row = max(1, min(MOST, math.ceil(ROW_S / max(self._seconds(self.launch, 1), 1e-7))))

    def sample(self) -> None:
        """One launch that brings the data into the caches, then launches in a row."""
        self.launch()
        self.samples_s.append(self._seconds(self.launch, self.row))
        self.empty_s.append(self._seconds(self.empty, self.row))

    def _seconds(self, launch: Launch, count: int) -> float:
        """Seconds of one of `count` launches in a row."""
        start = self.clock()
        for _ in range(count):
            launch()
        return (self.clock() - start) / count

    def as_dict(self) -> dict[str, Any]:
        """The field `Record.core`."""
        return {"case_id": self.case_id, "times": self.times, "samples_s": self.samples_s, "empty_s": self.empty_s}


def in_cache(op: Op, case: Any, impl: Impl, target: Target, empty: Launch | None, times: int = 1) -> InCache | None:
    """A case that the caches hold, with `times` the work of the given one: of our implementations on a host.

    Where an operation has no `smaller`, it is the case itself. None where it is too large, and where ranks wait for
    each other. A ceiling has one only where it says so."""
    if target.kind != "cpu" or empty is None or not impl.ours:
        return None
    if op.link_bytes or (op.is_ceiling and not op.smaller):
        return None
    whole, room = op.work(case), min(IN_CACHE * target.sm_count, target.l2_bytes // OF_THE_CACHE)
    try:
        small = op.smaller(case, max(1, math.ceil(whole.bytes / max(1, room)))) if op.smaller else case
    except ValueError:  # there is no such case
        return None
    if small is None or impl.supports(small, target):
        return None
    work = op.work(small)
    if work.bytes > LARGEST * room:
        return None
    flops, of_small = sum(whole.flops.values()), sum(work.flops.values())
    launch = impl.prepare(small, op.inputs(small, target.device, 0), target)
    as_much = flops / of_small if of_small else whole.bytes / work.bytes
    return InCache(case_id=small.id, times=times * as_much, launch=launch, empty=empty)


def cores_of_parts(impl: Impl, case: Any, target: Target, empty: Launch | None) -> dict[str, list[InCache]]:
    """Each part of a step: its distinct cases. A part one of whose cases the caches do not hold is left out."""
    counted: dict[str, Counter[tuple[str, Any]]] = {}
    impls: dict[tuple[str, Any], Impl] = {}
    for name, op, part, chosen in impl.parts(case, target) if impl.parts else ():
        counted.setdefault(name, Counter())[op, part] += 1
        impls[op, part] = chosen
    found: dict[str, list[InCache]] = {}
    for name, cases in counted.items():
        cores = [
            in_cache(discover()[op], part, impls[op, part], target, empty, times) for (op, part), times in cases.items()
        ]
        held = [core for core in cores if core]
        if len(held) == len(cores):
            found[name] = held
    return found
