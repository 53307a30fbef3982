"""How latent attention is cut into CTAs: tiles of rows, parts of O's dims, segments of tokens, buffers of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from kernels.common.integers import cdiv
from kernels.common.random_inputs import BYTES
from kernels.common.split_kv import LONG, Segment, block_count, split
from kernels.launch import SMEM_RESERVED
from kernels.mla_decode.op import MlaCase, lengths
from kernels.op import Target, Tuning

BLOCK_M = 64
"""Query rows of a tile: the M of a `wgmma`. The fp32 sums of 64 x 512 take 128 registers in each of 256 threads."""

BLOCK_M_WORDS = 32
"""Query rows with fp8 latents before wgmma, where registers hold the queries too, beside sums and unpacked latents."""

BLOCK_T = 32
"""Tokens of a block. With 576 16-bit elements each, a block is 36 KB; with fp8 latents it is 20 KB.

Blocks of 64 tokens would read the queries from shared memory half as often: for two tiles of rows the banks' cycles
would be 1.06 of DRAM's time instead of 1.5. But only two such blocks fit, and Triton starts the next copy after the
products of the last block, so no copy would be in flight during the products. The tuner may choose 64.
"""

WARPS = 8
"""Of a CTA. On sm_90 they are two groups of a `wgmma`."""

START_TOKENS = 64
"""What a further piece costs its SM, in tokens. No other CTA works there while the queries (as many bytes as 64 tokens)
and the first block of the piece are on their way."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`segments`, the longest first, `programs` for each: one for each tile of rows and for each of the `parts` of O's
    dims; `buffers` blocks in shared memory.

    `num_stages` is Triton's number of pipeline steps; page ids and the loads that wait for them share the steps.
    `words`: the kernel of `triton_words.py` reads fp8 latents two by two.
    """

    words: bool
    parts: int
    block_m: int
    programs: int
    block_t: int
    blocks: int
    buffers: int
    num_stages: int
    segments: tuple[Segment, ...]
    slots: int


def smem_bytes(case: MlaCase, buffers: int, block_t: int = BLOCK_T, block_m: int = BLOCK_M) -> int:
    """Bytes of blocks of tokens, queries, one block's fp8 latents in fp16, and what the system takes."""
    converted = block_t * case.L * BYTES["fp16"] if case.kv else 0
    queries = block_m * (case.L + case.R) * BYTES[case.dtype]
    return buffers * block_t * case.token_bytes + queries + converted + SMEM_RESERVED


def few_buffers(case: MlaCase, target: Target) -> bool:
    """Whether addresses of small pages leave no registers for those of a third block."""
    return case.kv == "fp8" and target.sm >= 100 and case.page % BLOCK_T > 0


@cache
def plan(case: MlaCase, target: Target) -> Plan:
    """As many buffers as fit, up to four; with tcgen05 (sm_100) Triton keeps two more than it is asked for.

    On sm_100 there are two buffers for fp8 latents in pages smaller than a block: the addresses of a third would spill.
    """
    smem = target.smem_per_sm or 228 << 10
    words = case.kv == "fp8" and target.sm != 90
    before_wgmma = target.kind == "cuda" and target.sm < 90
    block_m = BLOCK_M_WORDS if case.kv and before_wgmma else BLOCK_M
    parts = 2 if case.kv == "nvfp4" and target.sm < 100 else 1
    spare = 2 if target.sm >= 100 else 0
    most = 2 if few_buffers(case, target) else 5 if case.kv == "nvfp4" else 4
    buffers = next((n for n in range(most, 2, -1) if smem_bytes(case, n + spare, block_m=block_m) < smem), 2)
    fields = {"block_t": BLOCK_T, "buffers": buffers}
    fields |= target.overrides
    block_t, buffers = fields["block_t"], fields["buffers"]
    programs = cdiv(case.rows, block_m) * parts
    pairs = [(b, 0, ((0, length),)) for b, length in enumerate(lengths(case))]
    blocks = sum(block_count(ranges, block_t) for _, _, ranges in pairs)
    runs = max(1, min(blocks, target.sm_count // programs))
    start_blocks = START_TOKENS // block_t if blocks >= LONG * runs else 0
    segments, _, slots = split(pairs, block_t, runs, all_slots=True, start_blocks=start_blocks)
    return Plan(
        words=words,
        parts=parts,
        block_m=block_m,
        programs=programs,
        blocks=blocks,
        **fields,
        num_stages=2 * buffers - 1 if case.page else buffers,
        segments=tuple(sorted(segments, key=lambda s: s.t_begin - s.t_end)),
        slots=slots,
    )


SLOTS = {"": (3.8, 4.0, 5.3, 4.1), "fp8": (8.75, 9.2, 10.1, 8.95), "nvfp4": (16.2, 16.8, 16.9, 16.3)}
"""Instructions of a thread for each byte of the cache, as compiled for sm_90: contiguous, in pages that hold whole
blocks, in smaller pages, in a list of tokens. fp8 is a bit more than half as many bytes for the same products, and is
unpacked. nvfp4 has fewer bytes still, and each of the two programs of a row tile unpacks all of them."""


def slots_per_byte(case: MlaCase, p: Plan, target: Target) -> float:
    """`KernelLaunch.slots_per_byte` of the main kernel; 0 for a part that is not sm_90."""
    if target.sm != 90 or target.kind != "cuda":
        return 0.0
    contiguous, whole, scattered, alone = SLOTS[case.kv]
    if case.page <= 1:
        return alone if case.page else contiguous
    return scattered if case.page % p.block_t else whole


def shape_class(case: MlaCase) -> str:
    """Cases of one class are alike in how tokens are found, in widths and in types."""
    return f"{f'page{min(case.page, 64)}' if case.page else 'contiguous'} L{case.L} R{case.R} {case.kv or case.dtype}"


def candidates(case: MlaCase, target: Target) -> Iterator[dict[str, int]]:
    """Blocks and buffers that fill at least half of an SM's shared memory. Blocks of 64 converted latents would
    spill."""
    for block_t in (32,) if case.kv else (32, 64):
        for buffers in (2, 3, 4):
            if target.smem_per_sm // 2 <= smem_bytes(case, buffers, block_t) <= target.smem_per_sm:
                yield {"block_t": block_t, "buffers": buffers}


TUNING = Tuning(op="mla_decode", shape_class=shape_class, candidates=candidates)
