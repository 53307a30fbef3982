"""Routed experts in four launches: sort the pairs by expert, gate and up, down, combine. Nothing leaves the device.

The (token, expert) pairs are cut into tiles of at most BLOCK_B pairs of one expert; experts that are not hit have no
tile and are not read. How many tiles there are is known on the device alone, so the grid is fixed and the CTAs share
all units of work (BLOCK_N weight rows by BLOCK_K columns, for one tile) evenly as contiguous ranges ("stream-K", Osama
et al., 2023): at batch 1 eight small experts still fill all SMs. An output block whose units lie in several CTAs is
finished by the last of them to arrive, which adds the partials in order, so that results repeat bit for bit.

Weights are the M side of the tensor cores (`W [BLOCK_N, BLOCK_K] @ x^T [BLOCK_K, BLOCK_B]`): 16 pairs a tile suffice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from kernels import tuned
from kernels.draw import BYTES
from kernels.ffn_gemv.triton_share import first_unit
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.moe_ffn import triton_moe_quant
from kernels.moe_ffn.op import MoeCase
from kernels.moe_ffn.triton_routing import (
    BLOCK_N,
    MAX_BLOCK_B,
    MIN_BLOCK_B,
    SORT_BINS,
    SORT_PAIRS,
    Gemm,
    Plan,
    built,
    finish_item,
    max_tiles,
    pipeline,
    shape_class,
    stages_of,
    tile_pairs,
)
from kernels.op import Inputs, Stage, Target, Tuning


def gemm(case: MoeCase, target: Target, *, rows: int, K: int, matrices: int, BLOCK_B: int, ctas_per_sm: int) -> Gemm:
    """BLOCK_K of 128 bytes a row (256 for a single matrix), and as many stages as `IN_FLIGHT` asks for and fit."""
    size = BYTES[case.dtype]
    BLOCK_K = 128 // size
    if matrices == 1 and K % (2 * BLOCK_K) == 0:
        BLOCK_K *= 2
    unit = matrices * BLOCK_N * BLOCK_K * size
    return Gemm(
        rows=rows, K=K, matrices=matrices, BLOCK_K=BLOCK_K, expert_bytes=matrices * rows * K * size,
        num_stages=pipeline(target, ctas_per_sm, unit, unit + BLOCK_B * BLOCK_K * size),
    )  # fmt: skip


def plan(case: MoeCase, target: Target) -> Plan:
    """Two CTAs an SM where their sums leave them registers, 8 warps where those of 4 could not hold them."""
    if case.quantized:
        return triton_moe_quant.plan(case, target)
    tile = tile_pairs(case)
    fields = {"BLOCK_B": tile, "ctas_per_sm": 2 if tile <= 32 else 1, "num_warps": 8 if tile == MAX_BLOCK_B else 4}
    fields |= tuned.overrides("moe_ffn", "triton", shape_class(case), target)
    BLOCK_B, ctas_per_sm = fields["BLOCK_B"], fields["ctas_per_sm"]
    return Plan(
        **fields,
        max_tiles=max_tiles(case, BLOCK_B),
        ctas=target.sm_count * ctas_per_sm,
        gate_up=gemm(case, target, rows=case.F, K=case.H, matrices=2, BLOCK_B=BLOCK_B, ctas_per_sm=ctas_per_sm),
        down=gemm(case, target, rows=case.H, K=case.F, matrices=1, BLOCK_B=BLOCK_B, ctas_per_sm=ctas_per_sm),
    )


def candidates(case: MoeCase, target: Target) -> Iterator[dict[str, int]]:
    """Narrower and wider tiles, more or fewer CTAs and threads."""
    if case.quantized:
        yield from triton_moe_quant.candidates(case, target)
        return
    tile = tile_pairs(case)
    widths = sorted({max(MIN_BLOCK_B, tile // 2), tile, min(MAX_BLOCK_B, 2 * tile)})
    for BLOCK_B in widths:
        for ctas_per_sm in (1, 2, 3):
            for num_warps in (4, 8):
                yield {"BLOCK_B": BLOCK_B, "ctas_per_sm": ctas_per_sm, "num_warps": num_warps}


@triton.jit
def expert_kernel(
    x, out, pairs, tile_expert, tile_first, tile_end, tile_count, partial, arrived, N, K,
    top_k, stride_x_row, stride_out_row, w, stride_w_e, stride_w_n,
    GATED: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """GATED: out[sorted pair] = silu(Wg x[token]) * (Wu x[token]). Else out[pair] = Wd x[sorted pair].

    W is `[E, 2N, K]` where GATED, else `[E, N, K]`. A CTA shares at most two items, the first and the last of its
    range: the workspace has two slots for each CTA.
    """
    iters = tl.cdiv(K, BLOCK_K)
    blocks = tl.cdiv(N, BLOCK_N)
    units = tl.load(tile_count) * blocks * iters
    ctas = tl.minimum(tl.num_programs(0), units)
    cta = tl.program_id(0)
    unit = first_unit(cta, units, ctas)
    end = tl.minimum(first_unit(cta + 1, units, ctas), units)
    offs_k = tl.arange(0, BLOCK_K)
    while unit < end:
        item = unit // iters
        item_end = tl.minimum(end, item * iters + iters)
        tile = item // blocks
        row0 = (item % blocks) * BLOCK_N
        expert = tl.load(tile_expert + tile).to(tl.int64)
        offs_p = tl.load(tile_first + tile) + tl.arange(0, BLOCK_B)
        mask_p = offs_p < tl.load(tile_end + tile)
        pair = tl.load(pairs + offs_p, mask=mask_p, other=0)
        x_row = pair // top_k if GATED else offs_p
        x_at = x + (x_row.to(tl.int64) * stride_x_row)[None, :] + offs_k[:, None]
        offs_n = row0 + tl.arange(0, BLOCK_N)
        # rows past the last read the last one: their sums are not stored
        offs_w = (tl.minimum(offs_n, N - 1) * stride_w_n)[:, None] + offs_k[None, :]
        w_first = w + expert * stride_w_e
        w_second = w_first + N.to(tl.int64) * stride_w_n
        sums = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        sums_up = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        for k in tl.range(
            (unit - item * iters) * BLOCK_K, (item_end - item * iters) * BLOCK_K, BLOCK_K, num_stages=STAGES
        ):
            if EVEN_K:
                x_tile = tl.load(x_at + k, mask=mask_p[None, :], other=0.0)
                w_tile = tl.load(w_first + k + offs_w)
            else:
                x_tile = tl.load(x_at + k, mask=mask_p[None, :] & (offs_k < K - k)[:, None], other=0.0)
                w_tile = tl.load(w_first + k + offs_w, mask=(offs_k < K - k)[None, :], other=0.0)
            sums = tl.dot(w_tile, x_tile, sums, input_precision="ieee")
            if GATED:
                if EVEN_K:
                    up_tile = tl.load(w_second + k + offs_w)
                else:
                    up_tile = tl.load(w_second + k + offs_w, mask=(offs_k < K - k)[None, :], other=0.0)
                sums_up = tl.dot(up_tile, x_tile, sums_up, input_precision="ieee")
        finish_item(
            sums, sums_up, out, pair, offs_p, mask_p, offs_n, N, stride_out_row, partial, arrived, item, iters, units,
            ctas, GATED,
        )  # fmt: skip
        unit = item_end


def build(case: MoeCase, inputs: Inputs, target: Target) -> Built:
    """The routing's launches and two products with the weights as they are, or packed."""
    if case.quantized:
        return triton_moe_quant.build(case, inputs, target)
    p = plan(case, target)

    def product(g: Gemm, name: str, args: dict[str, Any]) -> KernelLaunch:
        w = inputs[name]
        return KernelLaunch(
            kernel=expert_kernel,
            grid=(p.ctas,),
            args={**args, "w": w, "stride_w_e": w.stride(0), "stride_w_n": w.stride(1)},
            constexprs={
                "GATED": g.matrices == 2, "EVEN_K": g.even, "BLOCK_B": p.BLOCK_B,
                "BLOCK_N": BLOCK_N, "BLOCK_K": g.BLOCK_K, "STAGES": g.num_stages,
            },
            num_warps=p.num_warps,
            num_stages=g.num_stages,
            streams=("w",),
            why_narrow="" if g.K * w.element_size() % 16 == 0 else "rows of K elements are not 16-byte aligned",
            wants_mma=case.dtype != "fp32",
        )  # fmt: skip

    return built(case, inputs, p, product)


def stages(case: MoeCase, target: Target) -> tuple[Stage, ...]:
    return stages_of(case, target, plan(case, target))


def supports(case: MoeCase, target: Target) -> str | None:
    if case.quantized and case.dtype == "fp32":
        return "weights are unpacked to bf16 or fp16, not to fp32"
    if target.kind == "interpreter" and not case.quantized and case.dtype == "bf16":
        return "Triton's interpreter multiplies bf16 operands of tl.dot as integers; use fp16 there"
    if case.pairs > SORT_PAIRS[-1] or SORT_BINS[-1] <= case.E:
        return (
            f"sorts at most {SORT_PAIRS[-1]} (token, expert) pairs of {SORT_BINS[-1] - 1} experts, "
            f"these are {case.pairs} of {case.E}"
        )
    return None


IMPLS = (
    triton_impl(
        name="triton",
        build=build,
        stages=stages,
        supports=supports,
        tuning=Tuning(shape_class=shape_class, candidates=candidates),
    ),
)
