"""Index scores on the host's cores: each thread takes blocks of 16 tokens, whose keys are widened to fp32 once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit, kernel, needs_whole_vectors, on_fma, prange, threads
from kernels.common.cpu_loops import BLOCK, convert
from kernels.common.cpu_softmax import score_rows
from kernels.index_score.op import IndexCase, lengths, work
from kernels.op import Inputs, Launch, Stage, Target

if TYPE_CHECKING:
    import torch


@jit
def score_block(keys, scales, table, b, first, end, paging, q, w, wide, at, s, y, y_at):
    """The scores of tokens first to end, at most `BLOCK`. `paging` is the table's columns and the tokens of a page."""
    columns, page = paging
    H = w.shape[1]
    D = len(q) // H
    for j in range(BLOCK):
        t = min(first + j, end - 1)
        token = np.int64(table[b * columns + t // page]) * page + t % page
        convert(keys, token * D, D, np.float32(1.0), wide, j * D)
        at[j], at[BLOCK + j], at[2 * BLOCK + j] = j * D, j * D, token
    score_rows(wide, at, 1, 0, q, 0, H, D, s)
    for j in range(end - first):
        total = np.float32(0.0)
        for h in range(H):
            # a product that is NaN is no maximum with 0: it goes on
            product = s[h * BLOCK + j]
            total += w[b, h] * (np.float32(0.0) if product < 0 else product)
        y[y_at + j] = total * scales[at[2 * BLOCK + j]]


@kernel
def score(keys, scales, table, q, w, ends, blocks, starts, paging, queries, wide, at, s, y):
    """A row of `blocks` is a sequence and its first token; thread i has those from starts[i] to starts[i + 1]."""
    T = len(y) // len(ends)
    size = queries.shape[1]
    for run in prange(len(starts) - 1):
        last = -1
        for i in range(starts[run], starts[run + 1]):
            b, first = blocks[i, 0], blocks[i, 1]
            if b != last:
                convert(q, b * size, size, np.float32(1.0), queries[run], 0)
                last = b
            end = min(first + BLOCK, ends[b])
            score_block(
                keys,
                scales,
                table,
                b,
                first,
                end,
                paging,
                queries[run],
                w,
                wide[run],
                at[run],
                s[run],
                y,
                b * T + first,
            )


def prepare(case: IndexCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    runs = threads(target)
    blocks = [(b, first) for b, length in enumerate(lengths(case)) for first in range(0, length, BLOCK)]
    table = inputs["block_table"] if case.page else torch.arange(case.B, dtype=torch.int32)[:, None]
    y = torch.empty(case.B, case.T)
    arguments = (
        *(array(inputs[name]) for name in ("keys", "key_scale")),
        array(table),
        array(inputs["q"]),
        inputs["w"].numpy(),
        np.array(lengths(case), dtype=np.int64),
        np.array(blocks, dtype=np.int64).reshape(-1, 2),
        np.array([len(blocks) * run // runs for run in range(runs + 1)], dtype=np.int64),
        (table.shape[1], case.tokens_per_page),
        torch.empty(runs, case.H * case.D).numpy(),
        torch.empty(runs, BLOCK * case.D).numpy(),
        np.empty((runs, 3 * BLOCK), dtype=np.int64),
        torch.empty(runs, case.H * BLOCK).numpy(),
        array(y),
    )

    def launch() -> torch.Tensor:
        score(*arguments)
        return y

    return launch


def stages(case: IndexCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="score", work=on_fma(work(case))),)


def supports(case: IndexCase, target: Target) -> str | None:
    return needs_whole_vectors("keys", case.D)


IMPLS = (cpu_impl(prepare=prepare, stages=stages, supports=supports),)
