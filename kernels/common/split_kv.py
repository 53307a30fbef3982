"""Which CTA reads which tokens of a KV cache: even runs of blocks, cut into segments. Standard library only.

A pair is a sequence and a KV head. The blocks of all pairs are laid end to end and cut into equal runs, one for each
CTA. All CTAs are resident at once, so no CTA has more than one block above another, whatever the lengths are. A run is
a list of segments, each of one pair. A pair that was cut leaves one partial result for each of its segments; these
parts are merged by their log-sum-exp.

In long runs, each range of tokens is charged extra blocks for its start, so that CTAs with many short ranges do not
finish last. A segment that begins in the middle of a range is not charged: each run has at most one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kernels.common.integers import cdiv, next_power_of_2
from kernels.common.paging import Ranges

MERGE_TILE = 8192
"""fp32 elements of parts that a CTA of 4 warps holds at once: 64 registers a thread."""

MERGE_WARPS_PER_SM = 16
"""Warps of the merge kernel that an SM holds: its threads have up to 128 of the SM's 65,536 registers."""

LONG = 16
"""Runs of at least so many blocks charge for the start of a range. In shorter runs one block more would be worse."""

Pair = tuple[int, int, Ranges]
"""Sequence, KV head, live tokens. (For a shared prefix: first sequence of a tile, KV head, the prefix.)"""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Tokens [t_begin, t_end) of one pair, read by one CTA; its partial result goes to `slot`.

    The pair's partial results are in the slots `first_slot` to `first_slot + parts - 1`.
    """

    b: int
    h: int
    t_begin: int
    t_end: int
    slot: int
    first_slot: int
    parts: int
    pair: int

    @property
    def is_first(self) -> bool:
        """Whether this is the first segment of its pair."""
        return self.slot == self.first_slot

    def row(self) -> tuple[int, ...]:
        """The segment as kernels read it: 8 int32."""
        return (self.b, self.h, self.t_begin, self.t_end, self.slot, self.first_slot, self.parts, self.pair)


def merge_shape(segments: Sequence[Segment], D: int) -> tuple[int, int]:
    """Parts that a merging CTA holds at once, and its warps.

    One warp is used if it can hold all parts of any result: each thread then sums what it has loaded itself. Four warps
    must exchange their sums, which takes the banks of shared memory six times as long as the bytes alone would.
    """
    parts = next_power_of_2(max((s.parts for s in segments), default=1))
    return (parts, 1) if parts * D <= MERGE_TILE // 4 else (MERGE_TILE // D, 4)


def block_count(ranges: Ranges, block_t: int) -> int:
    """Aligned blocks that hold a token of a range, counted for each range on its own."""
    return sum(cdiv(end, block_t) - start // block_t for start, end in ranges if end > start)


def split(
    pairs: Sequence[Pair], block_t: int, runs: int, *, all_slots: bool = False, start_blocks: int = 0
) -> tuple[list[Segment], list[int], int]:
    """Segments of the pairs in order, where each run starts, and the number of slots.

    A pair without tokens gets an empty segment, which writes its zeros. A pair in one part has a slot only with
    `all_slots`. Each range of tokens is charged `start_blocks` blocks more than it has.
    """
    total = sum(block_count([r], block_t) + start_blocks for _, _, ranges in pairs for r in ranges if r[1] > r[0])
    segments: list[Segment] = []
    starts = [0]
    done = slots = 0
    for pair, (b, h, ranges) in enumerate(pairs):
        parts: list[tuple[int, int]] = []
        for start, end in ranges:
            block, last = start // block_t, start // block_t + block_count([(start, end)], block_t)
            done += start_blocks if block < last else 0
            while block < last:
                if done >= len(starts) * total // runs:
                    starts.append(len(segments) + len(parts))
                    continue
                stop = min(last, block + len(starts) * total // runs - done)
                parts.append((max(start, block * block_t), min(end, stop * block_t)))
                done += stop - block
                block = stop
        parts = parts or [(0, 0)]
        kept = len(parts) > 1 or all_slots
        for i, (t_begin, t_end) in enumerate(parts):
            segments.append(
                Segment(
                    b=b,
                    h=h,
                    t_begin=t_begin,
                    t_end=t_end,
                    slot=slots + i if kept else 0,
                    first_slot=slots if kept else 0,
                    parts=len(parts),
                    pair=pair,
                )
            )
        slots += len(parts) if kept else 0
    starts += [len(segments)] * (runs + 1 - len(starts))
    return segments, starts, slots
