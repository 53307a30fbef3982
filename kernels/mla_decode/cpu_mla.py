"""MLA on the host's cores: each thread reads equal runs of tokens; a block of 16 tokens is key, then value.

All heads share a token, so its lines come from the memory once and from the L2 for every further four heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit, kernel, needs_whole_vectors, on_fma, prange, threads
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
from kernels.common.split_kv import split
from kernels.mla_decode.op import MlaCase, lengths, work
from kernels.op import Inputs, Launch, Stage, Target

if TYPE_CHECKING:
    import torch


@jit
def place_tokens(table, b, first, end, paging, width, R, at, rope_at, places):
    """Offsets of the next `BLOCK` tokens in the cache and among rotary keys, and their numbers in the pages, behind
    those of this block; the last token stands for those past the end."""
    columns, page = paging
    for j in range(BLOCK):
        at[j], rope_at[j], places[j] = at[BLOCK + j], rope_at[BLOCK + j], places[BLOCK + j]
        t = min(first + j, end - 1)
        token = np.int64(table[b * columns + t // page]) * page + t % page
        at[BLOCK + j], rope_at[BLOCK + j], places[BLOCK + j] = token * width, token * R, token


@jit
def load_queries(q_latent, q_rope, b, rows, L, R, scale, split_rows, qs):
    """The queries of a sequence: rows of L + R, or all latents and then all rotary parts."""
    for row in range(rows):
        latent, rope = (row * L, rows * L + row * R) if split_rows else (row * (L + R), row * (L + R) + L)
        convert(q_latent, (b * rows + row) * L, L, scale, qs, latent)
        convert(q_rope, (b * rows + row) * R, R, scale, qs, rope)


@jit
def hide_tokens(s, first, count, q_len, H, length):
    """What a query does not see, and what is past the end."""
    for row in range(q_len * H):
        last = length - q_len + row // H
        for j in range(BLOCK):
            if j >= count or first + j > last:
                s[row * BLOCK + j] = UNSEEN


@jit
def attend_run(
    mine, q_latent, q_rope, cache, rope, scales, table, out, ends, qs, s, m, norm, o, at, shape, paging, scale
):
    """The segments of one thread, `mine`. `shape` is H, L, R, q_len, `paging` the table's columns and tokens a page."""
    apart()
    H, L, R, q_len = shape
    rows, scaled = q_len * H, len(scales) > 0
    width = L if scaled else L + R
    scores, ropes = s[: rows * BLOCK], s[rows * BLOCK :]
    for segment in mine:
        b, begin, end, slot, parts = segment[0], segment[2], segment[3], segment[4], segment[6]
        load_queries(q_latent, q_rope, b, rows, L, R, scale, scaled, qs)
        state = slot * rows
        start_rows(m, norm, state, rows, L, o, state * L)
        if end > begin:
            place_tokens(table, b, begin, end, paging, width, R, at[0], at[1], at[2])
        for first in range(begin, end, BLOCK):
            count = min(BLOCK, end - first)
            place_tokens(table, b, first + BLOCK, end, paging, width, R, at[0], at[1], at[2])
            score_rows(cache, at[0], 1, 0, qs, 0, rows, width, scores)
            if scaled:
                score_rows(rope, at[1], 1, 0, qs, rows * L, rows, R, ropes)
            if scaled:
                for row in range(rows):
                    for j in range(BLOCK):
                        place = row * BLOCK + j
                        scores[place] = scores[place] * scales[at[2, j]] + ropes[place]
            if count < BLOCK or q_len > 1:
                hide_tokens(scores, first, count, q_len, H, ends[b])
            soften_rows(scores, m, norm, state, rows, L, o, state * L)
            if scaled:
                for row in range(rows):
                    for j in range(BLOCK):
                        scores[row * BLOCK + j] *= scales[at[2, j]]
            add_values(cache, at[0], 1, 0, scores, rows, L, o, state * L)
        if parts == 1:
            finish(b, slot, m, norm, o, rows, L, out)


@jit
def finish(b, slot, m, norm, o, rows, L, out):
    for row in range(rows):
        state = slot * rows + row
        finish_row(m[state], norm[state], np.float32(-np.inf), o, state * L, L, out, (b * rows + row) * L)


@kernel
def attend(
    q_latent,
    q_rope,
    cache,
    rope,
    scales,
    table,
    out,
    ends,
    segments,
    starts,
    qs,
    s,
    m,
    norm,
    o,
    at,
    shape,
    paging,
    scale,
):
    for run in prange(len(starts) - 1):
        mine = segments[starts[run] : starts[run + 1]]
        attend_run(
            mine,
            q_latent,
            q_rope,
            cache,
            rope,
            scales,
            table,
            out,
            ends,
            qs[run],
            s[run],
            m,
            norm,
            o,
            at[run],
            shape,
            paging,
            scale,
        )
    rows, L = shape[3] * shape[0], shape[1]
    for segment in segments:
        b, slot, first, parts = segment[0], segment[4], segment[5], segment[6]
        if slot == first and parts > 1:
            for row in range(first * rows, (first + 1) * rows):
                merge_row(m, norm, row, rows, o, row * L, rows * L, parts, L)
            finish(b, slot, m, norm, o, rows, L, out)


def prepare(case: MlaCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    runs, rows = threads(target), case.rows
    pairs = [(b, 0, ((0, length),)) for b, length in enumerate(lengths(case))]
    segments, starts, slots = split(pairs, BLOCK, runs, all_slots=True)
    table = inputs["block_table"] if case.page else torch.arange(case.B, dtype=torch.int32)[:, None]
    out = torch.empty_like(inputs["q_latent"])
    arguments = (
        *(array(inputs[name]) for name in ("q_latent", "q_rope", "cache", "rope", "latent_scale")),
        array(table),
        array(out),
        np.array(lengths(case), dtype=np.int64),
        np.array([segment.row() for segment in segments], dtype=np.int64),
        np.array(starts, dtype=np.int64),
        torch.empty(runs, rows * (case.L + case.R)).numpy(),
        torch.empty(runs, 2 * rows * BLOCK).numpy(),
        *(torch.empty(slots * rows).numpy() for _ in ("m", "norm")),
        torch.empty(slots * rows * case.L).numpy(),
        np.empty((runs, 3, 2 * BLOCK), dtype=np.int64),
        (case.H, case.L, case.R, case.q_len),
        (table.shape[1], case.page or case.T),
        np.float32(case.softmax_scale * LOG2_E),
    )

    def launch() -> torch.Tensor:
        attend(*arguments)
        return out

    return launch


def stages(case: MlaCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="attend", work=on_fma(work(case))),)


def supports(case: MlaCase, target: Target) -> str | None:
    if case.kv == "nvfp4":
        return "reads latents of 8 bits and more, not nvfp4"
    return needs_whole_vectors("latents", case.L) or needs_whole_vectors("rotary keys", case.R)


IMPLS = (cpu_impl(prepare=prepare, stages=stages, supports=supports),)
