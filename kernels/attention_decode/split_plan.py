"""Plans of split-KV attention: tiles, blocks, and which CTA reads which tokens. Standard library only.

`kernels/common/split_kv.py` cuts the tokens into even runs. A pair with more query rows than one tile holds (64 as a
rule) has several tiles of rows. Each tile has its own CTAs. The CTAs of all tiles walk side by side over the same
tokens, so all but the first find K and V in the L2.
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
"""Most query rows of a tile. With 128, fp32 accumulators of 128 dims and a tile of scores spill on every part."""

START_BLOCKS = 1
"""What the start of a range of tokens costs, in blocks. A CTA reads the list, the page ids and the first block one
after the other, and stores a result in the end. One block of 32 KB takes 4,500 cycles on one of the two CTAs of an
H100's SM. The cost is estimated, not measured. (FlashMLA's scheduler counts 5 blocks of 64 tokens,
`fixed_overhead_num_blocks`.)"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Run c is `segments[starts[c] : starts[c + 1]]`; a CTA keeps `buffers` blocks of K and V in shared memory.

    There are `runs` runs. Each has one CTA for each of the `row_tiles` tiles of `block_m` query rows.

    `num_stages` is Triton's number of pipeline steps. With pages it is 2 buffers - 1, since page ids and the loads that
    wait for them share the steps. `sm`: the part that an 8-bit cache is unpacked for, 0 for the interpreter. `merge`
    says who merges the parts of cut pairs: `last`, the CTA that finishes last; `kernel`, a second kernel; `none`, if no
    pair is cut.
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
    sm: int
    runs: int
    ctas_per_sm: int
    segments: tuple[Segment, ...]
    starts: tuple[int, ...]
    slots: int
    merge: str
    merge_tile: int


def most_rows(case: AttentionCase, target: Target) -> int:
    """The most query rows of a tile: fewer than MAX_ROWS where 64 rows would spill.

    - Heads of 256 dims have 32 rows, on sm_100 16; heads of 512 dims have 16.
    - On sm_80 an 8-bit cache has 32 rows: its unpacked values take registers beside the sums.
    - On sm_100, where sums pass through registers, so do pages that hold whole blocks, with their addresses.
    """
    if case.width > 256:
        return 16
    if case.width > 128:
        return 32 if target.sm < 100 else 16
    if (target.sm < 90 and case.kv) or (target.sm >= 100 and case.page and case.page % 64 == 0):
        return 32
    return MAX_ROWS


def tile_rows(rows: int, most: int = MAX_ROWS) -> int:
    """Query rows of a tile; tensor cores take at least 16."""
    return min(most, max(16, next_power_of_2(rows)))


