"""Routed experts in four launches: sort the pairs by expert, gate and up, down, combine. Nothing leaves the device.

The (token, expert) pairs are cut into tiles of at most BLOCK_B pairs of one expert. Experts that are not hit have no
tile and are not read. Only the device knows how many tiles there are, so the grid is fixed, and the CTAs share all
units of work (BLOCK_N weight rows by BLOCK_K columns, for one tile) evenly as contiguous ranges ("stream-K", Osama
et al., 2023). So at batch 1, eight small experts still fill all SMs. If several CTAs share an output block, the last of
them to arrive finishes it: it adds the partials in order, so that results repeat bit for bit.

Weights are the M side of the tensor cores (`W [BLOCK_N, BLOCK_K] @ x^T [BLOCK_K, BLOCK_B]`): 16 pairs a tile suffice.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import triton
import triton.language as tl

from kernels.common.random_inputs import BYTES
from kernels.common.stream_k import clipped_rows, load_weights, load_x, own_part, weights_at
from kernels.launch import Built, triton_impl
from kernels.moe_ffn import triton_moe_quant
from kernels.moe_ffn.expert_plan import (
    BLOCK_N,
    MAX_BLOCK_B,
    Gemm,
    Plan,
    gemm_of,
    plan_of,
    shape_class,
    stages_of,
    tile_pairs,
    widths,
)
from kernels.moe_ffn.op import MoeCase
from kernels.moe_ffn.triton_routing import SORT_BINS, SORT_PAIRS, built, finish_item, own_items, pairs_of
from kernels.op import Inputs, Stage, Target, Tuning


def gemm(case: MoeCase, target: Target, *, rows: int, K: int, matrices: int, BLOCK_B: int, ctas_per_sm: int) -> Gemm:
    """A block has 128 bytes of each row; for a single matrix 256, if that divides K."""
    size = BYTES[case.dtype]
    BLOCK_K = 128 // size
    if matrices == 1 and K % (2 * BLOCK_K) == 0:
        BLOCK_K *= 2
    unit = matrices * BLOCK_N * BLOCK_K * size
    return gemm_of(
        target,
        ctas_per_sm=ctas_per_sm,
        unit_bytes=unit,
        unit_smem=unit + BLOCK_B * BLOCK_K * size,
        rows=rows,
        K=K,
        matrices=matrices,
        BLOCK_K=BLOCK_K,
        expert_bytes=matrices * rows * (K + case.bias) * size,
    )


def plan(case: MoeCase, target: Target) -> Plan:
    """Two CTAs per SM if their sums leave them registers; 8 warps if 4 could not hold a tile's sums."""
    if case.quantized:
        return triton_moe_quant.plan(case, target)
    tile = tile_pairs(case)
    ctas_per_sm, num_warps = 2 if tile <= 32 else 1, 8 if tile == MAX_BLOCK_B else 4
    return plan_of(case, target, gemm, tile=tile, ctas_per_sm=ctas_per_sm, num_warps=num_warps)


def candidates(case: MoeCase, target: Target) -> Iterator[dict[str, int]]:
    """Narrower and wider tiles, more or fewer CTAs and threads."""
    if case.quantized:
        yield from triton_moe_quant.candidates(case, target)
        return
    for BLOCK_B in widths(tile_pairs(case), MAX_BLOCK_B):
        for ctas_per_sm in (1, 2, 3):
            for num_warps in (4, 8):
                yield {"BLOCK_B": BLOCK_B, "ctas_per_sm": ctas_per_sm, "num_warps": num_warps}


@triton.jit
def expert_kernel(
    x,
    out,
    pairs,
    tile_expert,
    tile_first,
    tile_end,
    tile_count,
    partial,
    arrived,
    N,
    K,
    top_k,
    stride_x_row,
    stride_out_row,
    bias,
    w,
    stride_w_e,
    stride_w_n,
    ACTIVATION: tl.constexpr,
    FIRST: tl.constexpr,
    GATED: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """FIRST: out[sorted pair] = ACTIVATION(Wg x[token], Wu x[token]). Else: out[pair] = Wd x[sorted pair].

    W is `[E, 2N, K]` if GATED, else `[E, N, K]`. GATED is FIRST where the activation has a gate. A CTA shares at most
    two items, the first and the last of its range, so the workspace has two slots for each CTA.
    """
    iters, blocks, units, ctas, unit, end = own_items(tile_count, N, K, BLOCK_N, BLOCK_K)
    offs_k = tl.arange(0, BLOCK_K)
    while unit < end:
        item, it_first, it_end = own_part(unit, end, iters)
        tile = item // blocks
        row0 = (item % blocks) * BLOCK_N
        offs_p, mask_p, pair, offs_x = pairs_of(
            tile, pairs, tile_first, tile_end, top_k, stride_x_row, offs_k, FIRST, BLOCK_B
        )
        expert = tl.load(tile_expert + tile)
        w_expert = w + expert.to(tl.int64) * stride_w_e
        w_first, offs_w = weights_at(w_expert, row0, clipped_rows(row0, N, BLOCK_N), stride_w_n, offs_k)
        w_second = w_first + N.to(tl.int64) * stride_w_n
        sums = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        sums_up = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        for it in tl.range(it_first, it_end, num_stages=STAGES):
            k = it * BLOCK_K
            mask_k = offs_k < K - k
            x_tile = load_x(x + (k + offs_x), mask_p[None, :], mask_k[:, None], EVEN_K)
            w_tile = load_weights(w_first + k + offs_w, mask_k[None, :], EVEN_K)
            sums = tl.dot(w_tile, x_tile, sums, input_precision="ieee")
            if GATED:
                up_tile = load_weights(w_second + k + offs_w, mask_k[None, :], EVEN_K)
                sums_up = tl.dot(up_tile, x_tile, sums_up, input_precision="ieee")
        finish_item(
            sums,
            sums_up,
            bias,
            expert,
            out,
            pair,
            offs_p,
            mask_p,
            row0,
            N,
            stride_out_row,
            partial,
            arrived,
            item,
            iters,
            units,
            ctas,
            ACTIVATION,
            FIRST,
            GATED,
        )
        unit += it_end - it_first


def build(case: MoeCase, inputs: Inputs, target: Target) -> Built:
    """The launches of the routing, and two products with the weights as they are, or packed."""
    if case.quantized:
        return triton_moe_quant.build(case, inputs, target)

    def weights(g: Gemm, name: str) -> dict[str, Any]:
        w = inputs[name]
        return {"w": w, "stride_w_e": w.stride(0), "stride_w_n": w.stride(1)}

    return built(case, inputs, plan(case, target), expert_kernel, weights, {})


def stages(case: MoeCase, target: Target) -> tuple[Stage, ...]:
    p = plan(case, target)
    return stages_of(case, target, p, partial(triton_moe_quant.slots_per_byte, case, p, target))


def supports(case: MoeCase, target: Target) -> str | None:
    if case.quantized and case.dtype == "fp32":
        return "weights are unpacked to bf16 or fp16, not to fp32"
    if target.kind == "interpreter" and not case.quantized and case.dtype == "bf16":
        return "Triton's interpreter multiplies bf16 operands of tl.dot as integers; use fp16 there"
    if case.pairs > SORT_PAIRS[-1] or SORT_BINS[-1] <= case.experts:
        return (
            f"sorts at most {SORT_PAIRS[-1]} (token, expert) pairs of {SORT_BINS[-1] - 1} experts, "
            f"these are {case.pairs} of {case.experts}"
        )
    return None


TUNING = Tuning(op="moe_ffn", shape_class=shape_class, candidates=candidates)
IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports, tuning=TUNING),)
