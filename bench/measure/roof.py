"""On a host, a read of the memory between the samples of each case.

A host shares its memory with other programs, and a virtual machine also with other machines. There, the same read was
seen to take twice as long from one second to the next. So no roof that was measured at the start holds for a later
case. Each sample therefore lies between two cold reads of the same size, and its record keeps all three times.

The reads also empty the cache: they are at least as large as it is, up to `LARGEST_READ`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

from bench.measure.timing import COLD_FACTOR, HostTimer, host_flush
from kernels.common.integers import GiB, MiB
from kernels.op import Launch, Target

SMALLEST_READ = 32 * MiB
"""At 20 GB/s it takes 1.7 ms, so that the start of the threads is a few percent of it."""

LARGEST_READ = 128 * MiB

LARGEST_BUFFER = GiB


class ReadRoof(HostTimer):
    """Cold reads of `size` bytes: each of a slice of a buffer that has not been read for the longest time."""

    def __init__(
        self, launches: list[Launch], size: int, flush: Callable[[], None], empty: Launch | None = None
    ) -> None:
        super().__init__(launches, flush)
        self.size = size
        self.empty = empty
        """What it takes to start the threads alone (`core.py`)."""


def read_roof(catalogue: str, target: Target) -> ReadRoof | None:
    """The read with the kernel of `stream` that is ours, or else torch's. None on a GPU, and for a catalogue without
    `stream`."""
    registry = importlib.import_module(catalogue)
    op = registry.discover().get("stream")
    if target.kind != "cpu" or op is None:
        return None
    size = min(max(SMALLEST_READ, -(-target.l2_bytes // MiB) * MiB), LARGEST_READ)
    count = max(2, math.ceil(COLD_FACTOR * target.l2_bytes / size))
    kept = min(count, LARGEST_BUFFER // size)
    case, nothing = (
        op.case_from_dict(each) for each in ({"kind": "read", "size": size}, {"kind": "launch", "size": 4})
    )
    impl = next((impl for impl in registry.implementations("stream")[0] if impl.supports(case, target) is None), None)
    if impl is None:
        return None
    empty = impl.prepare(nothing, op.inputs(nothing, target.device, 0), target)
    first = op.inputs(case, target.device, 0)
    slices = [first, *({"x": first["x"].clone()} for _ in range(kept - 1))]
    flush = host_flush(target.l2_bytes) if kept < count else host_flush(0)
    return ReadRoof([impl.prepare(case, each, target) for each in slices], size, flush, empty)


def lazy_roof(catalogue: str, target: Target) -> Callable[[], ReadRoof | None]:
    """The roof, made when it is first asked for."""
    made: list[ReadRoof | None] = []

    def get() -> ReadRoof | None:
        if not made:
            made.append(read_roof(catalogue, target))
        return made[0]

    return get
