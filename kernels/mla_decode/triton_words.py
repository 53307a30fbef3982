"""Latent attention over fp8 latents for parts without wgmma: the latents as two halves, even and odd columns.

A 16-bit word holds an even and an odd latent. A few instructions turn the words into two bf16 operands, times 2^-120
(see `kernels/common/triton_kv.py`), since sm_80 has no conversion from e4m3. The queries, in bf16, are multiplied by
2^60 and the probabilities by 2^100, so no product or sum leaves the range of fp32. Each half of O has its own sums:
with tcgen05 (sm_100), sums pass through registers at every rescaling, and so a thread holds 64 registers of them at a
time instead of 128.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.common.triton_kv import LOG2_E, P_EXPONENT, unpack, unpacked_exponent
from kernels.mla_decode.triton_rows import locate, place_of, query_rows, weigh

Q_EXPONENT: tl.constexpr = tl.constexpr(60)
"""Queries are multiplied by two to this power if latents are multiplied by 2^-120."""

ODD: tl.constexpr = tl.constexpr(0.5)
"""A factor for the weights of odd columns; their sums are divided by it. So Triton makes two tiles of weights.

A tcgen05 with 64 rows reads its weights from the 64 lanes of tensor memory that hold its sums. One tile of weights for
both halves would put all sums into the same lanes. Their 512 columns would then hold the sums and no scores.
"""


@triton.jit
def words_kernel(
    q_latent,
    q_rope,
    cache,
    rope,
    latent_scale,
    block_table,
    segments,
    partial_o,
    partial_lse,
    H,
    scale,
    stride_ql_b,
    stride_ql_h,
    stride_qr_b,
    stride_qr_h,
    stride_c_page,
    stride_c_t,
    stride_r_page,
    stride_r_t,
    stride_s_page,
    stride_s_t,
    stride_table_b,
    lengths,
    stride_ql_i,
    stride_qr_i,
    L: tl.constexpr,
    R: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    Q_LEN: tl.constexpr,
    PAGE: tl.constexpr,
    KV: tl.constexpr,
    STAGES: tl.constexpr,
    SM: tl.constexpr,
):
    """Like `mla_kernel`, but `cache` and its strides count 16-bit words."""
    SCATTERED: tl.constexpr = PAGE % BLOCK_T != 0
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_l = tl.arange(0, L)
    offs_w = tl.arange(0, L // 2)
    offs_r = tl.arange(0, R)
    offs_i = tl.arange(0, BLOCK_T)
    s = tl.program_id(1)
    b = tl.load(segments + 8 * s).to(tl.int64)
    mask_m = offs_m < Q_LEN * H
    t_begin = tl.load(segments + 8 * s + 2)
    t_end = tl.load(segments + 8 * s + 3)
    slot = tl.load(segments + 8 * s + 4)
    ql = q_latent + b * stride_ql_b
    offs_ql = query_rows(offs_m, H, stride_ql_i, stride_ql_h, Q_LEN=Q_LEN)[:, None] + 2 * offs_w[None, :]
    offs_qr = query_rows(offs_m, H, stride_qr_i, stride_qr_h, Q_LEN=Q_LEN)[:, None] + offs_r[None, :]
    EXPONENT: tl.constexpr = unpacked_exponent(KV, "bf16", SM)
    Q_FACTOR: tl.constexpr = 2.0**Q_EXPONENT if EXPONENT < 0 else 1.0
    P_FACTOR: tl.constexpr = 2.0**P_EXPONENT if EXPONENT < 0 else 1.0
    S_FACTOR: tl.constexpr = LOG2_E * 2.0**-EXPONENT / Q_FACTOR
    TYPE: tl.constexpr = tl.bfloat16 if SM > 0 else tl.float32
    q_even = (tl.load(ql + offs_ql, mask=mask_m[:, None], other=0.0).to(tl.float32) * Q_FACTOR).to(TYPE)
    q_odd = (tl.load(ql + 1 + offs_ql, mask=mask_m[:, None], other=0.0).to(tl.float32) * Q_FACTOR).to(TYPE)
    qr = tl.load(q_rope + b * stride_qr_b + offs_qr, mask=mask_m[:, None], other=0.0)
    row = block_table + b * stride_table_b
    newest = t_end
    if Q_LEN > 1:
        newest = tl.load(lengths + b) - Q_LEN + offs_m // H
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    norm = tl.zeros([BLOCK_M], tl.float32)
    acc_even = tl.zeros([BLOCK_M, L // 2], tl.float32)
    acc_odd = tl.zeros([BLOCK_M, L // 2], tl.float32)
    # a second buffer for scores in tensor memory would let products begin earlier, but registers would spill
    for block in tl.range(t_begin, t_end, BLOCK_T, num_stages=STAGES, disallow_acc_multi_buffer=True):
        # tokens past the end read the last token, and get no weight
        offs_b = tl.minimum(offs_i, t_end - 1 - block)
        page, place = place_of(row, b, block, offs_b, PAGE=PAGE, SCATTERED=SCATTERED)
        first, offs_c = locate(cache, page, place, offs_b, stride_c_page, stride_c_t, SCATTERED=SCATTERED)
        first_r, offs_k = locate(rope, page, place, offs_b, stride_r_page, stride_r_t, SCATTERED=SCATTERED)
        first_s, offs_s = locate(latent_scale, page, place, offs_b, stride_s_page, stride_s_t, SCATTERED=SCATTERED)
        r = tl.load(first_r + (offs_k[:, None] + offs_r[None, :]))
        s_t = tl.load(first_s + offs_s)
        even, odd = unpack(tl.load(first + (offs_c[:, None] + offs_w[None, :])), KV, "bf16", SM)
        scores = tl.dot(q_odd, tl.trans(odd), tl.dot(q_even, tl.trans(even))) * (s_t * (scale * S_FACTOR))[None, :]
        scores += tl.dot(qr, tl.trans(r)) * (scale * LOG2_E)
        p, alpha, m, norm = weigh(scores, m, norm, block, t_end, newest, BLOCK_T=BLOCK_T, Q_LEN=Q_LEN, SHIFT=0)
        p *= (s_t * P_FACTOR)[None, :]
        acc_even = tl.dot(p.to(even.dtype), even, acc_even * alpha[:, None])
        acc_odd = tl.dot((p * ODD).to(odd.dtype), odd, acc_odd * alpha[:, None])
    total = (tl.where(norm > 0, norm, 1.0) * (2.0**EXPONENT * P_FACTOR))[:, None]
    out = tl.interleave(acc_even / total, acc_odd / (total * ODD))
    first_row = slot.to(tl.int64) * (Q_LEN * H)
    tl.store(partial_o + first_row * L + ((offs_m * L)[:, None] + offs_l[None, :]), out, mask=mask_m[:, None])
    tl.store(partial_lse + first_row + offs_m, m + tl.log2(norm), mask=mask_m)
