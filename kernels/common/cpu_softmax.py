"""Attention on a host, block by block: scores of `BLOCK` tokens, a running softmax, weighted sums of values.

The query rows of one KV head share each key and value, so four rows read it once. Scores are in bits: 2^s, not e^s.
"""

from __future__ import annotations

import numpy as np

from kernels.common.cpu_dots import add_rows, dots
from kernels.common.cpu_jit import jit
from kernels.common.cpu_loops import (
    BLOCK,
    UNSEEN,
    apart,
    convert,
    eight,
    four_or_eight,
    largest,
    prefetch,
    soften,
    two_or_four,
)

LOG2_E = 1.4426950408889634


@jit
def score_rows(k, at, heads, stride_head, q, q_at, rows, D, s):
    """s[h rows + row, i] of the `rows` query rows of each KV head, from q_at on, for the keys at at[i] + h stride_head.

    There are as many sums at once as the registers hold. The keys of the next block are asked for: the processor's own
    prefetcher does not follow rows that are KiB apart.
    """
    apart()
    step = 8 if rows == 1 else len(four_or_eight(at, 0, 0)) if rows == 2 else len(two_or_four(at, 0, 0))
    for i in range(0, BLOCK, step):
        for h in range(heads):
            k_at, x, to = h * stride_head, q_at + h * rows * D, h * rows * BLOCK + i
            if rows == 1:
                prefetch(k, eight(at, i + BLOCK, k_at), D)
                dots(k, eight(at, i, k_at), q, (x,), D, s, to, BLOCK)
            elif rows == 2:
                prefetch(k, four_or_eight(at, i + BLOCK, k_at), D)
                dots(k, four_or_eight(at, i, k_at), q, (x, x + D), D, s, to, BLOCK)
            else:
                prefetch(k, two_or_four(at, i + BLOCK, k_at), D)
                keys = two_or_four(at, i, k_at)
                for _ in range(rows // 4):
                    dots(k, keys, q, (x, x + D, x + 2 * D, x + 3 * D), D, s, to, BLOCK)
                    x, to = x + 4 * D, to + 4 * BLOCK
                for _ in range(rows % 4):
                    dots(k, keys, q, (x,), D, s, to, BLOCK)
                    x, to = x + D, to + BLOCK


@jit
def add_values(v, at, heads, stride_head, s, rows, D, o, o_at):
    """o[h rows + row] += the sum over i of s[h rows + row, i] times the value at at[i] + h stride_head."""
    apart()
    for i in range(0, BLOCK, 8):
        for h in range(heads):
            v_at, x, p = h * stride_head, o_at + h * rows * D, h * rows * BLOCK + i
            prefetch(v, eight(at, i + BLOCK, v_at), D)
            values = eight(at, i, v_at)
            if rows == 1:
                add_rows(o, (x,), s, (p,), v, values, D)
            elif rows == 2:
                add_rows(o, (x, x + D), s, (p, p + BLOCK), v, values, D)
            else:
                for _ in range(rows // 4):
                    outputs = (x, x + D, x + 2 * D, x + 3 * D)
                    add_rows(o, outputs, s, (p, p + BLOCK, p + 2 * BLOCK, p + 3 * BLOCK), v, values, D)
                    x, p = x + 4 * D, p + 4 * BLOCK
                for _ in range(rows % 4):
                    add_rows(o, (x,), s, (p,), v, values, D)
                    x, p = x + D, p + BLOCK


@jit
def soften_rows(s, m, norm, m_at, rows, D, o, o_at):
    """Scores of a block become weights. The running maximum m, the sum of weights norm and o follow."""
    for row in range(rows):
        place = row * BLOCK
        highest = largest(s, place)
        before = m[m_at + row]
        if highest > before:
            shrink = np.float32(2.0 ** max(-200.0, np.float64(before) - highest))
            m[m_at + row] = highest
            norm[m_at + row] *= shrink
            convert(o, o_at + row * D, D, shrink, o, o_at + row * D)
        norm[m_at + row] += soften(s, place, m[m_at + row])


@jit
def start_rows(m, norm, m_at, rows, D, o, o_at):
    """No token seen yet."""
    for row in range(rows):
        m[m_at + row], norm[m_at + row] = UNSEEN, 0.0
    o[o_at : o_at + rows * D] = 0.0


@jit
def merge_row(m, norm, m_at, m_stride, o, o_at, o_stride, parts, D):
    """The parts of one row become one, in the place of the first; each lies m_stride and o_stride behind the last."""
    for part in range(1, parts):
        other = m_at + part * m_stride
        highest = max(m[m_at], m[other])
        mine = np.float32(2.0 ** max(-200.0, np.float64(m[m_at]) - highest))
        theirs = np.float32(2.0 ** max(-200.0, np.float64(m[other]) - highest))
        m[m_at], norm[m_at] = highest, mine * norm[m_at] + theirs * norm[other]
        for d in range(D):
            o[o_at + d] = mine * o[o_at + d] + theirs * o[o_at + part * o_stride + d]


@jit
def finish_row(m, norm, sink, o, o_at, D, out, out_at):
    """out = o / (norm + the share of a sink with this score). A row that saw no token becomes zeros.

    A NaN goes on into the output.
    """
    factor = np.float32(0.0)
    if not m <= UNSEEN / 2:
        factor = np.float32(1.0 / (norm + 2.0 ** min(200.0, np.float64(sink) - m)))
    convert(o, o_at, D, factor, out, out_at)
