"""Attention on a host, block by block: scores of `BLOCK` tokens, a running softmax, weighted sums of values.

The query rows of one KV head share each key and value, so four rows read it once. Scores are in bits: 2^s, not e^s.
"""

from __future__ import annotations

import numpy as np

from kernels.common.cpu_jit import jit
from kernels.common.cpu_loops import (
    BLOCK,
    UNSEEN,
    add_rows,
    apart,
    convert,
    dots,
    eight,
    four,
    largest,
    prefetch,
    soften,
)

LOG2_E = 1.4426950408889634


@jit
def score_rows(k, at, i, k_at, q, q_at, rows, D, s, s_at):
    """s[row, i:i+n] of the `rows` query rows from q_at on, for the keys at at[i:i+n] + k_at, n = `tokens_at_once`.

    There are as many sums at once as the registers hold. The keys of the next block are asked for: the processor's own
    prefetcher does not follow rows that are KiB apart.
    """
    apart()
    if rows == 1:
        prefetch(k, eight(at, i + BLOCK, k_at), D)
        dots(k, eight(at, i, k_at), q, (q_at,), D, s, s_at + i, BLOCK)
    elif rows == 2:
        prefetch(k, eight(at, i + BLOCK, k_at), D)
        dots(k, eight(at, i, k_at), q, (q_at, q_at + D), D, s, s_at + i, BLOCK)
    else:
        prefetch(k, four(at, i + BLOCK, k_at), D)
        keys = four(at, i, k_at)
        for row in range(0, rows - 3, 4):
            x, to = q_at + row * D, s_at + row * BLOCK + i
            dots(k, keys, q, (x, x + D, x + 2 * D, x + 3 * D), D, s, to, BLOCK)
        for row in range(rows // 4 * 4, rows):
            dots(k, keys, q, (q_at + row * D,), D, s, s_at + row * BLOCK + i, BLOCK)


@jit
def tokens_at_once(rows):
    """How many tokens `score_rows` takes."""
    return 8 if rows <= 2 else 4


@jit
def add_values(v, at, i, v_at, s, s_at, rows, D, o, o_at):
    """o[row] += s[row, i:i+8] times the values at at[i:i+8] + v_at."""
    apart()
    prefetch(v, eight(at, i + BLOCK, v_at), D)
    values = eight(at, i, v_at)
    if rows == 1:
        add_rows(o, (o_at,), s, (s_at + i,), v, values, D)
    elif rows == 2:
        add_rows(o, (o_at, o_at + D), s, (s_at + i, s_at + i + BLOCK), v, values, D)
    else:
        for row in range(0, rows - 3, 4):
            x, p = o_at + row * D, s_at + row * BLOCK + i
            outputs = (x, x + D, x + 2 * D, x + 3 * D)
            add_rows(o, outputs, s, (p, p + BLOCK, p + 2 * BLOCK, p + 3 * BLOCK), v, values, D)
        for row in range(rows // 4 * 4, rows):
            add_rows(o, (o_at + row * D,), s, (s_at + row * BLOCK + i,), v, values, D)


@jit
def soften_rows(s, s_at, m, norm, m_at, rows, D, o, o_at):
    """Scores of a block become weights. The running maximum m, the sum of weights norm and o follow."""
    for row in range(rows):
        place = s_at + row * BLOCK
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
