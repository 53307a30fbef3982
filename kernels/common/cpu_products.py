"""Products of weight rows with a few rows of activations on a host: four rows of W at once, each read once."""

from __future__ import annotations

from kernels.common.cpu_dots import dot_row, dots_streamed
from kernels.common.cpu_jit import jit
from kernels.common.cpu_loops import AHEAD, apart, four, prefetch, three_or_four, two
from kernels.common.cpu_packed import packed_products

ROWS = 4
"""Rows of W that are multiplied at once: the processor's own prefetcher follows so many streams better than one. With
3 rows of x their sums fill 12 of 16 registers, and with 4 half of the 32 of AVX-512."""

UNSCALED = (1 << 40, 1 << 40, 0)
"""The `scaling` of `multiply_rows` without scales."""

PAGE = 4096
"""Bytes of a row of W up to which rows are read one after the other, as they lie in memory, if x has one or two rows.
Four rows at once are four short streams. With 896 elements of bf16 they came at 0.49 of the read roof, and one after
the other at 0.71; with 896 of int8 at 0.36 and 0.58 (EPYC with AVX2, two threads, reads between the samples)."""

CHUNK = 512
"""Columns after which the further rows of x begin again with the same rows of W, which the L1 still holds."""


@jit
def row_offsets(first, rows, stride, at):
    """Offsets of `ROWS` rows from `first` on, the last row again past the end."""
    for i in range(ROWS):
        at[i] = min(first + i, rows - 1) * stride


@jit
def dot_tokens(w, at, k, x, x_at, tokens, length, sums):
    """sums[j ROWS + i] = row i of W times row j of x, over `length` columns from k on. x_at are the rows of x."""
    rows, most = four(at, 0, k), len(three_or_four(at, 0, 0))
    j = 0
    while j < tokens:
        left = tokens - j
        if left >= most and left != most + 1:
            dots_streamed(w, rows, x, three_or_four(x_at, j, k), length, sums, j * ROWS, ROWS)
            j += most
        elif left >= 2:
            dots_streamed(w, rows, x, two(x_at, j, k), length, sums, j * ROWS, ROWS)
            j += 2
        else:
            dots_streamed(w, rows, x, (x_at[j] + k,), length, sums, j * ROWS, ROWS)
            j += 1


@jit
def multiply_rows(w, first, N, K, scale, scaling, x, x_at, tokens, at, sums, totals):
    """totals[j ROWS + i] = row first + i of W `[N, K]` times row j of x.

    `scaling` is n, k, stride: scale[r // n stride + c // k] is the scale of row r and column c. An empty `scale` stands
    for none.
    """
    apart()
    row_offsets(first, N, K, at)
    row_offsets(first + ROWS, N, K, at[ROWS:])
    scale_n, scale_k, stride = scaling
    if K * w.itemsize <= PAGE and tokens <= 2 and scale_k >= K:
        for i in range(ROWS):
            row = min(first + i, N - 1)
            if tokens == 1:
                dot_row(w, row * K, x, (x_at[0],), K, totals, i, ROWS)
            else:
                dot_row(w, row * K, x, (x_at[0], x_at[1]), K, totals, i, ROWS)
            if len(scale):
                for j in range(tokens):
                    totals[j * ROWS + i] *= scale[row // scale_n * stride]
        return
    whole = tokens <= 2 or tokens == len(three_or_four(at, 0, 0))
    chunk = min(K, scale_k) if scale_k < K else K if whole else CHUNK
    if chunk == K:
        prefetch(w, four(at, ROWS, 0), min(K, AHEAD // w.itemsize))
    totals[: tokens * ROWS] = 0.0
    for k in range(0, K, chunk):
        length = min(chunk, K - k)
        if k + chunk < K:
            prefetch(w, four(at, 0, k + chunk), min(chunk, K - k - chunk))
        elif chunk < K:
            prefetch(w, four(at, ROWS, 0), chunk)
        dot_tokens(w, at, k, x, x_at, tokens, length, sums)
        if len(scale) == 0:
            for i in range(tokens * ROWS):
                totals[i] += sums[i]
        else:
            for i in range(ROWS):
                factor = scale[min(first + i, N - 1) // scale_n * stride + k // scale_k]
                for j in range(tokens):
                    totals[j * ROWS + i] += factor * sums[j * ROWS + i]


@jit
def multiply_packed(w, first, N, K, scale, zero, group, x, x_at, x_sums, tokens, at, totals):
    """The same for 4-bit codes, two in a byte, with a scale for each `group` columns.

    Of each group x has the even columns first, then the odd ones, zero past K; `x_sums` has its sums lane by lane. If x
    is in bf16, see `packed_pairs`.
    """
    apart()
    row_offsets(first, N, K // 2, at)
    row_offsets(first + ROWS, N, K // 2, at[ROWS:])
    groups = (K + group - 1) // group
    row_offsets(first, N, groups, at[2 * ROWS :])
    prefetch(w, four(at, ROWS, 0), min(K // 2, AHEAD))
    codes, scales = four(at, 0, 0), four(at, 2 * ROWS, 0)
    for j in range(0, tokens, 2):
        if tokens - j >= 2:
            rows = (x_at[j], x_at[j + 1])
            packed_products(w, codes, scale, zero, scales, x, rows, x_sums, K, totals, j * ROWS, ROWS)
        else:
            packed_products(w, codes, scale, zero, scales, x, (x_at[j],), x_sums, K, totals, j * ROWS, ROWS)