def block_tokens(case: AttentionCase, block_m: int, target: Target) -> int:
    """Tokens of a block: 32 KB (K and V of 64 tokens of 128 16-bit dims), but at least the 64 rows of a wgmma.

    - sm_80, which has no wgmma, has half of both: its shared memory is smaller, and three buffers must fit twice.
    - An 8-bit cache has 64 tokens: unpacking passes through registers, and 128 tokens would spill. So would, on sm_100,
      scores of 128 tokens and more than 16 rows.
    - A wide tile has 128 tokens, 64 for each of its two warpgroups. With 64, Triton gives all of them to both, and
      their softmax, done twice, takes 87% of the slots that an H100's SM issues in.
    - Heads of 512 dims have 32 tokens, since two blocks of 64 would not fit. `mma` then multiplies K, and wgmma V.
    """
    if case.width > 256:
        return 32 if target.sm >= 90 or case.kv else 16
    if case.kv or (target.sm >= 100 and block_m > 16):
        return 64
    if target.sm == 90 and is_wide(case, block_m, target) and case.width <= 128:
        return 128
    half = 1 if target.sm >= 90 else 2
    return max(64, (32 << 10) // (2 * case.width * BYTES[case.dtype])) // half


def smem_per_cta(case: AttentionCase, block_t: int, block_m: int, buffers: int) -> int:
    """Bytes of shared memory: K, V, Q and P, and what the system takes. Of nvfp4 it holds the codes, and K or V of a
    block in fp16."""
    kv = int(2 * buffers * block_t * case.width * case.code_bytes)
    if case.kv == "nvfp4":
        kv += block_t * case.width * BYTES["fp16"]
    return kv + (case.width + block_t) * block_m * BYTES[case.dtype] + SMEM_RESERVED


def is_wide(case: AttentionCase, block_m: int, target: Target) -> bool:
    """Whether O^T alone would take more than 32 registers in each of 128 threads: beside the scores, some would spill.

    On sm_100 the limit is 16, since accumulators pass through registers between tensor memory and every rescaling. A
    wide CTA has 256 threads, and an SM's 65,536 registers hold one such CTA. Heads of 512 dims are not wide: O^T takes
    64 registers, but the scores of 32 tokens take 4.
    """
    return case.width <= 256 and block_m * case.width > (32 if target.sm < 100 else 16) * 128


def residency(case: AttentionCase, block_m: int, target: Target) -> tuple[int, int]:
    """(CTAs per SM, blocks that each buffers).

    Two CTAs hide each other's softmax and ends of segments. Three buffers keep two blocks on their way. If shared
    memory is short, the third buffer is given up first, then the second CTA. On sm_100 with pages the third buffer is
    given up too, where the addresses of a third block, beside 64 rows of 128 dims, would spill. A block of an 8-bit
    cache has half the bytes, and there is more to do between its two products: on sm_90 a third CTA hides that, if 168
    registers suffice. They do for 16 rows; with 32 rows of 64 dims, two CTAs have a fourth buffer instead. On sm_100,
    8-bit blocks of 64 dims are so small that it takes five buffers to have 64 KiB in flight. On sm_80, a 16-bit cache
    of heads of 512 dims has one CTA: with two buffers some addresses would spill.
    """
    if case.width > 256:
        choices: tuple[tuple[int, int], ...] = ((2, 3), (2, 2), (1, 3)) if target.sm >= 90 or case.kv else ((1, 3),)
    elif target.sm >= 100 and case.page and block_m * case.width > 32 * 128 and case.kv != "nvfp4":
        return 1, 2
    else:
        choices = ((1, 3),) if is_wide(case, block_m, target) else ((2, 3), (2, 2), (1, 3))
    if case.kv == "nvfp4":
        choices = in_flight(case, block_m, target)
    elif target.sm == 90 and case.kv and block_m * case.width <= 16 * 128:
        choices = ((3, 3) if block_m == 16 else (2, 4), *choices)
    elif target.sm >= 100 and case.kv and case.width == 64 and block_m <= 32:
        choices = ((2, 5), *choices)
    for ctas, buffers in choices:
        if ctas * smem_per_cta(case, block_tokens(case, block_m, target), block_m, buffers) <= target.smem_per_sm:
            return ctas, buffers
    return 1, 2


def in_flight(case: AttentionCase, block_m: int, target: Target) -> tuple[tuple[int, int], ...]:
    """(CTAs per SM, buffers) for nvfp4, whose blocks are small: as many buffers as have 48 KiB under way, on sm_100
    64 KiB, or one less, and so on."""
    ctas = 1 if is_wide(case, block_m, target) else 3 if target.sm == 90 and block_m * case.width <= 16 * 128 else 2
    wanted = (64 << 10) if target.sm >= 100 else (48 << 10)
    most = 1 + cdiv(wanted, ctas * block_tokens(case, block_m, target) * case.width)
    return tuple((ctas, buffers) for buffers in range(most, 1, -1))


def make_plan(
    case: AttentionCase,
    target: Target,
    pairs: Sequence[Pair],
    rows: int,
    *,
    all_slots: bool = False,
) -> Plan:
    """The plan for `pairs` with `rows` query rows each. A caller that asks for `all_slots` merges the parts itself.

    The last CTA merges if two tiles of parts suffice: two round trips to the L2 cost less than a launch. With more
    parts a second kernel, spread over all rows, is faster. Wide tiles and heads of 512 dims leave the last CTA no
    registers for a merge.
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
    merge_tile = max(1, MERGE_TILE // (block_m * case.width))
    full = is_wide(case, block_m, target) or case.width > 256
    merge = "kernel" if full or max(s.parts for s in segments) > 2 * merge_tile else "last"
    if not slots or all_slots:
        merge = "none"
    return Plan(
        **fields,
        block_m=block_m,
        row_tiles=row_tiles,
        blocks=blocks,
        num_stages=2 * buffers - 1 if case.page else buffers,
        v_columns=bool(case.kv) or target.sm < 90,
        sm=target.sm if target.kind == "cuda" else 0,
        # without a limit the compiler makes room for more CTAs than are planned: on sm_80 and sm_100 it spills scalars
        # for them; on sm_90 nothing spills, but an 8-bit cache takes more registers than three CTAs have
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
    """The plan for all tokens of all sequences; each sequence reads a shared prefix."""
    pairs = [(b, h, live(case, length)) for b, length in enumerate(lengths(case)) for h in range(case.H_kv)]
    return make_plan(case, target, pairs, case.rows)


LARGE = 1 << 26
"""Bytes of K and V, 20 us at 3.35 TB/s. Below it latency matters, so the tuner treats small and large cases apart."""


def shape_class(case: AttentionCase) -> str:
    """Cases of one class are alike in how tokens are found, in types and tile, and in whether there are many tokens."""
    found = f"page{min(case.page, 64)}" if case.page else "contiguous"
    size = "large" if 2 * case.B * case.T * case.H_kv * case.D * case.kv_bytes >= LARGE else "small"
    rest = " window" if case.window else ""
    return f"{found} {case.kv or case.dtype} D{case.D} M{tile_rows(case.rows)}{rest} {size}"


def candidates(case: AttentionCase, target: Target) -> Iterator[dict[str, int]]:
    """Ways to divide an SM's shared memory into CTAs and buffers that leave at most half of it unused."""
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
    """The plan for the tokens after the shared prefix."""
    own = [((case.prefix, length),) for length in lengths(case)]
    return make_plan(case, target, [(b, h, r) for b, r in enumerate(own) for h in range(case.H_kv)], case.rows)


def prefix_sequences(case: AttentionCase, target: Target) -> int:
    """Sequences whose query rows share a tile for the prefix; 0 if a tile cannot hold the rows of one."""
    return min(case.B, most_rows(case, target) // case.rows)


@cache
def prefix_plan(case: AttentionCase, target: Target) -> Plan:
    """The plan for the shared prefix, once for each tile of sequences; the tiles of a KV head follow each other."""
    sequences = prefix_sequences(case, target)
    pairs = [(b, h, ((0, case.prefix),)) for h in range(case.H_kv) for b in range(0, case.B, sequences)]
    return make_plan(case, target, pairs, sequences * case.rows, all_slots=True)
