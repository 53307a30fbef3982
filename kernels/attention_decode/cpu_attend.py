"""Attention on the host's cores: each thread reads equal runs of tokens, all KV heads of a token at once.

The tokens of all sequences are laid end to end and cut into one run for each thread. A sequence that was cut is merged
by its maxima and sums. In a block of 16 tokens keys are read once and in order for all query heads, then values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from kernels.attention_decode.op import AttentionCase, kv_tokens_bytes, lengths, live, table_bytes, work
from kernels.common.cpu_jit import array, cpu_impl, jit, kernel, needs_whole_vectors, on_fma, prange, threads
from kernels.common.cpu_lanes import lanes, multiplies_bf16
from kernels.common.cpu_loops import BLOCK, UNSEEN, apart, convert
from kernels.common.cpu_softmax import (
    LOG2_E,
    add_values,
    finish_row,
    merge_row,
    score_rows,
    soften_rows,
    start_rows,
)
from kernels.common.integers import cdiv
from kernels.common.quantization import SCALE_GROUP
from kernels.common.split_kv import Segment, split
from kernels.op import Inputs, Launch, Stage, Target, Work

if TYPE_CHECKING:
    import torch


def plan(case: AttentionCase, runs: int) -> tuple[list[Segment], list[int], int]:
    """Segments, where each thread's begin, and the number of slots. Every segment has a slot."""
    pairs = [(b, 0, live(case, length)) for b, length in enumerate(lengths(case))]
    return split(pairs, BLOCK, runs, all_slots=True)


@jit
def limit_scores(s, first, count, H_kv, q_len, group, length, window, sinks, softcap):
    """Cap scores, and hide what a query does not see."""
    rows = q_len * group
    if softcap > 0.0:
        for i in range(H_kv * rows * BLOCK):
            s[i] = softcap * np.float32(LOG2_E) * np.tanh(s[i])
    for row in range(H_kv * rows):
        last = length - q_len + row % rows // group
        for j in range(BLOCK):
            t = first + j
            if j >= count or t > last or (window and t <= last - window and t >= sinks):
                s[row * BLOCK + j] = UNSEEN


@jit
def scale_block(s, scale, at, H_kv, rows):
    """Multiply scores or weights by the scales of an 8-bit cache; head h of token j has scale[at[j] + h]."""
    for h in range(H_kv):
        for row in range(h * rows, (h + 1) * rows):
            for j in range(BLOCK):
                s[row * BLOCK + j] *= scale[at[j] + h]


