"""Split-KV latent attention: one read of each token serves keys, values and all heads of a tile.

`kernels/common/split_kv.py` cuts the blocks of all sequences into equal runs, one per SM. A run that crosses from one
sequence to the next is cut there too. Each piece is a CTA; the longest start first, so that the short ones fill the
rest. (A CTA that loops over pieces would spill: addresses used before and after the inner loop stay in registers, and
all registers are taken.) A second kernel merges the parts by their log-sum-exp.

64 query rows, the heads of one query and then of the next, are the M side of the tensor cores: S [64, BLOCK_T] = Q C^T
and O [64, L] += P C. Both products read the same tile in shared memory. Registers hold no more sums than those of 64
rows. 128 heads are two tiles, whose CTAs walk side by side over the same tokens. Fewer than 64 heads are padded: the
242 / 2 FLOP/B executed are still below an H100's ridge.

On sm_90, fp8 latents pass through registers from one place in shared memory to another, and on the way take the type of
the queries, exactly. Both products read the second place. (Converting queries to fp16 instead would save a step, but
Triton keeps what it has converted in registers, 128 of them.) On other parts `triton_words.py` reads the latents. A
token's scale multiplies its scores and its probability.

nvfp4 latents are unpacked in registers. Up to sm_90 these would spill beside 512 sums a row. So two CTAs share a tile
of rows: each computes all scores and half of O's dims. The second gets the tokens from the L2, and both unpack them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.common import nvfp4_cache
from kernels.common.integers import counted
from kernels.common.random_inputs import BYTES
from kernels.common.split_kv import MERGE_WARPS_PER_SM, block_count, merge_shape
from kernels.common.triton_kv import LOG2_E, P_EXPONENT_FP16, merge_launch, new_parts, table
from kernels.common.triton_nvfp4 import block_exponent, pairs_halves, to_places, unpack_block
from kernels.common.workspace import passing
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.mla_decode.op import MlaCase, lengths, table_bytes, work
from kernels.mla_decode.split_plan import BLOCK_T, TUNING, WARPS, few_buffers, plan, slots_per_byte
from kernels.mla_decode.triton_rows import locate, place_of, query_rows, weigh
from kernels.mla_decode.triton_words import words_kernel
from kernels.op import Inputs, Stage, Target, Work


@triton.jit
def mla_kernel(
    q_latent,
    q_rope,
    cache,
    rope,
    latent_scale,
    latent_global,
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
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
    AS_BITS: tl.constexpr,
    SM: tl.constexpr,
):
    """Program (row tile, segment): online softmax, scores in log2. O of the segment and its lse go to its slot.

    - AS_BITS: sums go from block to block as bits. If they were floats, Triton 3.6 would leave the wgmma that adds to
      them in flight from one block to the next on sm_90, and ptxas would then wait after each of a block's 38 wgmmas.
    - Scores are the sum of two separate products. If one product went on with the sums of the other, Triton would split
      it among the warps in another way.
    - fp8 latents are converted to fp32 first, where conversions are packed. From fp16 straight to bf16 there is only
      `F2F`.

    - nvfp4 latents take the type of the queries (`kernels/common/triton_nvfp4.py`), which follow their order. Partial
      results have it too; their merge puts the dims in order.
    - PARTS: with 2, programs 2 i and 2 i + 1 have row tile i. Each has the dims of its half of O, and of the other half
      the queries and latents only.

    Segments begin at a multiple of BLOCK_T. `rope` and `latent_scale` are read only if KV is not empty; `lengths` and
    the strides between queries only if a sequence has several queries.
    """
    SCATTERED: tl.constexpr = PAGE % BLOCK_T != 0
    WIDTH: tl.constexpr = L // PARTS
    part = tl.program_id(0) % PARTS
    offs_m = tl.program_id(0) // PARTS * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_l = part * WIDTH + tl.arange(0, WIDTH)
    offs_r = tl.arange(0, R)
    offs_i = tl.arange(0, BLOCK_T)
    s = tl.program_id(1)
    b = tl.load(segments + 8 * s).to(tl.int64)
    mask_m = offs_m < Q_LEN * H
    t_begin = tl.load(segments + 8 * s + 2)
    t_end = tl.load(segments + 8 * s + 3)
    TO: tl.constexpr = "bf16" if q_latent.dtype.element_ty == tl.bfloat16 else "fp16"
    offs_ql = query_rows(offs_m, H, stride_ql_i, stride_ql_h, Q_LEN=Q_LEN)[:, None] + offs_l[None, :]
    offs_qr = query_rows(offs_m, H, stride_qr_i, stride_qr_h, Q_LEN=Q_LEN)[:, None] + offs_r[None, :]
    ql = tl.load(q_latent + b * stride_ql_b + offs_ql, mask=mask_m[:, None], other=0.0)
    qr = tl.load(q_rope + b * stride_qr_b + offs_qr, mask=mask_m[:, None], other=0.0)
    if KV == "fp8":
        ql = ql.to(tl.bfloat16 if SM > 0 else tl.float32)
    whole = 1.0
    if KV == "nvfp4":
        whole = tl.load(latent_global) * 2.0 ** -block_exponent(TO, SM)
        ql = to_places(ql if SM > 0 else ql.to(tl.float32), TO, SM)
        offs_g = part * (WIDTH // 16) + tl.arange(0, WIDTH // 16)
    if PARTS == 2:
        q_other = tl.load(
            q_latent + b * stride_ql_b + offs_ql + (1 - 2 * part) * WIDTH, mask=mask_m[:, None], other=0.0
        )
        q_other = to_places(q_other if SM > 0 else q_other.to(tl.float32), TO, SM)
        offs_o = (1 - part) * (WIDTH // 16) + tl.arange(0, WIDTH // 16)
    P_SHIFT: tl.constexpr = P_EXPONENT_FP16 if ql.dtype == tl.float16 else 0
    row = block_table + b * stride_table_b
    newest = t_end
    if Q_LEN > 1:
        newest = tl.load(lengths + b) - Q_LEN + offs_m // H
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    norm = tl.zeros([BLOCK_M], tl.float32)
    KEPT: tl.constexpr = tl.int32 if AS_BITS else tl.float32
    acc = tl.zeros([BLOCK_M, WIDTH], KEPT)
    for block in tl.range(t_begin, t_end, BLOCK_T, num_stages=STAGES, disable_licm=KV == "nvfp4"):
        # tokens past the end read the last token, and get no weight
        offs_b = tl.minimum(offs_i, t_end - 1 - block)
        page, place = place_of(row, b, block, offs_b, PAGE=PAGE, SCATTERED=SCATTERED)
        first, offs_c = locate(cache, page, place, offs_b, stride_c_page, stride_c_t, SCATTERED=SCATTERED)
        if KV != "":
            first_r, offs_k = locate(rope, page, place, offs_b, stride_r_page, stride_r_t, SCATTERED=SCATTERED)
            first_s, offs_s = locate(latent_scale, page, place, offs_b, stride_s_page, stride_s_t, SCATTERED=SCATTERED)
            r = tl.load(first_r + (offs_k[:, None] + offs_r[None, :]))
        if KV == "nvfp4":
            block_scales = tl.load(first_s + (offs_s[:, None] + offs_g[None, :]))
            c = unpack_block(tl.load(first + (offs_c[:, None] + offs_g[None, :])), block_scales, TO, SM)
            scores = tl.dot(ql, tl.trans(c))
            if PARTS == 2:
                other_scales = tl.load(first_s + (offs_s[:, None] + offs_o[None, :]))
                other = unpack_block(tl.load(first + (offs_c[:, None] + offs_o[None, :])), other_scales, TO, SM)
                scores += tl.dot(q_other, tl.trans(other))
            scores *= scale * LOG2_E * whole
        elif KV == "fp8":
            s_t = tl.load(first_s + offs_s)
            c = tl.load(first + (offs_c[:, None] + offs_l[None, :])).to(tl.float32).to(ql.dtype)
            scores = tl.dot(ql, tl.trans(c)) * (s_t * (scale * LOG2_E))[None, :]
        else:
            r = tl.load(first + L + (offs_c[:, None] + offs_r[None, :]))
            c = tl.load(first + (offs_c[:, None] + offs_l[None, :]))
            scores = tl.dot(ql, tl.trans(c)) * (scale * LOG2_E)
        scores += tl.dot(qr, tl.trans(r)) * (scale * LOG2_E)
        p, alpha, m, norm = weigh(scores, m, norm, block, t_end, newest, BLOCK_T=BLOCK_T, Q_LEN=Q_LEN, SHIFT=P_SHIFT)
        if KV == "fp8":
            p *= s_t[None, :]
        scaled = acc.to(tl.float32, bitcast=True) * alpha[:, None]
        acc = tl.dot(p.to(c.dtype), c, scaled).to(KEPT, bitcast=True)
    norm *= 2.0**-P_SHIFT
    total = tl.where(norm > 0, norm, 1.0) * 2.0**P_SHIFT
    out = acc.to(tl.float32, bitcast=True) * (whole / total)[:, None]
    slot = tl.load(segments + 8 * s + 4)
    first_row = slot.to(tl.int64) * (Q_LEN * H)
    tl.store(partial_o + first_row * L + ((offs_m * L)[:, None] + offs_l[None, :]), out, mask=mask_m[:, None])
    tl.store(partial_lse + first_row + offs_m, m + tl.log2(norm), mask=mask_m)


def token_strides(name: str, cache: torch.Tensor | None) -> dict[str, int]:
    """Strides from page to page and from token to token; zeros for a tensor that the cache does not have."""
    page, t = (0, 0) if cache is None else cache.stride()[:2]
    return {f"stride_{name}_page": page, f"stride_{name}_t": t}


def build(case: MlaCase, inputs: Inputs, target: Target) -> Built:
    """The list of segments and the parts are made once."""
    q_latent, q_rope, cached = inputs["q_latent"], inputs["q_rope"], inputs["cache"]
    for name in ("q_latent", "q_rope", "cache", "rope"):
        if inputs[name].stride(-1) != 1:
            raise ValueError(f"{name}: the last dimension has stride {inputs[name].stride(-1)}, expected 1")
    p = plan(case, target)
    latent_scale = inputs["latent_scale"]
    if p.words:
        cached = cached.view(torch.int16)
    elif case.kv == "nvfp4":
        cached, latent_scale = cached.view(torch.int64), latent_scale.view(torch.int8)
    o = torch.empty_like(q_latent, memory_format=torch.contiguous_format)
    parts = new_parts(p.slots, case.rows, case.L, o.device)
    main = KernelLaunch(
        kernel=words_kernel if p.words else mla_kernel,
        grid=(p.programs, len(p.segments)),
        args={
            "q_latent": q_latent,
            "q_rope": q_rope,
            "cache": cached,
            "rope": inputs["rope"],
            "latent_scale": latent_scale,
            **({} if p.words else {"latent_global": inputs["latent_global"]}),
            "block_table": inputs["block_table"],
            "segments": table([s.row() for s in p.segments], o.device),
            "partial_o": parts.o,
            "partial_lse": parts.lse,
            "H": case.H,
            "scale": case.softmax_scale,
            "stride_ql_b": q_latent.stride(0),
            "stride_ql_h": q_latent.stride(2),
            "stride_qr_b": q_rope.stride(0),
            "stride_qr_h": q_rope.stride(2),
            **token_strides("c", cached),
            **token_strides("r", inputs["rope"] if case.kv else None),
            **token_strides("s", latent_scale if case.kv else None),
            "stride_table_b": inputs["block_table"].stride(0),
            "lengths": inputs["lengths"],
            "stride_ql_i": q_latent.stride(1),
            "stride_qr_i": q_rope.stride(1),
        },
        constexprs={
            "L": case.L,
            "R": case.R,
            "BLOCK_T": p.block_t,
            "BLOCK_M": p.block_m,
            "Q_LEN": case.q_len,
            "PAGE": case.page,
            "KV": case.kv,
            "STAGES": p.num_stages,
            **({} if p.words else {"AS_BITS": target.sm == 90, "PARTS": p.parts}),
            "SM": target.sm if target.kind == "cuda" else 0,
        },
        num_warps=WARPS,
        num_stages=p.num_stages,
        streams=("cache", "rope") if case.kv else ("cache",),
        wants_mma=True,
        slots_per_byte=slots_per_byte(case, p, target),
        why_few_in_flight="the addresses of a third block would spill" if few_buffers(case, target) else "",
    )
    halves = case.kv == "nvfp4" and pairs_halves(case.dtype, target.sm if target.kind == "cuda" else 0)
    merge = merge_launch([s for s in p.segments if s.is_first], parts, o, group=case.H, halves=halves)
    return Built(launches=(main, merge), output=o)


def stages(case: MlaCase, target: Target) -> tuple[Stage, ...]:
    """The cache comes once from DRAM, and from the L2 again for each further tile of rows. Queries of a sequence's
    further segments come from the L2, and parts pass through the workspace.

    The compiled code waits for the segment, then for the queries, then for the page ids, before it asks for a block.
    """
    p = plan(case, target)
    least = work(case)
    parts = 4 * p.slots * case.rows * (case.L + 1)
    again = (p.programs - 1) * (sum(lengths(case)) * case.token_bytes + table_bytes(case))
    queries = max(0, len(p.segments) - case.B) * case.rows * (case.L + case.R) * BYTES[case.dtype]
    padded = 2 * p.blocks * p.block_t * p.programs * p.block_m * (case.L // p.parts + case.L + case.R)
    scales = {"fp8": BYTES["fp32"], "nvfp4": case.L // nvfp4_cache.BLOCK}.get(case.kv, 0)
    streamed = p.blocks * p.block_t * p.programs * (case.token_bytes - scales)
    main = Stage(
        name="mla",
        work=Work(flops={"mma_bf16": padded}, bytes_read=least.bytes_read + 32 * len(p.segments)),
        l2_bytes=again + queries,
        ctas=len(p.segments) * p.programs,
        # a program of each tile of rows, then the next segment
        pieces=counted(block_count([(s.t_begin, s.t_end)], p.block_t) for s in p.segments for _ in range(p.programs)),
        loads_before={"dram": 3 if case.page else 2},
        instructions=round(slots_per_byte(case, p, target) * streamed),
    )
    merge = Stage(
        name="merge",
        work=Work(
            flops={"fma_fp32": 2 * p.slots * case.rows * case.L},
            bytes_read=16 * case.B,
            bytes_written=least.bytes_written,
        ),
        ctas=case.B * case.rows,
        ctas_per_sm=MERGE_WARPS_PER_SM // merge_shape(p.segments, case.L)[1],
        loads_before={"dram": 1},
    )
    return passing(main, target, parts, written=parts), passing(merge, target, parts, read=parts)


def supports(case: MlaCase, target: Target) -> str | None:
    if case.dtype == "fp32":
        return "needs a 16-bit query: tensor cores round fp32 operands to tf32"
    if case.L & (case.L - 1) or case.R & (case.R - 1) or min(case.L, case.R) < 16 or (case.kv and case.L < 32):
        least = 32 if case.kv else 16
        return f"needs widths that are powers of two, L from {least} and R from 16, not {case.L} and {case.R}"
    if case.kv == "nvfp4" and target.kind == "cuda":
        least = 2 * nvfp4_cache.BLOCK * 32 * WARPS // BLOCK_T * plan(case, target).parts
        if least > case.L:
            return f"unpacks two blocks of nvfp4 in each thread at once; that takes {least} latents, not {case.L}"
    if target.kind == "interpreter" and case.dtype == "bf16":
        return "Triton's interpreter multiplies bf16 operands of tl.dot as integers; use fp16 there"
    return None


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports, tuning=TUNING),)
