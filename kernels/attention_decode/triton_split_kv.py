"""Split-KV decode attention (flash-decoding): every CTA streams as many KV tokens, and parts merge by log-sum-exp.

`split_plan.py` tells which CTA reads what, `triton_attend.py` how it reads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.attention_decode.op import SCALE_GROUP, AttentionCase
from kernels.attention_decode.split_plan import Plan, candidates, plan, shape_class
from kernels.attention_decode.split_stages import slots_per_byte, stages, supports
from kernels.attention_decode.triton_attend import (
    SCALES_STEP,
    attend,
    cache_args,
    cache_strides,
    in_head,
    load_query,
    merge_parts,
    normalise,
    stride_step,
    with_sink,
)
from kernels.common.triton_kv import LOG2_E, Parts, merge_launch, new_parts, strides, table
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Target, Tuning


@triton.jit
def split_kv_kernel(
    q,
    k,
    v,
    k_scale,
    v_scale,
    k_global,
    v_global,
    block_table,
    lengths,
    segments,
    starts,
    partial_o,
    partial_lse,
    arrivals,
    prefix_o,
    prefix_lse,
    prefix_slots,
    sink_logits,
    o,
    B,
    scale,
    stride_q_b,
    stride_q_i,
    stride_q_h,
    stride_k_page,
    stride_k_t,
    stride_k_h,
    stride_v_page,
    stride_v_t,
    stride_v_h,
    stride_s_page,
    stride_s_group,
    stride_s_h,
    stride_table_b,
    stride_o_b,
    stride_o_i,
    stride_o_h,
    Q_LEN: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PAGE: tl.constexpr,
    KV: tl.constexpr,
    SM: tl.constexpr,
    V_COLUMNS: tl.constexpr,
    STRIDE_STEP: tl.constexpr,
    SCALE_GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINK_LOGITS: tl.constexpr,
    MERGE_TILE: tl.constexpr,
    PARTS_ONLY: tl.constexpr,
    ROW_TILES: tl.constexpr,
    SEQS: tl.constexpr,
    PREFIX_SEQS: tl.constexpr,
    PREFIX_TILE: tl.constexpr,
):
    """Program (run, row tile) works on the segments of its run.

    - ROW_TILES > 1: the rows of a sequence and KV head are cut into tiles of BLOCK_M
    - MERGE_TILE > 0: the CTA that completes a cut pair merges its parts
    - STRIDE_STEP > 1: strides of the caches are told in so many words
    - SEQS > 1: a tile holds the rows of SEQS sequences, which all read the pages of the first (a shared prefix)
    - SINK_LOGITS: the first segment of a pair counts the logits of its heads' sinks
    - PREFIX_SEQS > 0: the first segment of a pair also merges the parts of its shared prefix, whose tiles hold
      PREFIX_SEQS sequences; `prefix_slots [H_kv, tiles, 2]` has each tile's first slot and number of parts
    """
    ROWS: tl.constexpr = Q_LEN * GROUP
    if STRIDE_STEP > 1:
        stride_k_page *= STRIDE_STEP
        stride_k_t *= STRIDE_STEP
        stride_k_h *= STRIDE_STEP
        stride_v_page *= STRIDE_STEP
        stride_v_t *= STRIDE_STEP
        stride_v_h *= STRIDE_STEP
    SCALE_STEP: tl.constexpr = SCALES_STEP if KV == "nvfp4" else 1
    if KV == "nvfp4":
        scale *= tl.load(k_global)
    offs_m = tl.arange(0, BLOCK_M)
    if ROW_TILES > 1:
        offs_m += tl.program_id(1) * BLOCK_M
    offs_r = offs_m % ROWS
    offs_i = offs_r // GROUP
    offs_d = tl.arange(0, WIDTH)
    # values made of rows and strides are cheap to compute again; kept across the inner loop they would spill
    for s in tl.range(tl.load(starts + tl.program_id(0)), tl.load(starts + tl.program_id(0) + 1), disable_licm=True):
        b = tl.load(segments + 8 * s)
        h = tl.load(segments + 8 * s + 1)
        t_begin = tl.load(segments + 8 * s + 2)
        t_end = tl.load(segments + 8 * s + 3)
        slot = tl.load(segments + 8 * s + 4)
        first_slot = tl.load(segments + 8 * s + 5)
        parts = tl.load(segments + 8 * s + 6)
        seq = b + offs_m // ROWS
        mask_m = (offs_m < SEQS * ROWS) & (seq < B)
        heads = h * GROUP + offs_r % GROUP
        offs_q = seq * stride_q_b + offs_i * stride_q_i + heads * stride_q_h
        even, odd = load_query(q, offs_q, mask_m, D=D, WIDTH=WIDTH, KV=KV, SM=SM)
        page_0 = b.to(tl.int64) if PAGE == 0 else 0
        kv_head = h.to(tl.int64)
        acc_even, acc_odd, m, norm = attend(
            even,
            odd,
            tl.load(lengths + seq, mask=mask_m, other=0) - Q_LEN + offs_i,
            k + page_0 * stride_k_page + kv_head * stride_k_h,
            v + page_0 * stride_v_page + kv_head * stride_v_h,
            k_scale + (page_0 * stride_s_page + kv_head * stride_s_h) * SCALE_STEP,
            v_scale + (page_0 * stride_s_page + kv_head * stride_s_h) * SCALE_STEP,
            block_table + b * stride_table_b,
            t_begin,
            t_end,
            scale,
            stride_k_page,
            stride_k_t,
            stride_v_page,
            stride_v_t,
            stride_s_page,
            stride_s_group,
            D=D,
            WIDTH=WIDTH,
            BLOCK_T=BLOCK_T,
            BLOCK_M=BLOCK_M,
            PAGE=PAGE,
            KV=KV,
            SM=SM,
            V_COLUMNS=V_COLUMNS,
            SCALE_GROUP=SCALE_GROUP,
            CAUSAL=Q_LEN > 1,
            WINDOW=WINDOW,
            SINKS=SINKS,
            SOFTCAP=SOFTCAP,
        )
        out = normalise(acc_even, acc_odd, norm, KV=KV, SM=SM)
        if KV == "nvfp4":
            out *= tl.load(v_global)
        lse = m + tl.log2(tl.where(norm > 0, norm, 1.0))
        if SINK_LOGITS:
            sink = tl.load(sink_logits + heads, mask=mask_m, other=0.0) * LOG2_E
            out, lse = with_sink(out, lse, tl.where(slot == first_slot, sink, float("-inf")))
        if PREFIX_SEQS > 0:  # noqa: SIM102 (the first is known at compile time, the second is not)
            if slot == first_slot:
                tile = h * ((B + PREFIX_SEQS - 1) // PREFIX_SEQS) + b // PREFIX_SEQS
                row = tl.load(prefix_slots + 2 * tile) * (PREFIX_SEQS * ROWS) + b % PREFIX_SEQS * ROWS
                out, lse = merge_parts(
                    out,
                    lse,
                    prefix_o + row * D,
                    prefix_lse + row,
                    tl.load(prefix_slots + 2 * tile + 1),
                    offs_m,
                    mask_m,
                    ROWS=PREFIX_SEQS * ROWS,
                    D=D,
                    WIDTH=WIDTH,
                    TILE=PREFIX_TILE,
                )
        mask_o = in_head(mask_m[:, None], offs_d[None, :], D, WIDTH)
        offs_o = (seq * stride_o_b + offs_i * stride_o_i + heads * stride_o_h)[:, None] + offs_d[None, :]
        if (parts == 1) & (not PARTS_ONLY):
            tl.store(o + offs_o, out.to(o.dtype.element_ty), mask=mask_o)
        else:
            row = slot * (SEQS * ROWS)
            tl.store(partial_o + (row + offs_m)[:, None] * D + offs_d[None, :], out, mask=mask_o)
            tl.store(partial_lse + row + offs_m, lse, mask=mask_m)
            if MERGE_TILE > 0:
                pair = tl.load(segments + 8 * s + 7)
                if ROW_TILES > 1:
                    pair = pair * ROW_TILES + tl.program_id(1)
                tl.debug_barrier()  # all threads must have stored their parts before one thread counts this CTA
                arrived = tl.atomic_add(arrivals + pair, 1, sem="acq_rel", scope="gpu")
                if arrived == parts - 1:
                    row = first_slot * ROWS
                    merged, _ = merge_parts(
                        tl.zeros([BLOCK_M, WIDTH], tl.float32),
                        tl.full([BLOCK_M], float("-inf"), tl.float32),
                        partial_o + row * D,
                        partial_lse + row,
                        parts,
                        offs_m,
                        mask_m,
                        ROWS=ROWS,
                        D=D,
                        WIDTH=WIDTH,
                        TILE=MERGE_TILE,
                    )
                    tl.store(o + offs_o, merged.to(o.dtype.element_ty), mask=mask_o)
                    tl.store(arrivals + pair, 0)  # the next launch expects zero


def split_launch(
    case: AttentionCase,
    inputs: Inputs,
    p: Plan,
    parts: Parts,
    o: torch.Tensor,
    *,
    sequences: int = 1,
    parts_only: bool = False,
    prefix: tuple[Parts, torch.Tensor, int, int] | None = None,
) -> KernelLaunch:
    """`prefix`: its parts, their slots, the sequences of a tile, and how many parts are merged at a time."""
    q = inputs["q"]
    prefix_parts, prefix_slots, prefix_sequences, prefix_tile = prefix or (parts, inputs["lengths"], 0, 0)
    return KernelLaunch(
        kernel=split_kv_kernel,
        grid=(p.runs, p.row_tiles),
        args={
            "q": q,
            **cache_args(case, inputs),
            "lengths": inputs["lengths"],
            "segments": table([s.row() for s in p.segments], q.device),
            "starts": table(p.starts, q.device),
            "partial_o": parts.o,
            "partial_lse": parts.lse,
            "arrivals": torch.zeros(case.B * case.H_kv * p.row_tiles, dtype=torch.int32, device=q.device),
            "prefix_o": prefix_parts.o,
            "prefix_lse": prefix_parts.lse,
            "prefix_slots": prefix_slots,
            "sink_logits": inputs["sink_logits"],
            "o": o,
            "B": case.B,
            "scale": case.softmax_scale,
            **strides("q", q),
            **cache_strides(case, inputs),
            "stride_table_b": inputs["block_table"].stride(0),
            **strides("o", o),
        },
        constexprs={
            "Q_LEN": case.q_len,
            "GROUP": case.group,
            "D": case.D,
            "WIDTH": case.width,
            "BLOCK_T": p.block_t,
            "BLOCK_M": p.block_m,
            "PAGE": case.page,
            "KV": case.kv,
            "SM": p.sm,
            "V_COLUMNS": p.v_columns,
            "STRIDE_STEP": stride_step(case),
            "SCALE_GROUP": SCALE_GROUP,
            "WINDOW": case.window,
            "SINKS": case.sinks,
            "SOFTCAP": case.softcap,
            "SINK_LOGITS": case.sink_logits and not parts_only,
            "MERGE_TILE": p.merge_tile if p.merge == "last" else 0,
            "PARTS_ONLY": parts_only,
            "ROW_TILES": p.row_tiles,
            "SEQS": sequences,
            "PREFIX_SEQS": prefix_sequences,
            "PREFIX_TILE": prefix_tile,
        },
        num_warps=p.num_warps,
        num_stages=p.num_stages,
        max_registers=p.max_registers,
        streams=("k", "v"),
        wants_mma=True,
        why_few_in_flight="a CTA has one block, all of it under way at once" if p.runs == p.blocks else "",
        slots_per_byte=slots_per_byte(case, p),
    )


def merge_launches(case: AttentionCase, p: Plan, parts: Parts, o: torch.Tensor) -> tuple[KernelLaunch, ...]:
    """The second kernel, if there are too many parts for the last CTA."""
    if p.merge != "kernel":
        return ()
    return (merge_launch([s for s in p.segments if s.parts > 1 and s.is_first], parts, o, group=case.group),)


def build(case: AttentionCase, inputs: Inputs, target: Target) -> Built:
    """Lists, parts and counters are made once. Each launch leaves the counters at zero for the next."""
    p = plan(case, target)
    o = torch.empty_like(inputs["q"], memory_format=torch.contiguous_format)
    parts = new_parts(p.slots, case.rows, case.D, o.device)
    return Built(launches=(split_launch(case, inputs, p, parts, o), *merge_launches(case, p, parts, o)), output=o)


TUNING = Tuning(op="attention_decode", shape_class=shape_class, candidates=candidates)
IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports, tuning=TUNING),)
