"""Which CTA reads which tokens: the pure half of split-KV attention. Standard library only.

All blocks of BLOCK_T tokens of all (sequence, KV head) pairs are laid end to end and cut into equal runs, one per
CTA, and all CTAs are resident at once: no CTA has more than one block above another, whatever the lengths. (In long
runs each range of tokens counts for a block more than it has, so that those with many short ones are not the last. What
begins in the middle of a range is not counted: that is one a run.) A run is a list of segments; a pair that was cut
leaves one partial result per segment, merged by their log-sum-exp.

A pair of more query rows than one tile holds, 64 as a rule, has several tiles of them. Each tile has CTAs of its own,
which walk side by side with those of the other tiles over the same tokens, so that all but the first find K and V in
the L2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from kernels.attention_decode.op import AttentionCase, lengths, live
from kernels.common.integers import cdiv, next_power_of_2
from kernels.common.random_inputs import BYTES
from kernels.common.split_kv import LONG, MERGE_TILE, Pair, Segment, block_count, split
from kernels.launch import SMEM_RESERVED, registers
from kernels.op import Target

MAX_ROWS = 64
"""Query rows of one tile: with 128, fp32 accumulators of 128 dims and a tile of scores spill on every part."""

START_BLOCKS = 1
"""What it costs to begin a range of tokens, in blocks: its list, its page ids and its first block are read one after
the other, and its result is stored; 32 KB take 4,500 cycles on one of the two CTAs of an H100's SM. Estimated, not
measured. (FlashMLA's scheduler counts 5 blocks of 64 tokens, `fixed_overhead_num_blocks`.)"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Run c is `segments[starts[c] : starts[c + 1]]`, `buffers` blocks of K and V of each in shared memory.

    There are `runs` of them, each with a CTA for every one of `row_tiles` tiles of `block_m` query rows.

    `num_stages` is Triton's, which shares its steps between page ids and the loads that wait for them: 2 buffers - 1
    where there are pages. `ptx`: an 8-bit cache is unpacked by PTX. `merge` says who merges the parts of cut pairs:
    `last`, the CTA that finishes last; `kernel`, a second kernel; `none`, where no pair is cut.
    """

    block_t: int
    block_m: int
    row_tiles: int
    blocks: int
    buffers: int
    num_stages: int
    num_warps: int
    max_registers: int | None
    v_columns: bool
    ptx: bool
    runs: int
    ctas_per_sm: int
    segments: tuple[Segment, ...]
    starts: tuple[int, ...]
    slots: int
    merge: str
    merge_tile: int


def most_rows(case: AttentionCase, target: Target) -> int:
    """Query rows of a tile at most: fewer than MAX_ROWS where 64 would spill.

    Those are heads of 256 dims; on sm_80 what an 8-bit cache unpacks to, beside the sums; on sm_100, where sums pass
    through registers, the addresses of pages that hold whole blocks.
    """
    if case.D > 128:
        return 32 if target.sm < 100 else 16
    if (target.sm < 90 and case.kv) or (target.sm >= 100 and case.page and case.page % 64 == 0):
        return 32
    return MAX_ROWS


def tile_rows(rows: int, most: int = MAX_ROWS) -> int:
    """Query rows of a tile: tensor cores take 16 at the least."""
    return min(most, max(16, next_power_of_2(rows)))


def block_tokens(case: AttentionCase, block_m: int, target: Target) -> int:
    """Blocks of 32 KB (K and V of 64 tokens of 128 16-bit dims), but no fewer tokens than the 64 rows of a wgmma.

    Before wgmma (sm_80) half of both: there is less shared memory, and three buffers are to fit twice. For an 8-bit
    cache always 64 tokens: unpacking passes through registers, and 128 tokens would spill some; as would, on sm_100,
    scores of 128 tokens and more than 16 rows. For the two warpgroups of a wide tile 128, of which each has its own 64:
    of 64, Triton gives all to both, and their softmax twice takes 87% of the slots that an H100's SM issues in.
    """
    if case.kv or (target.sm >= 100 and block_m > 16):
        return 64
    if target.sm == 90 and is_wide(case, block_m, target) and case.D <= 128:
        return 128
    half = 1 if target.sm >= 90 else 2
    return max(64, (32 << 10) // (2 * case.D * case.kv_bytes)) // half


def smem_per_cta(case: AttentionCase, block_t: int, block_m: int, buffers: int) -> int:
    """Bytes of K, V, Q and P in shared memory, and what the system takes."""
    kv = 2 * buffers * block_t * case.D * case.kv_bytes
    return kv + (case.D + block_t) * block_m * BYTES[case.dtype] + SMEM_RESERVED


def is_wide(case: AttentionCase, block_m: int, target: Target) -> bool:
    """Whether O^T alone would take more than 32 registers of each of 128 threads; beside the scores, some would spill.

    On sm_100 more than 16: accumulators pass through registers between tensor memory and every rescaling. Then a CTA
    has 256 threads, and an SM's 65,536 registers hold one.
    """
    return block_m * case.D > (32 if target.sm < 100 else 16) * 128


def residency(case: AttentionCase, block_m: int, target: Target) -> tuple[int, int]:
    """(CTAs per SM, blocks buffered by each).

    Two CTAs hide each other's softmax and ends of segments; three buffers keep two blocks on their way. Where
    shared memory is short the third buffer goes first, then the second CTA; so it does on sm_100 where the addresses
    of a third block of pages, beside 64 rows of 128 dims, would spill. Blocks of an 8-bit cache have half the bytes,
    and between their two products there is more to do: on sm_90 a third CTA hides it, if 168 registers suffice.
    """
    if target.sm >= 100 and case.page and block_m * case.D > 32 * 128:
        return 1, 2
    choices = ((1, 3),) if is_wide(case, block_m, target) else ((2, 3), (2, 2), (1, 3))
    if target.sm == 90 and case.kv and block_m * case.D <= 16 * 128:
        choices = ((3, 3), *choices)
    for ctas, buffers in choices:
        if ctas * smem_per_cta(case, block_tokens(case, block_m, target), block_m, buffers) <= target.smem_per_sm:
            return ctas, buffers
    return 1, 2


def make_plan(
    case: AttentionCase,
    target: Target,
    pairs: Sequence[Pair],
    rows: int,
    *,
    all_slots: bool = False,
) -> Plan:
    """The last CTA merges where two tiles of parts suffice: two round trips to the L2 cost less than a launch.

    With more parts a second kernel, spread over all rows, is the shorter way; for wide tiles the last CTA has no
    registers left. Whoever asks for `all_slots` merges by itself.
    """
    block_m = tile_rows(rows, most_rows(case, target))
    row_tiles = cdiv(rows, block_m)
    ctas_per_sm, buffers = residency(case, block_m, target)
    fields = {
        "block_t": block_tokens(case, block_m, target),
        "buffers": buffers,
        "ctas_per_sm": ctas_per_sm,
        "num_warps": 8 if is_wide(case, block_m, target) else 4,
    }
    fields |= target.overrides
    buffers = fields["buffers"]
    blocks = sum(block_count(ranges, fields["block_t"]) for _, _, ranges in pairs)
    runs = max(1, min(blocks, fields["ctas_per_sm"] * target.sm_count // row_tiles))
    start_blocks = START_BLOCKS if blocks >= LONG * runs else 0
    segments, starts, slots = split(pairs, fields["block_t"], runs, all_slots=all_slots, start_blocks=start_blocks)
    merge_tile = max(1, MERGE_TILE // (block_m * case.D))
    merge = "kernel" if is_wide(case, block_m, target) or max(s.parts for s in segments) > 2 * merge_tile else "last"
    if not slots or all_slots:
        merge = "none"
    return Plan(
        **fields,
        block_m=block_m,
        row_tiles=row_tiles,
        blocks=blocks,
        num_stages=2 * buffers - 1 if case.page else buffers,
        v_columns=bool(case.kv) or target.sm < 90,
        ptx=bool(case.kv) and target.kind == "cuda" and target.sm == 90,
        # left to itself the compiler makes room for more CTAs than are planned: on sm_80 and sm_100 scalars spill for
        # them; on sm_90 nothing spills, but an 8-bit cache takes more registers than three CTAs have
        max_registers=None
        if target.sm == 90 and not case.kv
        else registers(fields["ctas_per_sm"] * fields["num_warps"]),
        runs=runs,
        segments=tuple(segments),
        starts=tuple(starts),
        slots=slots,
        merge=merge,
        merge_tile=merge_tile,
    )


@cache
def plan(case: AttentionCase, target: Target) -> Plan:
    """All tokens of all sequences, a shared prefix once per sequence."""
    pairs = [(b, h, live(case, length)) for b, length in enumerate(lengths(case)) for h in range(case.H_kv)]
    return make_plan(case, target, pairs, case.rows)


LARGE = 1 << 26
"""Bytes of K and V, 20 us at 3.35 TB/s, below which latency counts: the tuner keeps both apart."""


def shape_class(case: AttentionCase) -> str:
    """Alike in how tokens are found, in types and tile, and in whether there are many of them."""
    found = f"page{min(case.page, 64)}" if case.page else "contiguous"
    size = "large" if 2 * case.B * case.T * case.H_kv * case.D * case.kv_bytes >= LARGE else "small"
    rest = " window" if case.window else ""
    return f"{found} {case.kv or case.dtype} D{case.D} M{tile_rows(case.rows)}{rest} {size}"


def candidates(case: AttentionCase, target: Target) -> Iterator[dict[str, int]]:
    """Divisions of an SM's shared memory into CTAs and buffers that leave at most half of it unused."""
    block_m = tile_rows(case.rows, most_rows(case, target))
    for block_t in (64, 128) if target.sm >= 90 else (32, 64):
        for ctas_per_sm in (1, 2, 3, 4):
            for buffers in (2, 3, 4, 5):
                smem = ctas_per_sm * smem_per_cta(case, block_t, block_m, buffers)
                if target.smem_per_sm // 2 <= smem <= target.smem_per_sm:
                    for num_warps in (4, 8):
                        yield {
                            "block_t": block_t,
                            "buffers": buffers,
                            "ctas_per_sm": ctas_per_sm,
                            "num_warps": num_warps,
                        }


@cache
def suffix_plan(case: AttentionCase, target: Target) -> Plan:
    """Only what comes after the shared prefix."""
    own = [((case.prefix, length),) for length in lengths(case)]
    return make_plan(case, target, [(b, h, r) for b, r in enumerate(own) for h in range(case.H_kv)], case.rows)


def prefix_sequences(case: AttentionCase, target: Target) -> int:
    """Sequences whose query rows share a tile when the prefix is read; 0 where a tile holds less than one's."""
    return min(case.B, most_rows(case, target) // case.rows)


@cache
def prefix_plan(case: AttentionCase, target: Target) -> Plan:
    """The shared prefix, once for each tile of sequences; the tiles of a KV head one after the other."""
    sequences = prefix_sequences(case, target)
    pairs = [(b, h, ((0, case.prefix),)) for h in range(case.H_kv) for b in range(0, case.B, sequences)]
    return make_plan(case, target, pairs, sequences * case.rows, all_slots=True)
