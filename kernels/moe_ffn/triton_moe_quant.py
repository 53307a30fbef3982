"""The products of the routed experts with weights in 8 or 4 bits and activations in 16, unpacked in registers.

`prepare` packs the checkpoint's codes once with `quantization.pack_words`. The rows of all experts lie below each
other: row n of a matrix is row `(expert * matrices + matrix) * N + n` of the words. Units, items and partials are those
of `triton_moe.py`, with 32 words of a row instead of BLOCK_K weights. `kernels/common/triton_unpack.py` tells how a
word becomes 16-bit floats that the tensor cores take from registers. A row is padded to a multiple of 32 words: 128
columns in 8 bits, 256 in 4. The 2880 columns of gpt-oss in mxfp4 become 3072, 7% more bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import triton
import triton.language as tl

from kernels.common.integers import cdiv
from kernels.common.quantization import BLOCK_WORDS, E2M1_FORMATS, FORMATS
from kernels.common.random_inputs import BYTES
from kernels.common.stream_k import clipped_rows, own_part, weights_at
from kernels.common.triton_unpack import (
    beside,
    half_of,
    magic_number,
    max_block_b,
    parts_of,
    scales_of,
    unpacked,
    words_of,
)
from kernels.launch import Built
from kernels.moe_ffn.expert_plan import BLOCK_N, Gemm, Plan, gemm_of, plan_of, tile_pairs, widths
from kernels.moe_ffn.op import MoeCase
from kernels.moe_ffn.triton_routing import built, finish_item, own_items, pairs_of
from kernels.op import Inputs, Target

SLOTS = {
    "mxfp4": (5.2, 6.0),
    "nvfp4": (5.75, 6.5),
    "fp8_block": (3.95, 4.7),
    "mxfp8": (4.45, 5.0),
    "int4": (5.05, 5.9),
    "int4_zp": (5.2, 6.0),
    "int8": (3.6, 4.25),
    "fp8": (3.75, 4.5),
}
"""Instructions of a thread for each byte of packed weights, as compiled for sm_90: of the product with gate and up, and
of the one with down, for tiles of up to 32 pairs."""

WIDE_SLOTS = {
    "mxfp4": (5.75, 6.4),
    "fp8_block": (4.6, 5.65),
    "mxfp8": (4.45, 5.0),
    "int8": (3.65, 4.2),
    "fp8": (4.1, 4.65),
}
"""The same for tiles of 64 pairs."""


def slots_per_byte(case: MoeCase, p: Plan, target: Target, g: Gemm) -> float:
    """`KernelLaunch.slots_per_byte` of a product; 0 for a part that is not sm_90."""
    if target.sm != 90 or target.kind != "cuda" or not case.quantized:
        return 0.0
    return (SLOTS if p.BLOCK_B <= 32 else WIDE_SLOTS)[case.weights][2 - g.matrices]


def gemm(case: MoeCase, target: Target, *, rows: int, K: int, matrices: int, BLOCK_B: int, ctas_per_sm: int) -> Gemm:
    """Units of 64 rows by 32 words, and the scales as `scales_of` lays them. The down product has half the
    sums, so an SM's registers have room for one more CTA."""
    ctas_per_sm += matrices == 1 and target.sm in (0, 90)
    BLOCK_K = 32 // FORMATS[case.weights].bits * BLOCK_WORDS
    iters = cdiv(K, BLOCK_K)
    # words of 4 bytes for each row and block, for each block of 128 rows, or for each row
    per_row = {"mxfp4": 2, "nvfp4": 4, "mxfp8": 1, "int4": 1, "int4_zp": 2}.get(case.weights, 0)
    scales = 4 * (per_row * iters * rows or (iters * cdiv(rows, 128) if case.weights == "fp8_block" else rows))
    unit = matrices * BLOCK_N * BLOCK_WORDS * 4
    return gemm_of(
        target,
        ctas_per_sm=ctas_per_sm,
        unit_bytes=unit,
        unit_smem=unit + (BLOCK_B * BLOCK_K + 4 * BLOCK_N) * BYTES[case.dtype],
        rows=rows,
        K=K,
        matrices=matrices,
        BLOCK_K=BLOCK_K,
        expert_bytes=matrices * (4 * BLOCK_WORDS * iters * rows + scales + case.bias * rows * BYTES[case.dtype]),
    )


