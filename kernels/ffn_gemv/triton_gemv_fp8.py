"""y[B, N] = (x[B, K] * x_scale[B]) (W[N, K] * w_scale)^T with x and W in fp8 (e4m3), multiplied as they are.

The weights are not unpacked: the tensor cores take e4m3 itself. Their sums of fp8 products carry fewer bits than
fp32 on Hopper (14, says DeepSeek-V3's report, arXiv 2412.19437, section 3.3.2), so that every 128 columns are
summed on their own and added in fp32. There the scale of a 128 x 128 block comes in, at no further cost.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from kernels.draw import BYTES, torch_dtype
from kernels.ffn_gemv.op import GemvCase, activation_bytes
from kernels.ffn_gemv.triton_share import Plan, fields, finish_tile, first_unit, power_of_2, share, variants
from kernels.launch import Built, KernelLaunch
from kernels.op import Inputs, Stage, Target, Work
from kernels.quant import weight_bytes

MAX_BLOCK_B = 128
"""Batch columns of a CTA: 128 x 128 sums and as many products are 128 registers in each of 256 threads."""


def plan(case: GemvCase, target: Target) -> Plan:
    """Units of 128 rows by 128 columns: 16 KB, and one scale of a block."""
    BLOCK_B = min(MAX_BLOCK_B, max(16, power_of_2(case.B)))
    return share(
        N=case.N, K=case.K, B=case.B, BLOCK_N=128, BLOCK_K=128, BLOCK_B=BLOCK_B,
        unit_bytes=128 * 128, unit_smem=(128 + BLOCK_B) * 128, use_mma=True, target=target,
        **fields(case, target, num_warps=8, ctas_per_sm=2 if BLOCK_B <= 32 else 1),
    )  # fmt: skip


def candidates(case: GemvCase, target: Target) -> Iterator[dict[str, int]]:
    """More or fewer threads, CTAs and bytes in flight."""
    for num_warps in (4, 8):
        yield from variants((1, 2, 3), num_warps=num_warps)


@triton.jit
def gemv_fp8(
    x, x_scale, w, w_scale, y, partial, arrived, B, N, K, stride_x_b, stride_w_n, stride_y_b,
    BLOCKED: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """W tile [BLOCK_N, BLOCK_K] @ x^T [BLOCK_K, BLOCK_B], scaled by block (BLOCKED) or by row of W, and by row of x."""
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
        for it in tl.range(unit - tile * iters, tile_end - tile * iters, num_stages=STAGES):
            k = it * BLOCK_K
            if EVEN_K:
                w_tile = tl.load(w_first + k + offs_w)
                x_tile = tl.load(x + k + offs_x, mask=mask_b[None, :], other=0.0)
            else:
                mask_k = offs_k < K - k
                w_tile = tl.load(w_first + k + offs_w, mask=mask_k[None, :], other=0.0)
                x_tile = tl.load(x + k + offs_x, mask=mask_b[None, :] & mask_k[:, None], other=0.0)
            if BLOCKED:
                sums += tl.dot(w_tile, x_tile) * tl.load(w_scale + tile * iters + it)
            else:
                sums += tl.dot(w_tile, x_tile)
        if not BLOCKED:
            sums *= tl.load(w_scale + tile * BLOCK_N + row)[:, None]
        sums *= tl.load(x_scale + offs_b, mask=mask_b, other=0.0)[None, :]
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
    y = torch.empty(case.B, case.N, dtype=torch_dtype(case.dtype), device=x.device)
    launch = KernelLaunch(
        kernel=gemv_fp8,
        grid=(p.tiles_b, p.ctas),
        args={
            "x": x,
            "x_scale": inputs["x_scale"],
            "w": w,
            "w_scale": inputs["w_scale"],
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
            "BLOCKED": case.weights == "fp8_block",
            "BLOCK_B": p.BLOCK_B,
            "BLOCK_N": p.BLOCK_N,
            "BLOCK_K": p.BLOCK_K,
            "EVEN_K": p.even_k,
            "STAGES": p.num_stages,
            **p.register_cap(),
        },
        num_warps=p.num_warps,
        num_stages=p.num_stages,
        streams=("w",),
        **p.excuses(w),
        wants_mma=True,
    )
    return Built(launches=(launch,), output=y)


def stages(case: GemvCase, target: Target) -> tuple[Stage, ...]:
    """W, x and scales once from DRAM; x again from the L2 for each tile of rows, W again for each batch tile."""
    p = plan(case, target)
    weights = weight_bytes(case.weights, case.N, case.K, 4)
    return (
        Stage(
            name="gemv_fp8",
            work=Work(
                flops={"mma_fp8": p.flops},
                bytes_read=weights + activation_bytes(case),
                bytes_written=BYTES[case.dtype] * case.B * case.N,
            ),
            l2_bytes=(p.tiles_b - 1) * weights + (p.tiles_n - 1) * activation_bytes(case) + p.partial_bytes,
            ctas=p.ctas * p.tiles_b,
            ctas_per_sm=p.ctas_per_sm,
        ),
    )


def supports(case: GemvCase, target: Target) -> str | None:
    if target.kind == "cuda" and target.sm < 89:
        return f"fp8 tensor cores need sm_89 or later, this part is sm_{target.sm}"
    return None
