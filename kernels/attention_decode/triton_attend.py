"""The inner loop of decode attention, shared by its kernels: softmax(Q K^T) V over a range of one sequence's tokens.

The KV tokens are the M side of both products: S^T [BLOCK_T, rows] = K Q^T and O^T [D, rows] += V^T P^T. A wgmma has
64 rows of M, and the 1 to 16 query heads of a KV head would fill a quarter of them at best. As the N side, query heads
need only be padded to 16, and 16-bit K and V go from shared memory to the tensor cores without passing through
registers. K and V arrive by 16-byte `cp.async`. Paged loads read the block's page ids one step earlier: one id if a
page holds whole blocks, else one per token.

`kernels/common/triton_kv.py` tells how an 8-bit cache is read. K becomes fp16, which holds every 8-bit value. V and the
probabilities become bf16: fp16 would lose a probability 18 nats below the largest, times the scale of its token, and
many such tokens together are not small. On sm_90 the loop issues 5.1 (fp8) and 5.3 (int8) instructions of a lane for
each byte, 5.0 and 5.5 with fp16, for 8 query rows of 128 dims; the registers are 157 and 163, and nothing is spilled.

The sums of probabilities stay apart for each token of a block until the loop has ended. Adding them up across threads
in every step would take an eighth of all instructions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.attention_decode.op import AttentionCase
from kernels.common.paging import nhd
from kernels.common.triton_kv import LOG2_E, P_EXPONENT, P_EXPONENT_FP16, unpack, unpacked_exponent
from kernels.common.triton_nvfp4 import block_exponent, dims_in_order, in_order, pairs_halves, unpack_block
from kernels.op import Inputs

SCALES_STEP: tl.constexpr = tl.constexpr(4)
"""Strides of nvfp4's scales count so many bytes, which a thread reads at once."""


@triton.constexpr_function
def elements_of_word(kv: str) -> int:
    """Elements of the words that a cache is read in: two of 8 bits, or a block of nvfp4."""
    return {"": 1, "nvfp4": 16}.get(kv, 2)


@triton.jit
def in_head(mask, offs_d, D: tl.constexpr, WIDTH: tl.constexpr):
    """`mask` without the dims that pad a head of D to WIDTH. They are zeros, for which nothing is read."""
    return mask if D == WIDTH else mask & (offs_d < D)


