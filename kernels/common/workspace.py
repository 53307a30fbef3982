"""What becomes of data that a launch writes for itself: parts of results, hidden values. Standard library only.

A kernel writes them, and the same kernel or the next one reads them again. The L2 takes the writes, but the lines are
dirty: they reach DRAM when other lines need their place. Before the same workspace is written again, launches on other
copies of the inputs (or, in a model, the other layers) move several times the L2. So a write costs its bytes of DRAM in
full. Only a write of at most `SMALL` of the L2 is taken as free: 1.6 MB of an H100's 50 MB take half a microsecond,
and the memory is idle for longer than that between two launches. What is read again soon comes from the L2, unless the
workspace takes more than `HELD` of it: then the lines are gone, and both write and read are DRAM bytes.
"""

from __future__ import annotations

from dataclasses import replace

from kernels.op import Stage, Target, Work

SMALL = 1 / 32
"""Share of the L2 up to which written bytes are not counted as DRAM bytes."""

HELD = 1 / 2
"""Share of the L2 up to which a workspace is still there when it is read. Other data streams through beside it."""


def passing(stage: Stage, target: Target, size: int, *, written: int = 0, read: int = 0) -> Stage:
    """The stage with `written` and `read` bytes added, which go through a workspace of `size` bytes.

    Bytes that do not reach DRAM are bytes of the L2: the sum is that of all bytes asked for.
    """
    to_memory = written if size > SMALL * target.l2_bytes else 0
    from_memory = read if size > HELD * target.l2_bytes else 0
    return replace(
        stage,
        work=stage.work + Work(bytes_read=from_memory, bytes_written=to_memory),
        l2_bytes=stage.l2_bytes + written + read - to_memory - from_memory,
    )