def parts_at_once(format: str, p: Plan) -> int:
    """Parts of a slice. Four spill with the scales of nvfp4, beside 32 columns of sums with those of mxfp4, and beside
    64 with 8-bit codes. A block of fp8_block is a slice, so that it is scaled once."""
    if FORMATS[format].bits == 8:
        return 1 if p.BLOCK_B > 32 and format != "fp8_block" else 4
    return 2 if format == "nvfp4" or (format == "mxfp4" and p.BLOCK_B > 16) else 4


def widest(case: MoeCase, target: Target) -> int:
    """The most pairs of a tile. Groups of int4 have sums of their own: for gate and up, 64 columns of them
    spill. nvfp4's units are half as large, and tiles of 64 leave too few of them in flight."""
    return min(32 if case.weights in ("int4", "int4_zp", "nvfp4") else 64, max_block_b(target))


def plan(case: MoeCase, target: Target) -> Plan:
    """4 warps, so that one warp group multiplies all 64 rows and unpacks each weight once.

    Two CTAs per SM if sums and unpacked weights leave them registers; on sm_100, those of mxfp4 do not. For int4 with
    tiles of 32 pairs on sm_100, one CTA has room for more stages than two.
    """
    tile = min(tile_pairs(case), widest(case, target))
    halves = case.weights in ("int4", "int4_zp")
    alone = target.sm >= 100 and (case.weights in E2M1_FORMATS or (halves and tile > 16))
    fit_twice = tile <= 32 and not alone
    return plan_of(case, target, gemm, tile=tile, ctas_per_sm=2 if fit_twice else 1, num_warps=4)


def candidates(case: MoeCase, target: Target) -> Iterator[dict[str, int]]:
    """Narrower and wider tiles, more or fewer CTAs."""
    most = widest(case, target)
    for BLOCK_B in widths(min(tile_pairs(case), most), most):
        for ctas_per_sm in (1, 2, 3):
            yield {"BLOCK_B": BLOCK_B, "ctas_per_sm": ctas_per_sm}


