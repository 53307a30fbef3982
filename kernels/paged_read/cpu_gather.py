"""Page reads on the host's cores: a thread sums chunks of 64 tokens, all KV heads of a token one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit, kernel, prange, threads
from kernels.common.cpu_lanes import lanes
from kernels.common.cpu_loops import add_row, prefetch, row_sum
from kernels.op import Inputs, Launch, Stage, Target
from kernels.paged_read.op import CHUNK, PagedReadCase, lengths, work

if TYPE_CHECKING:
    import torch

AHEAD = 8
"""Tokens that are asked for before they are summed: some 16 to 64 KiB."""


@jit
def place(table, b, t, cache):
    """Where token t of sequence b lies."""
    columns, page, stride_page, stride_slot = cache
    return np.int64(table[b * columns + t // page]) * stride_page + t % page * stride_slot


@jit
def sum_chunk(k, v, table, b, first, end, cache, heads, sums, y, y_at):
    """The sums of tokens first to end, for each KV head. `heads` is H_kv, D and the stride of heads. `sums` has a
    vector for each KV head."""
    H_kv, D, stride_head = heads
    count = len(sums) // H_kv
    sums[:] = 0.0
    for t in range(first, end):
        at, soon = place(table, b, t, cache), place(table, b, min(t + AHEAD, end - 1), cache)
        for h in range(H_kv):
            prefetch(k, (soon + h * stride_head,), D)
            prefetch(v, (soon + h * stride_head,), D)
            row = at + h * stride_head
            add_row(sums, h * count, k, row, D)
            add_row(sums, h * count, v, row, D)
    for h in range(H_kv):
        y[y_at + h] = row_sum(sums, h * count, count)


@kernel
def sum_chunks(k, v, table, y, chunks, ends, starts, sums, cache, heads):
    """A row of `chunks` is a sequence and a chunk of it; thread i has those from starts[i] to starts[i + 1]."""
    per_sequence = len(y) // (len(ends) * heads[0])
    for run in prange(len(starts) - 1):
        for i in range(starts[run], starts[run + 1]):
            b, chunk = chunks[i, 0], chunks[i, 1]
            end = min((chunk + 1) * CHUNK, ends[b])
            to = (b * per_sequence + chunk) * heads[0]
            sum_chunk(k, v, table, b, chunk * CHUNK, end, cache, heads, sums[run], y, to)


def plan(case: PagedReadCase, runs: int) -> tuple[np.ndarray, np.ndarray]:
    """All chunks, and where the run of each thread begins, so that runs have as many tokens as each other."""
    found = [(b, chunk) for b in range(case.B) for chunk in range(case.chunks)]
    tokens = np.cumsum([max(0, min(CHUNK, lengths(case)[b] - chunk * CHUNK)) for b, chunk in found])
    cuts = [int(np.searchsorted(tokens, tokens[-1] * run // runs)) for run in range(1, runs)]
    return np.array(found, dtype=np.int64), np.array([0, *cuts, len(found)], dtype=np.int64)


def prepare(case: PagedReadCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    k = inputs["k"]
    slot, head = (2, 1) if case.layout == "HND" else (1, 2)
    table = inputs["block_table"] if case.page else torch.arange(case.B, dtype=torch.int32)[:, None]
    y = torch.empty(case.B, case.chunks, case.H_kv)
    chunks, starts = plan(case, threads(target))
    arguments = (
        array(k),
        array(inputs["v"]),
        array(table),
        array(y),
        chunks,
        np.array(lengths(case), dtype=np.int64),
        starts,
        torch.empty(len(starts) - 1, case.H_kv * lanes()).numpy(),
        (table.shape[1], case.tokens_per_page, k.stride(0), k.stride(slot)),
        (case.H_kv, case.D, k.stride(head)),
    )

    def launch() -> torch.Tensor:
        sum_chunks(*arguments)
        return y

    return launch


def stages(case: PagedReadCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="read", work=work(case)),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