@triton.jit
def load_query(q, offs_q, mask_m, D: tl.constexpr, WIDTH: tl.constexpr, KV: tl.constexpr, SM: tl.constexpr):
    """Q^T [WIDTH, BLOCK_M]; for an 8-bit cache its even and its odd dims, each [WIDTH / 2, BLOCK_M] in fp16
    (|q| < 65,504); for nvfp4 in fp16, with the dims in the order of `unpack_block`."""
    TYPE: tl.constexpr = tl.float16 if SM > 0 else tl.float32
    if KV == "":
        offs_d = tl.arange(0, WIDTH)
        mask = in_head(mask_m[None, :], offs_d[:, None], D, WIDTH)
        even = tl.load(q + offs_q[None, :] + offs_d[:, None], mask=mask, other=0.0)
        odd = even
    elif KV == "nvfp4":
        offs_d = dims_in_order(tl.arange(0, WIDTH), pairs_halves("fp16", SM))
        mask = in_head(mask_m[None, :], offs_d[:, None], D, WIDTH)
        even = tl.load(q + offs_q[None, :] + offs_d[:, None], mask=mask, other=0.0).to(TYPE)
        odd = even
    else:
        offs_d = 2 * tl.arange(0, WIDTH // 2)
        mask = in_head(mask_m[None, :], offs_d[:, None], D, WIDTH)
        even = tl.load(q + offs_q[None, :] + offs_d[:, None], mask=mask, other=0.0).to(TYPE)
        odd = tl.load(q + 1 + offs_q[None, :] + offs_d[:, None], mask=mask, other=0.0).to(TYPE)
    return even, odd


@triton.jit
def attend(
    even,
    odd,
    last,  # [BLOCK_M]: last token that each query row sees
    k,
    v,
    k_scale,
    v_scale,
    table_row,
    t_begin,
    t_end,
    scale,
    stride_k_page,
    stride_k_t,
    stride_v_page,
    stride_v_t,
    stride_s_page,
    stride_s_group,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PAGE: tl.constexpr,
    KV: tl.constexpr,
    SM: tl.constexpr,
    V_COLUMNS: tl.constexpr,
    SCALE_GROUP: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """Online softmax over tokens [t_begin, t_end), scores in log2.

    -> O^T [WIDTH, BLOCK_M] unnormalised (or its even and odd dims), the row maxima and sums [BLOCK_M], all fp32.
    WIDTH: D, padded to a power of two.
    SM: the compute capability times ten, 0 if the kernel is interpreted.
    V_COLUMNS: V is addressed as [WIDTH, BLOCK_T], instead of as [BLOCK_T, WIDTH] and then transposed. Unless wgmma
    reads V straight from shared memory, Triton prefetches only this form. For wgmma it would address K and V
    separately.
    """
    IN_WORD: tl.constexpr = elements_of_word(KV)
    D_WORDS: tl.constexpr = D // IN_WORD
    WORDS: tl.constexpr = WIDTH // IN_WORD
    SUMS: tl.constexpr = WIDTH if KV == "nvfp4" else WORDS
    offs_d = tl.arange(0, WORDS)
    offs_i = tl.arange(0, BLOCK_T)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    norm = tl.zeros([BLOCK_T, BLOCK_M], tl.float32)
    # what is multiplied in for the sake of the 16-bit types is divided out behind the loop
    B_EXPONENT: tl.constexpr = block_exponent("fp16", SM) if KV == "nvfp4" else 0
    K_FACTOR: tl.constexpr = 2.0 ** -(unpacked_exponent(KV, "fp16", SM) + B_EXPONENT) * (1.0 if SOFTCAP > 0 else LOG2_E)
    V_EXPONENT: tl.constexpr = unpacked_exponent(KV, "bf16", SM)
    P_FACTOR: tl.constexpr = 2.0**P_EXPONENT if V_EXPONENT < 0 else 1.0
    P_SHIFT: tl.constexpr = P_EXPONENT_FP16 if v.dtype.element_ty == tl.float16 or KV == "nvfp4" else 0
    acc_even = tl.zeros([SUMS, BLOCK_M], tl.float32)
    acc_odd = acc_even
    # where a block is a page, the addresses within it never change: kept across the loop, those of 256 dims would spill
    KEEPS_NOTHING: tl.constexpr = PAGE == BLOCK_T and WIDTH == 256 and BLOCK_M == 16 and KV == ""
    for block in tl.range(t_begin // BLOCK_T * BLOCK_T, t_end, BLOCK_T, disable_licm=KEEPS_NOTHING):
        offs_t = block + offs_i
        mask_t = (offs_t >= t_begin) & (offs_t < t_end)
        if PAGE == 0:
            page = tl.zeros([1], tl.int64)
            slot = offs_t.to(tl.int64)
        elif PAGE % BLOCK_T == 0:
            page = tl.load(table_row + block // PAGE).to(tl.int64)
            slot = block % PAGE + offs_i
        else:
            page = tl.load(table_row + offs_t // PAGE, mask=mask_t, other=0).to(tl.int64)
            slot = offs_t % PAGE
        offs_k = page * stride_k_page + slot * stride_k_t
        offs_v = page * stride_v_page + slot * stride_v_t
        mask_k = in_head(mask_t[:, None], offs_d[None, :], D_WORDS, WORDS)
        k_tile = tl.load(k + offs_k[:, None] + offs_d[None, :], mask=mask_k, other=0)
        if KV == "":
            s = tl.dot(k_tile, even) * (scale * K_FACTOR)
        elif KV == "nvfp4":
            offs_s = (page * stride_s_page + slot * stride_s_group)[:, None] * SCALES_STEP + offs_d[None, :]
            k_tile = unpack_block(k_tile, tl.load(k_scale + offs_s, mask=mask_k, other=0), "fp16", SM)
            s = tl.dot(k_tile, even) * (scale * K_FACTOR)
        else:
            k_even, k_odd = unpack(k_tile, KV, "fp16", SM)
            offs_s = page * stride_s_page + slot // SCALE_GROUP * stride_s_group
            factor = tl.load(k_scale + offs_s, mask=mask_t, other=0.0) * (scale * K_FACTOR)
            s = tl.dot(k_odd, odd, tl.dot(k_even, even)) * factor[:, None]
        if SOFTCAP > 0:
            s = (SOFTCAP * LOG2_E) * (2 * tl.sigmoid(2 * s / SOFTCAP) - 1)
        seen = mask_t[:, None]
        if CAUSAL:
            seen = seen & (offs_t[:, None] <= last[None, :])
        if WINDOW > 0:
            seen = seen & ((offs_t[:, None] > last[None, :] - WINDOW) | (offs_t[:, None] < SINKS))
        s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 0))
        m_finite = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - (m_finite - P_SHIFT)[None, :])
        alpha = tl.exp2(m - m_finite)
        norm = norm * alpha[None, :] + p
        m = m_new
        acc_even *= alpha[None, :]
        if KV == "nvfp4":
            v_t = tl.load(v + offs_v[:, None] + offs_d[None, :], mask=mask_k, other=0)
            v_t = tl.trans(unpack_block(v_t, tl.load(v_scale + offs_s, mask=mask_k, other=0), "fp16", SM))
        elif V_COLUMNS:
            mask_v = in_head(mask_t[None, :], offs_d[:, None], D_WORDS, WORDS)
            v_t = tl.load(v + offs_v[None, :] + offs_d[:, None], mask=mask_v, other=0)
        else:
            v_t = tl.trans(tl.load(v + offs_v[:, None] + offs_d[None, :], mask=mask_k, other=0))
        if KV == "" or KV == "nvfp4":
            acc_even = tl.dot(v_t, p.to(v_t.dtype), acc_even)
        else:
            p *= (tl.load(v_scale + offs_s, mask=mask_t, other=0.0) * P_FACTOR)[:, None]
            v_even, v_odd = unpack(v_t, KV, "bf16", SM)
            acc_even = tl.dot(v_even, p.to(v_even.dtype), acc_even)
            acc_odd = tl.dot(v_odd, p.to(v_odd.dtype), acc_odd * alpha[None, :])
    UNDO: tl.constexpr = 2.0 ** -(V_EXPONENT + B_EXPONENT + (P_EXPONENT if V_EXPONENT < 0 else P_SHIFT))
    return acc_even * UNDO, acc_odd * UNDO, m, tl.sum(norm, 0) * 2.0**-P_SHIFT


@triton.jit
def normalise(acc_even, acc_odd, norm, KV: tl.constexpr, SM: tl.constexpr):
    """O [BLOCK_M, WIDTH] in fp32; zeros for rows that saw nothing."""
    factor = 1.0 / tl.where(norm > 0, norm, 1.0)[None, :]
    out = tl.trans(acc_even * factor)
    if KV == "nvfp4":
        out = in_order(out, "fp16", SM)
    elif KV != "":
        out = tl.interleave(out, tl.trans(acc_odd * factor))
    return out


@triton.jit
def with_sink(out, lse, sink):
    """A result [rows, D] and its log-sum-exp [rows] with one more logit in the denominator, which has no value.

    `sink` is in log2. For -inf, nothing changes, and a row that saw nothing stays zero.
    """
    m = tl.maximum(lse, sink)
    m_finite = tl.where(m == float("-inf"), 0.0, m)
    weight = tl.exp2(lse - m_finite)
    norm = weight + tl.exp2(sink - m_finite)
    norm = tl.where(norm > 0, norm, 1.0)
    return out * (weight / norm)[:, None], m + tl.log2(norm)


@triton.jit
def merge_two(o_a, lse_a, o_b, lse_b):
    """Two normalised results [rows, D] and their log-sum-exps [rows] -> the result and the log-sum-exp of both.

    (2^lse_a o_a + 2^lse_b o_b) / (2^lse_a + 2^lse_b), and zeros if neither saw anything.
    """
    m = tl.maximum(lse_a, lse_b)
    m_finite = tl.where(m == float("-inf"), 0.0, m)
    w_a = tl.exp2(lse_a - m_finite)
    w_b = tl.exp2(lse_b - m_finite)
    norm = w_a + w_b
    norm = tl.where(norm > 0, norm, 1.0)
    return o_a * (w_a / norm)[:, None] + o_b * (w_b / norm)[:, None], m + tl.log2(norm)


@triton.jit
def merge_parts(
    o,
    lse,
    partial_o,  # first part of the first row: [parts, rows, D]
    partial_lse,
    parts,
    offs_m,
    mask_m,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """Merge `parts` parts into o [BLOCK_M, WIDTH] and lse [BLOCK_M]. The loads of TILE parts are in flight at once."""
    offs_d = tl.arange(0, WIDTH)
    for first in range(0, parts, TILE):
        for i in tl.static_range(TILE):
            part = tl.zeros_like(offs_m) + first + i
            row = part * ROWS + offs_m
            mask = mask_m & (part < parts)
            part_lse = tl.load(partial_lse + row, mask=mask, other=float("-inf"), cache_modifier=".cg")
            mask_o = in_head(mask[:, None], offs_d[None, :], D, WIDTH)
            part_o = tl.load(
                partial_o + row[:, None] * D + offs_d[None, :], mask=mask_o, other=0.0, cache_modifier=".cg"
            )
            o, lse = merge_two(o, lse, part_o, part_lse)
    return o, lse


def words(inputs: Inputs, case: AttentionCase, name: str) -> torch.Tensor:
    """The cache `name` as the kernels read it: 16-bit elements, or words of `elements_of_word`."""
    cache = inputs[name]
    if cache.stride(-1) != 1:
        raise ValueError(f"{name}: the head dimension has stride {cache.stride(-1)}, expected 1")
    return cache.view(torch.int64 if case.kv == "nvfp4" else torch.int16) if case.kv else cache


def cache_args(case: AttentionCase, inputs: Inputs) -> dict[str, torch.Tensor]:
    made = {name: words(inputs, case, name) for name in ("k", "v")}
    for name in ("k_scale", "v_scale"):
        made[name] = inputs[name].view(torch.int8) if case.kv == "nvfp4" else inputs[name]
    return made | {name: inputs[name] for name in ("k_global", "v_global", "block_table")}


def stride_step(case: AttentionCase) -> int:
    """`cache_strides` count so many words, so that threads read 16 bytes.

    Triton knows of a stride that it is a multiple of 16, or nothing. 8-bit heads of 80, 112 or 208 dims are 40, 56 or
    104 words. Words of nvfp4 have 64 bits, and a head is an even number of them.
    """
    if case.kv == "nvfp4":
        return 2
    return 8 if case.kv and case.D % 32 else 1


def cache_strides(case: AttentionCase, inputs: Inputs) -> dict[str, int]:
    """Strides of both caches, in steps of `stride_step` elements or words, and of their scales, in nvfp4 in steps of
    `SCALES_STEP`."""
    strides: dict[str, int] = {}
    for name in ("k", "v"):
        steps = in_steps(name, nhd(words(inputs, case, name), case.layout), stride_step(case))
        strides |= dict(zip((f"stride_{name}_{axis}" for axis in ("page", "t", "h")), steps, strict=True))
    page, group, h = (0, 0, 0)
    if case.kv == "nvfp4":
        page, group, h = in_steps("k_scale", nhd(inputs["k_scale"], case.layout), SCALES_STEP.value)
    elif case.kv:
        page, group, h = inputs["k_scale"].stride()
    return strides | {"stride_s_page": page, "stride_s_group": group, "stride_s_h": h}


def in_steps(name: str, cache: torch.Tensor, step: int) -> list[int]:
    """The strides of pages, tokens and heads in steps of so many elements."""
    outer = cache.stride()[:3]
    if any(stride % step for stride in outer):
        raise ValueError(f"{name}: strides {outer} must be multiples of {step}")
    return [stride // step for stride in outer]