@triton.jit
def expert_words(
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
    scale,
    unpacking,
    ROWS,
    stride_w_n,
    FORMAT: tl.constexpr,
    PARTS: tl.constexpr,
    PLAIN: tl.constexpr,
    MAGIC: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FIRST: tl.constexpr,
    GATED: tl.constexpr,
    EVEN_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Like `expert_kernel`, over words `[ROWS, stride_w_n]`.

    - int8 and fp8: `scale` is fp32 `[ROWS]`
    - fp8_block: `scale` is fp32, one for 128 rows and columns of a matrix
    - int4 and int4_zp: `scale` is words of two 16-bit scales, and `unpacking` words of two zero points, `[iters, ROWS]`
    - mxfp4 and mxfp8: `unpacking` is words of four exponents, `[iters, ROWS, 2]` and `[iters, ROWS, 1]`
    - nvfp4: `unpacking` is words of four scales, `[iters, ROWS, 4]`, and `scale` is fp32, one for each matrix
    """
    SLICES: tl.constexpr = parts_of(FORMAT) // PARTS
    SLICE: tl.constexpr = BLOCK_K // SLICES
    WIDTH: tl.constexpr = SLICE // PARTS
    HALVES: tl.constexpr = FORMAT == "int4" or FORMAT == "int4_zp"
    iters, blocks, units, ctas, unit, end = own_items(tile_count, N, K, BLOCK_N, BLOCK_K)
    offs_k = tl.arange(0, SLICE)
    offs_word = tl.arange(0, WIDTH)
    while unit < end:
        item, it_first, it_end = own_part(unit, end, iters)
        tile = item // blocks
        row0 = (item % blocks) * BLOCK_N
        offs_p, mask_p, pair, offs_x = pairs_of(
            tile, pairs, tile_first, tile_end, top_k, stride_x_row, offs_k, FIRST, BLOCK_B
        )
        expert = tl.load(tile_expert + tile)
        matrix = expert * (2 if GATED else 1)
        first_row = matrix * N + row0
        scale_row = (matrix * tl.cdiv(N, 128) + row0 // 128) * iters
        rows = clipped_rows(row0, N, BLOCK_N)
        w_first, offs_w = weights_at(w, first_row, rows, stride_w_n, offs_word)
        w_second = w_first + N.to(tl.int64) * stride_w_n
        rows += first_row
        sums = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        sums_up = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        for it in tl.range(it_first, it_end, num_stages=STAGES):
            words = tl.load(w_first + (it * WIDTH + offs_w))
            extra = beside(unpacking, it, ROWS, rows, FORMAT)
            if HALVES:
                scales = tl.load(scale + (it * ROWS + rows))
            if GATED:
                words_up = tl.load(w_second + (it * WIDTH + offs_w))
                extra_up = beside(unpacking, it, ROWS, N + rows, FORMAT)
                if HALVES:
                    scales_up = tl.load(scale + (it * ROWS + N + rows))
            for i in tl.static_range(SLICES):
                mask_x = mask_p[None, :]
                if not EVEN_K:
                    mask_x = mask_x & (offs_k < K - it * BLOCK_K - i * SLICE)[:, None]
                x_tile = tl.load(x + i * SLICE + (it * BLOCK_K + offs_x), mask=mask_x, other=0.0)
                if PLAIN:
                    x_tile = x_tile.to(tl.float32)
                w_tile = unpacked(words, extra[i * PARTS // 4], x, i * PARTS, PARTS, FORMAT, PLAIN, MAGIC)
                if GATED:
                    up_tile = unpacked(words_up, extra_up[i * PARTS // 4], x, i * PARTS, PARTS, FORMAT, PLAIN, MAGIC)
                if HALVES:
                    # a slice has a scale of its own, so it is summed on its own
                    part = tl.dot(w_tile, x_tile, input_precision="ieee")
                    sums += part * half_of(scales, i, x)[:, None]
                    if GATED:
                        part = tl.dot(up_tile, x_tile, input_precision="ieee")
                        sums_up += part * half_of(scales_up, i, x)[:, None]
                elif FORMAT == "fp8_block":
                    part = tl.dot(w_tile, x_tile, input_precision="ieee")
                    sums += part * tl.load(scale + scale_row + it)
                    if GATED:
                        part = tl.dot(up_tile, x_tile, input_precision="ieee")
                        sums_up += part * tl.load(scale + scale_row + tl.cdiv(N, 128) * iters + it)
                else:
                    sums = tl.dot(w_tile, x_tile, sums, input_precision="ieee")
                    if GATED:
                        sums_up = tl.dot(up_tile, x_tile, sums_up, input_precision="ieee")
        if FORMAT == "int8" or FORMAT == "fp8":
            sums *= tl.load(scale + rows)[:, None]
            if GATED:
                sums_up *= tl.load(scale + N + rows)[:, None]
        elif FORMAT == "nvfp4":
            sums *= tl.load(scale + matrix)
            if GATED:
                sums_up *= tl.load(scale + matrix + 1)
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
    """The launches of the routing, and two products. The weights are packed once, which belongs to `prepare`."""
    p, plain = plan(case, target), target.kind == "interpreter"

    def weights(g: Gemm, name: str) -> dict[str, Any]:
        words = words_of(case.weights, inputs[name].flatten(0, 1), case.dtype, plain)
        given = inputs[f"{name}_scale"], inputs.get(f"{name}_zero"), inputs.get(f"{name}_global")
        scale, unpacking = scales_of(case.weights, case.dtype, g.iters, *given, plain=plain)
        rows = {"ROWS": words.shape[0], "stride_w_n": words.stride(0)}
        return {"w": words, "scale": scale, "unpacking": unpacking, **rows}

    constexprs = {
        "FORMAT": case.weights,
        "PARTS": parts_at_once(case.weights, p),
        "PLAIN": plain,
        "MAGIC": magic_number(case.weights, case.dtype),
    }
    slots = partial(slots_per_byte, case, p, target)
    return built(case, inputs, p, expert_words, weights, constexprs, slots)
