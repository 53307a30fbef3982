"""What the two kernels of latent attention share: where rows and tokens are, and one step of an online softmax."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def query_rows(offs_m, H, stride_i, stride_h, Q_LEN: tl.constexpr):
    """Offsets of query rows; row i H + h is head h of query i."""
    return offs_m * stride_h if Q_LEN == 1 else offs_m // H * stride_i + offs_m % H * stride_h


@triton.jit
def locate(base, page, place, offs_i, stride_page, stride_t, SCATTERED: tl.constexpr):
    """A pointer and offsets `[BLOCK_T]` from it: to tokens `place + offs_i` of one page, or to a page and place
    each."""
    if SCATTERED:
        first = base
        offs = page * stride_page + place * stride_t
    else:
        first = base + page * stride_page + place * stride_t
        offs = offs_i * stride_t
    return first, offs


@triton.jit
def place_of(row, b, block, offs_b, PAGE: tl.constexpr, SCATTERED: tl.constexpr):
    """Page and place of a block's first token. If pages are smaller than a block: those of each token `block +
    offs_b`."""
    if PAGE == 0:
        page = b
        place = tl.cast(block, tl.int64)
    elif SCATTERED:
        page = tl.load(row + (block + offs_b) // PAGE).to(tl.int64)
        place = (block + offs_b) % PAGE
    else:
        page = tl.load(row + block // PAGE).to(tl.int64)
        place = block % PAGE
    return page, place


@triton.jit
def weigh(scores, m, norm, block, t_end, newest, BLOCK_T: tl.constexpr, Q_LEN: tl.constexpr, SHIFT: tl.constexpr):
    """Scores in log2 [BLOCK_M, BLOCK_T] -> their weights, the factor for earlier sums, the new maxima and sums.

    The weights and their sums are multiplied by 2^SHIFT.

    Tokens from `t_end` on get no weight; in a draft, tokens after `newest` [BLOCK_M] get none either.
    """
    offs_i = tl.arange(0, BLOCK_T)
    if block + BLOCK_T > t_end:
        scores = tl.where((offs_i < t_end - block)[None, :], scores, float("-inf"))
    if Q_LEN > 1:
        scores = tl.where((block + offs_i)[None, :] <= newest[:, None], scores, float("-inf"))
    m_new = tl.maximum(m, tl.max(scores, 1))
    # a block holds at least one token, so the maximum is finite; but a query of a draft may see none of them
    m_finite = m_new if Q_LEN == 1 else tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(scores - (m_finite - SHIFT)[:, None])
    alpha = tl.exp2(m - m_finite)
    return p, alpha, m_new, norm * alpha + tl.sum(p, 1)