@jit
def place_tokens(table, b, first, end, cache, at, scale_at):
    """Offsets of the next `BLOCK` tokens in the cache and in its scales, behind those of this block; the last token
    stands for those past the end."""
    columns, page, stride_page, stride_slot, _, scale_page, scale_group = cache
    for j in range(BLOCK):
        at[j], scale_at[j] = at[BLOCK + j], scale_at[BLOCK + j]
        t = min(first + j, end - 1)
        physical, slot = np.int64(table[b * columns + t // page]), t % page
        at[BLOCK + j] = physical * stride_page + slot * stride_slot
        scale_at[BLOCK + j] = physical * scale_page + slot // SCALE_GROUP * scale_group


@jit
def finish(b, slot, m, norm, o, sink_logits, heads, out):
    """The rows of one sequence, from the slot that holds them all."""
    H_q, H_kv, D, q_len = heads
    rows = q_len * (H_q // H_kv)
    for h in range(H_q):
        sink = np.float32(sink_logits[h] * LOG2_E) if len(sink_logits) else np.float32(-np.inf)
        for i in range(q_len):
            row = (slot * H_kv + h * H_kv // H_q) * rows + i * (H_q // H_kv) + h % (H_q // H_kv)
            finish_row(m[row], norm[row], sink, o, row * D, D, out, ((b * q_len + i) * H_q + h) * D)


@jit
def attend_run(
    mine,
    q,
    k,
    v,
    k_scale,
    v_scale,
    table,
    sink_logits,
    out,
    lengths,
    qs,
    s,
    m,
    norm,
    o,
    at,
    scale_at,
    heads,
    cache,
    limits,
):
    """The segments of one thread, `mine`; `qs` and `s` hold its queries and scores."""
    apart()
    H_q, H_kv, D, q_len = heads
    stride_head, scaled = cache[4], cache[5] > 0
    window, sinks, scale, softcap, factor = limits
    group = H_q // H_kv
    rows = q_len * group
    for segment in mine:
        b, begin, end, slot, parts = segment[0], segment[2], segment[3], segment[4], segment[6]
        for i in range(q_len):
            for h in range(H_q):
                to = (h // group * rows + i * group + h % group) * D
                convert(q, ((b * q_len + i) * H_q + h) * D, D, scale, qs, to)
        state = slot * H_kv * rows
        start_rows(m, norm, state, H_kv * rows, D, o, state * D)
        if end > begin:
            place_tokens(table, b, begin, end, cache, at, scale_at)
        for first in range(begin, end, BLOCK):
            count = min(BLOCK, end - first)
            place_tokens(table, b, first + BLOCK, end, cache, at, scale_at)
            score_rows(k, at, H_kv, stride_head, qs, 0, rows, D, s)
            if factor != np.float32(1.0):
                convert(s, 0, H_kv * rows * BLOCK, factor, s, 0)
            if scaled:
                scale_block(s, k_scale, scale_at, H_kv, rows)
            if softcap > 0.0 or count < BLOCK or q_len > 1:
                limit_scores(s, first, count, H_kv, q_len, group, lengths[b], window, sinks, softcap)
            soften_rows(s, m, norm, state, H_kv * rows, D, o, state * D)
            if scaled:
                scale_block(s, v_scale, scale_at, H_kv, rows)
            add_values(v, at, H_kv, stride_head, s, rows, D, o, state * D)
        if parts == 1:
            finish(b, slot, m, norm, o, sink_logits, heads, out)


@kernel
def attend(
    q,
    k,
    v,
    k_scale,
    v_scale,
    table,
    sink_logits,
    out,
    lengths,
    segments,
    starts,
    qs,
    s,
    m,
    norm,
    o,
    at,
    heads,
    cache,
    limits,
):
    """`heads` is H_q, H_kv, D, q_len. `cache` is the columns of the table, tokens a page, the strides of page, slot and
    head, and the strides of a page's and a group's scales. `limits` is window, sinks, the factor of q, softcap,
    and the factor of scores."""
    for thread in prange(len(starts) - 1):
        attend_run(
            segments[starts[thread] : starts[thread + 1]],
            q,
            k,
            v,
            k_scale,
            v_scale,
            table,
            sink_logits,
            out,
            lengths,
            qs[thread],
            s[thread],
            m,
            norm,
            o,
            at[thread, 0],
            at[thread, 1],
            heads,
            cache,
            limits,
        )
    rows = heads[3] * heads[0]
    for segment in segments:
        b, slot, first, parts = segment[0], segment[4], segment[5], segment[6]
        if slot == first and parts > 1:
            for row in range(first * rows, (first + 1) * rows):
                merge_row(m, norm, row, rows, o, row * heads[2], rows * heads[2], parts, heads[2])
            finish(b, slot, m, norm, o, sink_logits, heads, out)


def prepare(case: AttentionCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    runs = threads(target)
    segments, starts, slots = plan(case, runs)
    slot, head = (2, 1) if case.layout == "HND" else (1, 2)
    k = inputs["k"]
    rows = case.q_len * case.H_q
    page, groups = case.tokens_per_page, cdiv(case.tokens_per_page, SCALE_GROUP)
    table = inputs["block_table"] if case.page else torch.arange(case.B, dtype=torch.int32)[:, None]
    scores = LOG2_E if not case.softcap else 1 / case.softcap
    scale_strides = (groups * case.H_kv, case.H_kv) if case.kv else (0, 0)
    out = torch.empty_like(inputs["q"])
    qs = torch.empty(runs * rows * case.D, dtype=torch.bfloat16 if in_pairs(case) else torch.float32)
    factors = (np.float32(1.0), np.float32(case.softmax_scale * scores))
    of_query, of_scores = factors if in_pairs(case) else factors[::-1]
    arguments = (
        *(array(inputs[name]) for name in ("q", "k", "v", "k_scale", "v_scale")),
        array(table.contiguous()) if not case.page else array(inputs["block_table"]),
        array(inputs["sink_logits"]),
        array(out),
        np.array(lengths(case), dtype=np.int64),
        np.array([segment.row() for segment in segments], dtype=np.int64),
        np.array(starts, dtype=np.int64),
        array(qs).reshape(runs, rows * case.D),
        torch.empty(runs, rows * BLOCK).numpy(),
        torch.empty(slots * rows).numpy(),
        torch.empty(slots * rows).numpy(),
        torch.empty(slots * rows * case.D).numpy(),
        np.empty((runs, 2, 2 * BLOCK), dtype=np.int64),
        (case.H_q, case.H_kv, case.D, case.q_len),
        (table.shape[1], page, k.stride(0), k.stride(slot), k.stride(head), *scale_strides),
        (case.window, case.sinks, of_query, np.float32(case.softcap), of_scores),
    )

    def launch() -> torch.Tensor:
        attend(*arguments)
        return out

    return launch


def in_pairs(case: AttentionCase) -> bool:
    """Whether queries and keys are multiplied in bf16, by an instruction of its own. The scale then comes after it."""
    return case.dtype == "bf16" and not case.kv and case.D % (2 * lanes()) == 0 and multiplies_bf16()


def stages(case: AttentionCase, target: Target) -> tuple[Stage, ...]:
    """Each sequence reads a shared prefix for itself; all else is read once. Weighted sums of values are in fp32."""
    again = Work()
    if case.prefix:
        shared = ((0, case.prefix),)
        again = Work(bytes_read=(case.B - 1) * (kv_tokens_bytes(case, shared) + table_bytes(case, shared)))
    moved = on_fma(work(case) + again)
    if in_pairs(case):
        half = moved.total_flops // 2
        moved = replace(moved, flops={"mma_bf16": half, "fma_fp32": moved.total_flops - half})
    return (Stage(name="attend", work=moved),)


def supports(case: AttentionCase, target: Target) -> str | None:
    if case.kv == "nvfp4":
        return "reads caches of 8 bits and more, not nvfp4"
    return needs_whole_vectors("heads", case.D)


IMPLS = (cpu_impl(prepare=prepare, stages=stages, supports=supports),)
