"""y[B, N] = x[B, K] W[N, K]^T in one launch that reads W from DRAM once, for W in bf16, fp16 or fp32.

The CTAs share the weights as `triton_share.py` tells.

Up to `FMA_BATCH` sequences the products run on the fp32 pipe: a weight tile goes through registers, where each
element meets every sequence. Above, they run on the tensor cores with the weight rows on the M side:
`W tile [BLOCK_N, BLOCK_K] @ x^T [BLOCK_K, BLOCK_B]`, BLOCK_B at least 16.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from kernels.draw import BYTES
from kernels.ffn_gemv.op import GemvCase
from kernels.ffn_gemv.triton_share import Plan, fields, finish_tile, first_unit, power_of_2, share, variants
from kernels.launch import Built, KernelLaunch
from kernels.op import Inputs, Stage, Target, Work

FMA_BATCH = 2
"""Largest batch on the fp32 pipe. Compiled for sm_90, the loop issues 3.8 instructions for each weight and thread at
B = 1: an H100's SM, which receives 7.5 bf16 weights a cycle (3.35 TB/s, 132 SMs, 1.7 GHz) and issues for 128 lanes,
spends 22% of its slots. Registers set the limit: they hold a sum for each element of the tile and sequence, so that at
B = 4 only 36 KB fit in flight, while the tensor cores have 16 columns to fill and need 1.6 instructions a weight."""


def max_block_b(target: Target) -> int:
    """Batch columns that one CTA holds: 128 x 256 fp32 sums are 128 registers in each of 256 threads. Only Hopper's
    wgmma leaves room for that many: on sm_80 operands, on sm_100 copies out of tensor memory take registers too."""
    return 256 if target.sm == 90 else 128


def block_k(K: int, widest: int) -> int:
    """The widest block that divides K, so that no load needs a mask; where none does, at most 32, since masks and
    narrow loads take registers."""
    divides = [width for width in (1024, 512, 256, 128, 64) if width <= widest and K % width == 0]
    return divides[0] if divides else max(16, min(32, power_of_2(K)))


def plan(case: GemvCase, target: Target) -> Plan:
    """Units of 16 KB of weights; of 8 KB where the sums of two sequences fill the registers."""
    size = BYTES[case.dtype]
    use_mma = case.B > FMA_BATCH
    if use_mma:
        BLOCK_B = min(max_block_b(target), max(16, power_of_2(case.B)))
        BLOCK_K = block_k(case.K, (256 if BLOCK_B <= 32 else 128) // size)
        # the wider the batch tile, the taller: x crosses the L2 once per BLOCK_N rows of W
        BLOCK_N = 64 if BLOCK_B <= 32 else 128
        num_warps = BLOCK_N // 16
        ctas_per_sm = 2 if BLOCK_B <= 32 else 1
    else:
        BLOCK_B = power_of_2(case.B)
        BLOCK_K = block_k(case.K, 1024 // size)
        # 64 sums in each of 128 threads
        BLOCK_N = 64 * 128 // (BLOCK_K * BLOCK_B)
        num_warps, ctas_per_sm = (4 if case.K % BLOCK_K == 0 else 8), 1 + BLOCK_B
    chosen = fields(
        case, target, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, num_warps=num_warps, ctas_per_sm=ctas_per_sm
    )  # fmt: skip
    BLOCK_N, BLOCK_K = chosen["BLOCK_N"], chosen["BLOCK_K"]
    return share(
        N=case.N, K=case.K, B=case.B, BLOCK_B=BLOCK_B, unit_bytes=BLOCK_N * BLOCK_K * size,
        unit_smem=(BLOCK_N + BLOCK_B) * BLOCK_K * size, use_mma=use_mma, target=target, **chosen,
    )  # fmt: skip


def candidates(case: GemvCase, target: Target) -> Iterator[dict[str, int]]:
    """Tiles of other shapes that divide K, more or fewer CTAs, more or fewer bytes in flight."""
    size = BYTES[case.dtype]
    if case.B > FMA_BATCH:
        for BLOCK_N, width in ((64, 128), (64, 256), (64, 512), (128, 128), (128, 256)):
            if case.K % (width // size) == 0:
                tile = {"BLOCK_N": BLOCK_N, "BLOCK_K": width // size, "num_warps": BLOCK_N // 16}
                yield from variants((1, 2, 3), **tile)
        return
    for num_warps, width in ((4, 512), (4, 1024), (8, 1024), (8, 2048)):
        BLOCK_K = width // size
        if case.K % BLOCK_K == 0:
            BLOCK_N = 64 * 32 * num_warps // (BLOCK_K * power_of_2(case.B))
            yield from variants((1, 2, 4), BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, num_warps=num_warps)


@triton.jit
def gemv_fma(
    x, w, y, partial, arrived, B, N, K, stride_x_b, stride_w_n, stride_y_b,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """On the fp32 pipe: one sum per element of the tile and sequence, added across threads once per tile."""
    iters = tl.cdiv(K, BLOCK_K)
    units = tl.cdiv(N, BLOCK_N) * iters
    unit = first_unit(tl.program_id(1), units, tl.num_programs(1))
    end = first_unit(tl.program_id(1) + 1, units, tl.num_programs(1))
    offs_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < B
    offs_k = tl.arange(0, BLOCK_K)
    offs_x = (offs_b * stride_x_b)[:, None, None] + offs_k[None, None, :]
    while unit < end:
        tile = unit // iters
        tile_end = tl.minimum(end, tile * iters + iters)
        offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        w_first = w + (tile * BLOCK_N).to(tl.int64) * stride_w_n
        # rows past the last read the last one: their sums are not stored
        row = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - tile * BLOCK_N)
        offs_w = (row * stride_w_n)[:, None] + offs_k[None, :]
        sums = tl.zeros((BLOCK_B, BLOCK_N, BLOCK_K), tl.float32)
        for k in tl.range(
            (unit - tile * iters) * BLOCK_K, (tile_end - tile * iters) * BLOCK_K, BLOCK_K, num_stages=STAGES
        ):
            if EVEN_K:
                w_tile = tl.load(w_first + k + offs_w)
                x_tile = tl.load(x + k + offs_x, mask=mask_b[:, None, None], other=0.0)
            else:
                mask_k = offs_k < K - k
                w_tile = tl.load(w_first + k + offs_w, mask=mask_k[None, :], other=0.0)
                x_tile = tl.load(x + k + offs_x, mask=mask_b[:, None, None] & mask_k[None, None, :], other=0.0)
            sums += w_tile.to(tl.float32)[None, :, :] * x_tile.to(tl.float32)
        y_tile = tl.sum(sums, axis=2)
        finish_tile(
            y_tile, y, offs_b, offs_n, B, N, stride_y_b, 1, partial, arrived, tile, iters, units, N_ROWS=False
        )  # fmt: skip
        unit = tile_end


@triton.jit
def gemv_mma(
    x, w, y, partial, arrived, B, N, K, stride_x_b, stride_w_n, stride_y_b,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """On the tensor cores: W tile [BLOCK_N, BLOCK_K] @ x^T [BLOCK_K, BLOCK_B] -> fp32 sums."""
    iters = tl.cdiv(K, BLOCK_K)
    units = tl.cdiv(N, BLOCK_N) * iters
    unit = first_unit(tl.program_id(1), units, tl.num_programs(1))
    end = first_unit(tl.program_id(1) + 1, units, tl.num_programs(1))
    offs_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < B
    offs_k = tl.arange(0, BLOCK_K)
    offs_x = (offs_b * stride_x_b)[None, :] + offs_k[:, None]
    while unit < end:
        tile = unit // iters
        tile_end = tl.minimum(end, tile * iters + iters)
        offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        w_first = w + (tile * BLOCK_N).to(tl.int64) * stride_w_n
        # rows past the last read the last one: their sums are not stored
        row = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - tile * BLOCK_N)
        offs_w = (row * stride_w_n)[:, None] + offs_k[None, :]
        sums = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        for k in tl.range(
            (unit - tile * iters) * BLOCK_K, (tile_end - tile * iters) * BLOCK_K, BLOCK_K, num_stages=STAGES
        ):
            if EVEN_K:
                w_tile = tl.load(w_first + k + offs_w)
                x_tile = tl.load(x + k + offs_x, mask=mask_b[None, :], other=0.0)
            else:
                mask_k = offs_k < K - k
                w_tile = tl.load(w_first + k + offs_w, mask=mask_k[None, :], other=0.0)
                x_tile = tl.load(x + k + offs_x, mask=mask_b[None, :] & mask_k[:, None], other=0.0)
            sums = tl.dot(w_tile, x_tile, sums, input_precision="ieee")
        finish_tile(
            sums, y, offs_n, offs_b, N, B, 1, stride_y_b, partial, arrived, tile, iters, units, N_ROWS=True
        )  # fmt: skip
        unit = tile_end


def build(case: GemvCase, inputs: Inputs, target: Target) -> Built:
    """One launch; the workspace and the counters, zero between launches, belong to it."""
    x, w = inputs["x"], inputs["w"]
    if x.stride(1) != 1 or w.stride(1) != 1:
        raise ValueError(f"x and w must be contiguous along K, their strides are {x.stride()} and {w.stride()}")
    p = plan(case, target)
    y = torch.empty(case.B, case.N, dtype=x.dtype, device=x.device)
    launch = KernelLaunch(
        kernel=gemv_mma if p.use_mma else gemv_fma,
        grid=(p.tiles_b, p.ctas),
        args={
            "x": x,
            "w": w,
            "y": y,
            **p.workspace(x.device),
            "B": case.B,
            "N": case.N,
            "K": case.K,
            "stride_x_b": x.stride(0),
            "stride_w_n": w.stride(0),
            "stride_y_b": y.stride(0),
        },
        constexprs={
            "BLOCK_B": p.BLOCK_B,
            "BLOCK_N": p.BLOCK_N,
            "BLOCK_K": p.BLOCK_K,
            "EVEN_K": p.even_k,
            "STAGES": p.num_stages,
        },
        num_warps=p.num_warps,
        num_stages=p.num_stages,
        streams=("w",),
        **p.excuses(w),
        wants_mma=p.use_mma and case.dtype != "fp32",
    )
    return Built(launches=(launch,), output=y)


def stages(case: GemvCase, target: Target) -> tuple[Stage, ...]:
    """W and x once from DRAM; from the L2, x again for each tile of rows, W again for each batch tile."""
    p = plan(case, target)
    size = BYTES[case.dtype]
    weights, activations = size * case.N * case.K, size * case.B * case.K
    pipe = "mma_bf16" if p.use_mma and case.dtype != "fp32" else "fma_fp32"
    return (
        Stage(
            name="gemv_mma" if p.use_mma else "gemv_fma",
            work=Work(
                flops={pipe: p.flops},
                bytes_read=weights + activations,
                bytes_written=size * case.B * case.N,
            ),
            l2_bytes=(p.tiles_b - 1) * weights + (p.tiles_n - 1) * activations + p.partial_bytes,
            ctas=p.ctas * p.tiles_b,
            ctas_per_sm=p.ctas_per_sm,
        ),
    )


def supports(case: GemvCase, target: Target) -> str | None:
    if target.kind == "interpreter" and case.dtype == "bf16" and case.B > FMA_BATCH:
        return "Triton's interpreter multiplies bf16 operands of tl.dot as integers; use fp16 there"
    return None
