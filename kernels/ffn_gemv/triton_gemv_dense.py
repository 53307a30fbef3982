"""y[B, N] = x[B, K] W[N, K]^T in one launch that reads W from DRAM once, for a W that is multiplied as it is: bf16,
fp16, fp32, or fp8 (e4m3) if x is fp8 too.

The CTAs share the weights as `kernels/common/stream_k.py` tells.

Up to `FMA_BATCH` sequences, the products run on the fp32 pipe: a weight tile goes through registers, where each element
meets every sequence. Larger batches run on the tensor cores, with the weight rows on the M side:
`W tile [BLOCK_N, BLOCK_K] @ x^T [BLOCK_K, BLOCK_B]`, BLOCK_B at least 16.

fp8 runs on the tensor cores at every batch, since they take e4m3 itself. On Hopper their sums of fp8 products have
fewer bits than fp32 (14, says DeepSeek-V3's report, arXiv 2412.19437, section 3.3.2). So every 128 columns are summed
on their own, and these sums are added in fp32. The scale of a 128 x 128 block is applied there, at no further cost.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from kernels.common.integers import next_power_of_2
from kernels.common.random_inputs import BYTES, torch_dtype
from kernels.common.stream_k import (
    Plan,
    clipped_rows,
    finish_tile,
    launch,
    load_weights,
    load_x,
    more_or_fewer,
    own_batch,
    own_part,
    own_units,
    share,
    stage,
    variants,
    weights_at,
)
from kernels.ffn_gemv.op import GemvCase, activation_bytes, work
from kernels.launch import Built
from kernels.op import Inputs, Stage, Target

FMA_BATCH = 2
"""Largest batch on the fp32 pipe. Compiled for sm_90, the loop issues 3.8 instructions for each weight and thread at B
= 1. An H100's SM receives 7.5 bf16 weights a cycle (3.35 TB/s, 132 SMs, 1.7 GHz) and issues for 128 lanes, so the loop
takes 22% of its slots. Registers set the limit: they hold a sum for each element of the tile and each sequence, so that
at B = 4 only 36 KB fit in flight. The tensor cores have 16 columns to fill and need 1.6 instructions a weight."""


def max_block_b(target: Target) -> int:
    """The most batch columns of a CTA: 128 x 256 fp32 sums take 128 registers in each of 256 threads. Only Hopper's
    wgmma leaves room for so many. On sm_80 operands take registers too, and on sm_100 copies out of tensor memory."""
    return 256 if target.sm == 90 else 128


MAX_BLOCK_B_FP8 = 128
"""The same for fp8: 128 x 128 sums and as many products take 128 registers in each of 256 threads."""


def block_k(K: int, widest: int) -> int:
    """The widest block that divides K, so that no load needs a mask. If none divides K, at most 32 columns, since masks
    and narrow loads take registers."""
    divides = [width for width in (1024, 512, 256, 128, 64) if width <= widest and K % width == 0]
    return divides[0] if divides else max(16, min(32, next_power_of_2(K)))


def plan(case: GemvCase, target: Target) -> Plan:
    """Units of 16 KB of weights; of 8 KB if the sums of two sequences fill the registers. A unit of fp8 is a block,
    which has one scale."""
    size = BYTES[case.activations]
    use_mma = case.quantized or case.B > FMA_BATCH
    if case.quantized:
        BLOCK_B = min(MAX_BLOCK_B_FP8, max(16, next_power_of_2(case.B)))
        BLOCK_N, BLOCK_K, num_warps, ctas_per_sm = 128, 128, 8, 2 if BLOCK_B <= 32 else 1
    elif use_mma:
        BLOCK_B = min(max_block_b(target), max(16, next_power_of_2(case.B)))
        BLOCK_K = block_k(case.K, (256 if BLOCK_B <= 32 else 128) // size)
        # a wider batch tile is also taller, since x comes from the L2 once for every BLOCK_N rows of W
        BLOCK_N = 64 if BLOCK_B <= 32 else 128
        num_warps, ctas_per_sm = BLOCK_N // 16, 2 if BLOCK_B <= 32 else 1
    else:
        BLOCK_B = next_power_of_2(case.B)
        BLOCK_K = block_k(case.K, 1024 // size)
        # 64 sums in each of 128 threads
        BLOCK_N = 64 * 128 // (BLOCK_K * BLOCK_B)
        num_warps, ctas_per_sm = (4 if case.K % BLOCK_K == 0 else 8), 1 + BLOCK_B
    chosen = {"BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K, "num_warps": num_warps, "ctas_per_sm": ctas_per_sm}
    chosen |= target.overrides
    BLOCK_N, BLOCK_K = chosen["BLOCK_N"], chosen["BLOCK_K"]
    chosen |= {"unit_bytes": BLOCK_N * BLOCK_K * size, "unit_smem": (BLOCK_N + BLOCK_B) * BLOCK_K * size}
    return share(Plan(B=case.B, N=case.N, K=case.K, BLOCK_B=BLOCK_B, use_mma=use_mma, **chosen), target)


def candidates(case: GemvCase, target: Target) -> Iterator[dict[str, int]]:
    """Tiles of other shapes that divide K (not for fp8); more or fewer threads, CTAs and bytes in flight."""
    if case.quantized:
        yield from more_or_fewer()
        return
    size = BYTES[case.dtype]
    if case.B > FMA_BATCH:
        # 256 rows for large batches, where x is a large part of what the L2 delivers
        for BLOCK_N, width in ((64, 128), (64, 256), (64, 512), (128, 128), (128, 256), (256, 128)):
            if case.K % (width // size) == 0 and (BLOCK_N < 256 or case.B >= 32):
                tile = {"BLOCK_N": BLOCK_N, "BLOCK_K": width // size, "num_warps": min(8, BLOCK_N // 16)}
                yield from variants((1, 2, 3), **tile)
        return
    for num_warps, width in ((4, 512), (4, 1024), (8, 1024), (8, 2048)):
        BLOCK_K = width // size
        if case.K % BLOCK_K == 0:
            BLOCK_N = 64 * 32 * num_warps // (BLOCK_K * next_power_of_2(case.B))
            yield from variants((1, 2, 4), BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, num_warps=num_warps)


@triton.jit
def gemv_fma(
    x,
    w,
    y,
    partial,
    arrived,
    B,
    N,
    K,
    stride_x_b,
    stride_w_n,
    stride_y_b,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """On the fp32 pipe: one sum for each element of the tile and each sequence; threads add theirs up once per tile."""
    iters, units, unit, end = own_units(N, K, BLOCK_N, BLOCK_K)
    offs_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = (offs_b < B)[:, None, None]
    offs_k = tl.arange(0, BLOCK_K)
    offs_x = (offs_b * stride_x_b)[:, None, None] + offs_k[None, None, :]
    while unit < end:
        tile, it_first, it_end = own_part(unit, end, iters)
        rows = clipped_rows(tile * BLOCK_N, N, BLOCK_N)
        w_first, offs_w = weights_at(w, tile * BLOCK_N, rows, stride_w_n, offs_k)
        sums = tl.zeros((BLOCK_B, BLOCK_N, BLOCK_K), tl.float32)
        for k in tl.range(it_first * BLOCK_K, it_end * BLOCK_K, BLOCK_K, num_stages=STAGES):
            mask_k = offs_k < K - k
            w_tile = load_weights(w_first + k + offs_w, mask_k[None, :], EVEN_K)
            x_tile = load_x(x + k + offs_x, mask_b, mask_k[None, None, :], EVEN_K)
            sums += w_tile.to(tl.float32)[None, :, :] * x_tile.to(tl.float32)
        y_tile = tl.sum(sums, axis=2)
        finish_tile(y_tile, None, y, offs_b, B, N, stride_y_b, partial, arrived, tile, iters, units, False, "")
        unit += it_end - it_first


@triton.jit
def gemv_mma(
    x,
    x_scale,
    w,
    w_scale,
    y,
    partial,
    arrived,
    B,
    N,
    K,
    stride_x_b,
    stride_w_n,
    stride_y_b,
    BLOCKED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """On the tensor cores: W tile [BLOCK_N, BLOCK_K] @ x^T [BLOCK_K, BLOCK_B] -> fp32 sums.

    fp8 is scaled by the row of x, and by the block (BLOCKED) or the row of W. For other types both scales are None.
    """
    iters, units, unit, end = own_units(N, K, BLOCK_N, BLOCK_K)
    offs_k = tl.arange(0, BLOCK_K)
    offs_b, mask_b, offs_x = own_batch(B, stride_x_b, offs_k, BLOCK_B)
    while unit < end:
        tile, it_first, it_end = own_part(unit, end, iters)
        rows = clipped_rows(tile * BLOCK_N, N, BLOCK_N)
        w_first, offs_w = weights_at(w, tile * BLOCK_N, rows, stride_w_n, offs_k)
        sums = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        for it in tl.range(it_first, it_end, num_stages=STAGES):
            k = it * BLOCK_K
            mask_k = offs_k < K - k
            w_tile = load_weights(w_first + k + offs_w, mask_k[None, :], EVEN_K)
            x_tile = load_x(x + k + offs_x, mask_b[None, :], mask_k[:, None], EVEN_K)
            if x_scale is None:
                sums = tl.dot(w_tile, x_tile, sums, input_precision="ieee")
            elif BLOCKED:
                sums += tl.dot(w_tile, x_tile) * tl.load(w_scale + tile * iters + it)
            else:
                sums += tl.dot(w_tile, x_tile)
        if x_scale is not None:
            if not BLOCKED:
                sums *= tl.load(w_scale + tile * BLOCK_N + rows)[:, None]
            sums *= tl.load(x_scale + offs_b, mask=mask_b, other=0.0)[None, :]
        finish_tile(sums, None, y, offs_b, B, N, stride_y_b, partial, arrived, tile, iters, units, True, "")
        unit += it_end - it_first


def build(case: GemvCase, inputs: Inputs, target: Target) -> Built:
    """One launch."""
    x, w = inputs["x"], inputs["w"]
    p = plan(case, target)
    y = torch.empty(case.B, case.N, dtype=torch_dtype(case.dtype), device=x.device)
    if not p.use_mma:
        fma = launch(gemv_fma, p, {"x": x, "w": w, "y": y}, **p.excuses(w))
        return Built(launches=(fma,), output=y)
    x_scale, w_scale = (inputs["x_scale"], inputs["w_scale"]) if case.quantized else (None, None)
    mma = launch(
        gemv_mma,
        p,
        {"x": x, "x_scale": x_scale, "w": w, "w_scale": w_scale, "y": y},
        constexprs={"BLOCKED": case.weights == "fp8_block"},
        **p.excuses(w),
    )
    return Built(launches=(mma,), output=y)


def stages(case: GemvCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes, and what tiles read again from the L2."""
    p = plan(case, target)
    least, activations = work(case), activation_bytes(case)
    (pipe,) = least.flops if p.use_mma else ("fma_fp32",)
    weights = least.bytes_read - activations
    name = "gemv_mma" if p.use_mma else "gemv_fma"
    return (stage(name, p, target, pipe=pipe, weights=weights, activations=activations, outputs=least.bytes_written),)


def supports(case: GemvCase, target: Target) -> str | None:
    if case.quantized and target.kind == "cuda" and target.sm < 89:
        return f"fp8 tensor cores need sm_89 or later, this part is sm_{target.sm}"
    if target.kind == "interpreter" and case.dtype == "bf16" and case.B > FMA_BATCH and not case.quantized:
        return "Triton's interpreter multiplies bf16 operands of tl.dot as integers; use fp16 there"
    return None
