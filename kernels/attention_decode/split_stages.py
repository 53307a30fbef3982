"""What split-KV attention and its cascade move and compute, and where they can run. Standard library only."""

from __future__ import annotations

from itertools import pairwise

from kernels.attention_decode.op import AttentionCase, kv_tokens_bytes, lengths, live, table_bytes, work
from kernels.attention_decode.split_plan import (
    Plan,
    block_tokens,
    most_rows,
    plan,
    prefix_plan,
    prefix_sequences,
    smem_per_cta,
    suffix_plan,
    tile_rows,
)
from kernels.common.integers import cdiv, counted
from kernels.common.random_inputs import BYTES
from kernels.common.split_kv import MERGE_WARPS_PER_SM, block_count, merge_shape
from kernels.common.workspace import passing
from kernels.op import Stage, Target, Work


def fits(case: AttentionCase, target: Target, rows: int) -> str | None:
    block_m = tile_rows(rows, most_rows(case, target))
    least = smem_per_cta(case, block_tokens(case, block_m, target), block_m, 2)
    if target.kind == "cuda" and least > target.smem_per_sm:
        return f"needs {least} bytes of shared memory, an SM has {target.smem_per_sm}"
    return None


def supports(case: AttentionCase, target: Target) -> str | None:
    if case.dtype == "fp32":
        return "needs a 16-bit query: tensor cores round fp32 operands to tf32"
    step = 64 if case.kv == "nvfp4" else 16
    if case.kv == "nvfp4" and case.width > 256:
        return f"needs a head_dim of up to 256 for an nvfp4 cache, this is {case.D}: unpacking would spill"
    if case.D % step or case.width > 512:
        return f"needs a head_dim of a multiple of {step} up to 512, this is {case.D}: reads would be narrow"
    return fits(case, target, case.rows)


SLOTS = {
    16: {64: (1.9, 2.6, 4.0), 128: (1.7, 2.2, 3.3), 256: (1.5, 2.85), 512: (1.5,)},
    8: {64: (6.8, 9.7, 15.3), 128: (4.1, 5.2, 14.4), 256: (3.3, 6.2), 512: (4.05,)},
    4: {64: (13.0, 17.0, 25.9), 128: (9.65, 11.75, 27.0), 256: (8.25, 13.4)},
}
"""Instructions of a thread for each byte of a contiguous cache, as compiled for sm_90: by the bits of its elements and
by the width of a head, for tiles of 16, 32 and 64 rows. The dims that pad a head count as bytes here, though they are
not read; the scales of nvfp4 do not count. Unpacking costs a cache of 8 or 4 bits most of its instructions: nvfp4 takes
as many for an element as fp8 does. With 64 rows its 8 warps would share 64 tokens, so
both warpgroups do the whole softmax."""

INT8_SLOTS = 0.25
"""What int8 costs beyond fp8."""

SOFTCAP_SLOTS = 13
"""What a soft cap costs for each score."""

PAGED_SLOTS = {
    16: {"whole": 0.05, "token": 0.2, "scattered": 0.8},
    8: {"whole": 0.1, "token": 0.5, "scattered": 1.1},
    4: {"whole": 0.4, "token": 0.4, "scattered": 0.9},
}
"""What pages cost beyond that: pages that hold whole blocks, pages of one token, all others."""

SAVED_SLOTS = 0.25
"""What `attend` saves where it keeps no addresses across its loop."""


def slots_per_byte(case: AttentionCase, p: Plan) -> float:
    """`KernelLaunch.slots_per_byte` of the split kernel; 0 for a part that is not sm_90."""
    if p.sm != 90:
        return 0.0
    bits = 4 if case.kv == "nvfp4" else 8 if case.kv else 16
    slots = SLOTS[bits][case.width][p.block_m.bit_length() - 5] + (INT8_SLOTS if case.kv == "int8" else 0.0)
    # with heads of 64 dims a block has as many tokens as threads: the addresses of pages come for free
    if case.page and (case.kv or case.width > 64):
        pages = "whole" if case.page % p.block_t == 0 else "token" if case.page == 1 else "scattered"
        slots += PAGED_SLOTS[bits][pages] * (128 / case.width if bits == 4 else 1)
        if case.page == p.block_t and case.width == 256 and p.block_m == 16 and not case.kv:
            slots -= SAVED_SLOTS
    if case.softcap:
        slots += SOFTCAP_SLOTS * p.block_m / (2 * case.width * case.code_bytes)
    return slots


def instructions(case: AttentionCase, p: Plan) -> int:
    """Those of the split kernel's main loop, for all CTAs: each tile of rows reads all blocks."""
    streamed = 2 * p.blocks * p.block_t * case.width * case.code_bytes * p.row_tiles
    return round(slots_per_byte(case, p) * streamed)


def pieces(p: Plan) -> tuple[tuple[int, int], ...]:
    """`Stage.pieces`: the blocks of each run. All runs of a tile of rows start before those of the next tile."""
    blocks = [block_count([(s.t_begin, s.t_end)], p.block_t) for s in p.segments]
    return counted([sum(blocks[first:end]) for first, end in pairwise(p.starts)] * p.row_tiles)


def loads_before(case: AttentionCase) -> dict[str, int]:
    """The place of the run, its first segment, the query, the page ids: the compiled code waits for each of them before
    it asks for the next, and then for the first block."""
    return {"dram": 4 if case.page else 3}


def loads_after(p: Plan) -> dict[str, int]:
    """Where the last CTA of a pair merges its parts: the CTA's own part must have reached the L2, then its arrival is
    counted, then it reads the parts, `merge_tile` of them at a time."""
    if p.merge != "last":
        return {}
    return {"l2": 2 + cdiv(max(s.parts for s in p.segments), p.merge_tile)}


