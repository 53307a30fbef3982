"""A CTA scores a run of a sequence's tokens, 128 at a time: keys are the M side of the tensor cores, heads the N side.

The queries stay in shared memory. A tile of keys is 16 KB of fp8, and several are on their way; a thread adds up the
heads of its tokens in registers. From sm_89 on the tensor cores multiply fp8. Before that, 16-bit words of two keys are
unpacked to fp16 (see `kernels/common/triton_kv.py`), even and odd columns apart; the queries likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.common.integers import cdiv, counted, next_power_of_2
from kernels.common.triton_kv import unpack, unpacked_exponent
from kernels.index_score.op import IndexCase, lengths, work
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target, Work

BLOCK_T = 128
"""Tokens of a tile. Its products with 64 heads take 64 registers of each of 128 threads."""

LONGEST = 2048
"""Tokens of a run at most: its queries, 8 KB, are then 3% of its keys."""


SLOTS = (2.5, 2.57)
"""Instructions of a thread for each byte of a key, as compiled for sm_90: contiguous, in pages. Two of them are the
maximum with 0 and the product with a weight, for half a head."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Runs of `run` tokens; `buffers` tiles on their way in each of `ctas_per_sm` CTAs."""

    run: int
    ctas_per_sm: int
    buffers: int = 3


def plan(case: IndexCase, target: Target) -> Plan:
    """As many runs as there is room for CTAs, with whole tiles. Registers hold three CTAs, two where they unpack."""
    ctas_per_sm = 3 if target.sm >= 89 else 2
    most = cdiv(sum(lengths(case)), target.sm_count * ctas_per_sm)
    return Plan(run=min(LONGEST, max(1, cdiv(most, BLOCK_T)) * BLOCK_T), ctas_per_sm=ctas_per_sm)


def slots_per_byte(case: IndexCase, target: Target) -> float:
    """`KernelLaunch.slots_per_byte`; 0 for a part that is not sm_90."""
    if target.kind != "cuda" or target.sm != 90:
        return 0.0
    return SLOTS[1 if case.page else 0]


@triton.jit
def score_kernel(
    q,  # [B, H, D] fp8, or D / 2 words
    w,  # [B, H] fp32
    keys,  # [pages, page, D] fp8, or D / 2 words
    key_scale,  # [pages, page] fp32
    block_table,  # [B, columns] int32
    lengths,  # [B] int32
    y,  # [B, T] fp32
    T,
    stride_k_page,
    stride_k_t,
    stride_s_page,
    stride_table_b,
    run,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr,
    WORDS: tl.constexpr,
    SM: tl.constexpr,
):
    """HEADS is H, padded to a power of two from 16; COLUMNS are elements or words of a key."""
    b = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + b)
    begin = tl.program_id(0) * run
    end = tl.minimum(begin + run, length)
    offs_h = tl.arange(0, HEADS)
    offs_d = tl.arange(0, COLUMNS)
    offs_i = tl.arange(0, BLOCK_T)
    mask_h = offs_h < H
    weight = tl.load(w + b * H + offs_h, mask=mask_h, other=0.0)
    offs_q = tl.where(mask_h, offs_h, 0)[:, None] * COLUMNS + offs_d[None, :]
    queries = tl.load(q + b * (H * COLUMNS) + offs_q)
    if WORDS:
        q_even, q_odd = unpack(queries, "fp8", "fp16", SM)
        weight *= 2.0 ** (-2 * unpacked_exponent("fp8", "fp16", SM))
    row = block_table + b * stride_table_b
    for block in tl.range(begin, end, BLOCK_T, num_stages=STAGES):
        # tokens past the end read the last one, and are not stored
        t = tl.minimum(block + offs_i, end - 1)
        if PAGE == 0:
            page = tl.zeros_like(t) + b
            place = t.to(tl.int64)
        else:
            page = tl.load(row + t // PAGE).to(tl.int64)
            place = (t % PAGE).to(tl.int64)
        tile = tl.load(keys + (page * stride_k_page + place * stride_k_t)[:, None] + offs_d[None, :])
        scale = tl.load(key_scale + page * stride_s_page + place)
        if WORDS:
            even, odd = unpack(tile, "fp8", "fp16", SM)
            products = tl.dot(odd, tl.trans(q_odd), tl.dot(even, tl.trans(q_even)))
        else:
            products = tl.dot(tile, tl.trans(queries))
        score = tl.sum(tl.maximum(products, 0.0) * weight[None, :], axis=1) * scale
        tl.store(y + b * T + block + offs_i, score, mask=block + offs_i < end)


def build(case: IndexCase, inputs: Inputs, target: Target) -> Built:
    p, keys = plan(case, target), inputs["keys"]
    if keys.stride(2) != 1:
        raise ValueError(f"keys: the last dimension has stride {keys.stride(2)}, expected 1")
    y = torch.empty(case.B, case.T, device=keys.device)
    words = target.kind == "cuda" and target.sm < 89
    q, columns = inputs["q"], case.D
    if words:
        q, keys, columns = q.view(torch.int16), keys.view(torch.int16), case.D // 2
    launch = KernelLaunch(
        kernel=score_kernel,
        grid=(cdiv(case.T, p.run), case.B),
        args={
            "q": q,
            "w": inputs["w"],
            "keys": keys,
            "key_scale": inputs["key_scale"],
            "block_table": inputs["block_table"],
            "lengths": inputs["lengths"],
            "y": y,
            "T": case.T,
            "stride_k_page": keys.stride(0),
            "stride_k_t": keys.stride(1),
            "stride_s_page": inputs["key_scale"].stride(0),
            "stride_table_b": inputs["block_table"].stride(0),
            "run": p.run,
        },
        constexprs={
            "H": case.H,
            "HEADS": max(16, next_power_of_2(case.H)),
            "COLUMNS": columns,
            "PAGE": case.page,
            "BLOCK_T": BLOCK_T,
            "STAGES": 2 * p.buffers - 1 if case.page else p.buffers,
            "WORDS": words,
            "SM": target.sm if target.kind == "cuda" else 0,
        },
        num_warps=4,
        num_stages=p.buffers,
        streams=("keys",),
        wants_mma=True,
        slots_per_byte=slots_per_byte(case, target),
    )
    return Built(launches=(launch,), output=y)


def stages(case: IndexCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes; further runs of a sequence find its queries in the L2. Tiles are padded to 128 tokens."""
    p, least = plan(case, target), work(case)
    runs = [min(p.run, length - first) for length in lengths(case) for first in range(0, length, p.run)]
    tiles = sum(cdiv(run, BLOCK_T) for run in runs)
    heads = max(16, next_power_of_2(case.H))
    pipe = "mma_fp8" if target.sm >= 89 else "mma_bf16"
    flops = {pipe: 2 * tiles * BLOCK_T * heads * case.D, "fma_fp32": 2 * tiles * BLOCK_T * heads}
    return (
        Stage(
            name="score",
            work=Work(flops=flops, bytes_read=least.bytes_read, bytes_written=least.bytes_written),
            l2_bytes=max(0, len(runs) - case.B) * case.H * (case.D + 4),
            ctas=len(runs),
            ctas_per_sm=p.ctas_per_sm,
            pieces=counted(cdiv(run, BLOCK_T) for run in runs),
            loads_before={"dram": 2 if case.page else 1},
            instructions=round(slots_per_byte(case, target) * tiles * BLOCK_T * case.D),
        ),
    )


def supports(case: IndexCase, target: Target) -> str | None:
    if case.D & (case.D - 1) or case.D < 32:
        return f"needs keys whose width is a power of two from 32, not {case.D}"
    return None


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