def parts_bytes(case: AttentionCase, slots: int, rows: int) -> int:
    return slots * rows * (case.D + 1) * BYTES["fp32"]


def split_stages(
    case: AttentionCase, p: Plan, target: Target, *, name: str, bytes_read: int, l2_bytes: int
) -> tuple[Stage, ...]:
    """The split kernel and, if there is one, the merge kernel, with padding on the tensor cores. Parts pass through the
    workspace.

    `bytes_read` and `l2_bytes` are those of caches, tables and queries. The lists of segments are added here; each
    further row tile reads them from the L2.
    """
    lists = 4 * (8 * len(p.segments) + len(p.starts))
    size = case.D * BYTES[case.dtype]
    cut = sum(s.is_first for s in p.segments if s.parts > 1) if p.merge == "kernel" else 0
    parts = parts_bytes(case, p.slots, case.rows)
    main = Stage(
        name=name,
        work=Work(
            flops={"mma_bf16": 4 * p.blocks * p.block_t * p.row_tiles * p.block_m * case.width},
            bytes_read=bytes_read + lists,
            bytes_written=(case.B * case.H_kv - cut) * case.rows * size,
        ),
        l2_bytes=l2_bytes + (p.row_tiles - 1) * lists,
        ctas=p.runs * p.row_tiles,
        ctas_per_sm=p.ctas_per_sm,
        pieces=pieces(p),
        loads_before=loads_before(case),
        loads_after=loads_after(p),
        instructions=instructions(case, p),
    )
    main = passing(main, target, parts, written=parts, read=0 if cut else parts)
    if not cut:
        return (main,)
    merge = Stage(
        name="merge",
        work=Work(
            flops={"fma_fp32": 2 * p.slots * case.rows * case.D},
            bytes_read=16 * cut,
            bytes_written=cut * case.rows * size,
        ),
        ctas=cut * case.rows,
        ctas_per_sm=MERGE_WARPS_PER_SM // merge_shape(p.segments, case.width)[1],
        loads_before={"dram": 1},
    )
    return main, passing(merge, target, parts, read=parts)


def from_l2(case: AttentionCase, target: Target) -> bool:
    """Whether the L2 holds the K and V of a shared prefix."""
    return kv_tokens_bytes(case, ((0, case.prefix),)) <= target.l2_bytes


def stages(case: AttentionCase, target: Target) -> tuple[Stage, ...]:
    """The caches once, as in `work`, and what is read again.

    Every sequence reads a shared prefix, from the L2 if K and V of the prefix fit there. Each KV head reads the table
    entries, and each tile of query rows reads everything; all but the first of them read from the L2.
    """
    p = plan(case, target)
    shared = ((0, case.prefix),)
    again = (case.B - 1) * (kv_tokens_bytes(case, shared) + table_bytes(case, shared))
    ranges = [live(case, length) for length in lengths(case)]
    tables = sum(table_bytes(case, r) for r in ranges)
    caches = sum(kv_tokens_bytes(case, r) for r in ranges)
    return split_stages(
        case,
        p,
        target,
        name="split_kv",
        bytes_read=work(case).bytes_read + (0 if from_l2(case, target) else again),
        l2_bytes=(p.row_tiles * case.H_kv - 1) * tables
        + (p.row_tiles - 1) * caches
        + (again if from_l2(case, target) else 0),
    )


def cascade_supports(case: AttentionCase, target: Target) -> str | None:
    if not case.prefix:
        return "needs a prefix that all sequences share"
    if not prefix_sequences(case, target):
        return (
            f"reads a prefix once for all sequences whose query rows share a tile of {most_rows(case, target)}; here a "
            f"sequence has {case.q_len} x {case.group} rows"
        )
    return supports(case, target) or fits(case, target, prefix_sequences(case, target) * case.rows)


def cascade_stages(case: AttentionCase, target: Target) -> tuple[Stage, ...]:
    """Each tile of sequences reads the prefix once. All but the first read it from the L2, if it fits there."""
    prefix, suffix = prefix_plan(case, target), suffix_plan(case, target)
    tiles = cdiv(case.B, prefix_sequences(case, target))
    shared = ((0, case.prefix),)
    once = kv_tokens_bytes(case, shared)
    again = (tiles - 1) * once
    parts = parts_bytes(case, prefix.slots, prefix_sequences(case, target) * case.rows)
    q = case.B * case.q_len * case.H_q * case.D * BYTES[case.dtype]
    tables = sum(table_bytes(case, ((case.prefix, length),)) for length in lengths(case))
    first = Stage(
        name="prefix",
        work=Work(
            flops={"mma_bf16": 4 * prefix.blocks * prefix.block_t * prefix.block_m * case.width},
            bytes_read=once
            + table_bytes(case, shared)
            + q
            + 4 * (8 * len(prefix.segments) + len(prefix.starts))
            + (0 if from_l2(case, target) else again),
        ),
        l2_bytes=(again if from_l2(case, target) else 0) + (case.H_kv * tiles - 1) * table_bytes(case, shared),
        ctas=prefix.runs,
        ctas_per_sm=prefix.ctas_per_sm,
        pieces=pieces(prefix),
        loads_before=loads_before(case),
        instructions=instructions(case, prefix),
    )
    rest = split_stages(
        case,
        suffix,
        target,
        name="suffix",
        bytes_read=work(case).bytes_read - once - table_bytes(case, shared) - q,
        l2_bytes=q + (case.H_kv - 1) * tables,
    )
    merging, *others = rest
    return passing(first, target, parts, written=parts), passing(merging, target, parts, read=parts), *others
