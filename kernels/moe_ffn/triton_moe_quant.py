"""The products of the routed experts with weights in 8 or 4 bits and activations in 16, unpacked in registers.

All experts' rows lie below each other: row `(expert * matrices + matrix) * N + n` of the words that
`quant.pack_words` makes of the checkpoint's codes, once, in `prepare`. Units, items and their partials are those of
`triton_moe.py`, with 32 words of a row in the place of BLOCK_K weights; `ffn_gemv/triton_gemv_quant.py` tells how a
word becomes 16-bit floats that the tensor cores take from registers. A row is padded to whole words of 32: to 128
columns of fp8, 256 of mxfp4, which for gpt-oss (2880 columns) makes 3072, 7% more bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from kernels import tuned
from kernels.draw import BYTES
from kernels.ffn_gemv.triton_gemv_quant import max_block_b, mxfp4_words, plain_part, unpack_ptx
from kernels.ffn_gemv.triton_share import first_unit
from kernels.launch import Built, KernelLaunch
from kernels.moe_ffn.op import MoeCase
from kernels.moe_ffn.triton_routing import (
    BLOCK_N,
    MIN_BLOCK_B,
    Gemm,
    Plan,
    built,
    finish_item,
    max_tiles,
    pipeline,
    shape_class,
    tile_pairs,
)
from kernels.op import Inputs, Target
from kernels.quant import FORMATS, WORDS, pack_words


def gemm(case: MoeCase, target: Target, *, rows: int, K: int, matrices: int, BLOCK_B: int, ctas_per_sm: int) -> Gemm:
    """Units of 64 rows by 32 words; scales as the kernel reads them: 4 bytes for each 128 columns, of a row of mxfp4
    or of a block of fp8."""
    BLOCK_K = 32 // FORMATS[case.weights].bits * WORDS
    iters = -(-K // BLOCK_K)
    scales = 8 * iters * rows if case.weights == "mxfp4" else 4 * iters * -(-rows // 128)
    unit = matrices * BLOCK_N * WORDS * 4
    return Gemm(
        rows=rows, K=K, matrices=matrices, BLOCK_K=BLOCK_K,
        expert_bytes=matrices * (4 * WORDS * iters * rows + scales),
        num_stages=pipeline(target, ctas_per_sm, unit, unit + (BLOCK_B * BLOCK_K + 4 * BLOCK_N) * BYTES[case.dtype]),
    )  # fmt: skip


def plan(case: MoeCase, target: Target) -> Plan:
    """4 warps, so that one warp group multiplies all 64 rows and unpacks each weight once."""
    tile = min(tile_pairs(case), max_block_b(target))
    fields = {"BLOCK_B": tile, "ctas_per_sm": 2 if tile <= 32 else 1, "num_warps": 4}
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
    """Narrower and wider tiles, more or fewer CTAs."""
    tile = min(tile_pairs(case), max_block_b(target))
    for BLOCK_B in sorted({max(MIN_BLOCK_B, tile // 2), tile, min(max_block_b(target), 2 * tile)}):
        for ctas_per_sm in (1, 2, 3):
            yield {"BLOCK_B": BLOCK_B, "ctas_per_sm": ctas_per_sm}


@triton.jit
def unpacked(words, lo, hi, x, FORMAT: tl.constexpr):
    """Words -> a tuple of parts in the type of `x`; `lo` and `hi` are the scale words of mxfp4, unused by fp8."""
    PTX: tl.constexpr = unpack_ptx(FORMAT, x.dtype.element_ty == tl.bfloat16)
    if FORMAT == "mxfp4":
        parts = tl.inline_asm_elementwise(
            PTX, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r,r,r,r", [words, lo, hi],
            dtype=(x.dtype.element_ty,) * 8, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        parts = tl.inline_asm_elementwise(
            PTX, "=&r,=&r,=&r,=&r,r,r", [words], dtype=(x.dtype.element_ty,) * 4, is_pure=True, pack=2
        )  # fmt: skip
    return parts


@triton.jit
def plain_scaled(words, lo, hi, i: tl.constexpr, FORMAT: tl.constexpr, BIAS: tl.constexpr):
    """Part i in fp32, with mxfp4's scale; for the interpreter, which has no PTX."""
    part = plain_part(words, i, FORMAT, 4 if FORMAT == "mxfp4" else 8)
    if FORMAT == "mxfp4":
        exponent = ((lo if i < 4 else hi) >> (8 * (i % 4))) & 255
        part *= tl.exp2((exponent - BIAS).to(tl.float32))
    return part


@triton.jit
def expert_words(
    x, out, pairs, tile_expert, tile_first, tile_end, tile_count, partial, arrived, N, K,
    top_k, stride_x_row, stride_out_row, w, scale, ROWS, stride_w_n,
    FORMAT: tl.constexpr, PLAIN: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """As `expert_kernel`, over words `[ROWS, stride_w_n]`; `scale` is `[ROWS / 128, K / 128]` in fp32 for fp8, words
    of four exponents `[2 iters, ROWS]` for mxfp4. PLAIN unpacks to fp32 in Triton's own arithmetic."""
    PARTS: tl.constexpr = 8 if FORMAT == "mxfp4" else 4
    WIDTH: tl.constexpr = BLOCK_K // PARTS
    iters = tl.cdiv(K, BLOCK_K)
    blocks = tl.cdiv(N, BLOCK_N)
    units = tl.load(tile_count) * blocks * iters
    ctas = tl.minimum(tl.num_programs(0), units)
    cta = tl.program_id(0)
    unit = first_unit(cta, units, ctas)
    end = tl.minimum(first_unit(cta + 1, units, ctas), units)
    offs_k = tl.arange(0, WIDTH)
    while unit < end:
        item = unit // iters
        item_end = tl.minimum(end, item * iters + iters)
        tile = item // blocks
        row0 = (item % blocks) * BLOCK_N
        expert = tl.load(tile_expert + tile)
        offs_p = tl.load(tile_first + tile) + tl.arange(0, BLOCK_B)
        mask_p = offs_p < tl.load(tile_end + tile)
        pair = tl.load(pairs + offs_p, mask=mask_p, other=0)
        x_row = pair // top_k if GATED else offs_p
        x_at = x + (x_row.to(tl.int64) * stride_x_row)[None, :] + offs_k[:, None]
        offs_n = row0 + tl.arange(0, BLOCK_N)
        matrix_row = expert * (2 if GATED else 1) * N
        w_first = w + (matrix_row + row0).to(tl.int64) * stride_w_n
        w_second = w_first + N.to(tl.int64) * stride_w_n
        # rows past the last read the last one: their sums are not stored
        row = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - row0)
        offs_w = (row * stride_w_n)[:, None] + offs_k[None, :]
        row += matrix_row + row0
        sums = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        sums_up = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        for it in tl.range(unit - item * iters, item_end - item * iters, num_stages=STAGES):
            words = tl.load(w_first + it * WIDTH + offs_w)
            lo = words
            hi = words
            if FORMAT == "mxfp4":
                lo = tl.load(scale + 2 * it * ROWS + row)[:, None]
                hi = tl.load(scale + (2 * it + 1) * ROWS + row)[:, None]
            if not PLAIN:
                parts = unpacked(words, lo, hi, x, FORMAT)
            if GATED:
                words_up = tl.load(w_second + it * WIDTH + offs_w)
                lo_up = words_up
                hi_up = words_up
                if FORMAT == "mxfp4":
                    lo_up = tl.load(scale + 2 * it * ROWS + N + row)[:, None]
                    hi_up = tl.load(scale + (2 * it + 1) * ROWS + N + row)[:, None]
                if not PLAIN:
                    parts_up = unpacked(words_up, lo_up, hi_up, x, FORMAT)
            # a block of fp8 is summed by itself, then scaled
            block = tl.zeros((BLOCK_N, BLOCK_B), tl.float32) if FORMAT == "fp8_block" else sums
            block_up = tl.zeros((BLOCK_N, BLOCK_B), tl.float32) if FORMAT == "fp8_block" else sums_up
            for i in tl.static_range(PARTS):
                mask_x = mask_p[None, :]
                if not EVEN_K:
                    mask_x = mask_x & (offs_k < K - it * BLOCK_K - i * WIDTH)[:, None]
                x_tile = tl.load(x_at + it * BLOCK_K + i * WIDTH, mask=mask_x, other=0.0)
                if PLAIN:
                    x_tile = x_tile.to(tl.float32)
                    part = plain_scaled(words, lo, hi, i, FORMAT, BIAS)
                else:
                    part = parts[i]
                block = tl.dot(part, x_tile, block, input_precision="ieee")
                if GATED:
                    part_up = plain_scaled(words_up, lo_up, hi_up, i, FORMAT, BIAS) if PLAIN else parts_up[i]
                    block_up = tl.dot(part_up, x_tile, block_up, input_precision="ieee")
            if FORMAT == "fp8_block":
                scale_row = (matrix_row + row0) // 128 * iters + it
                sums += block * tl.load(scale + scale_row)
                if GATED:
                    sums_up += block_up * tl.load(scale + scale_row + N // 128 * iters)
            else:
                sums = block
                sums_up = block_up
        finish_item(
            sums, sums_up, out, pair, offs_p, mask_p, offs_n, N, stride_out_row, partial, arrived, item, iters, units,
            ctas, GATED,
        )  # fmt: skip
        unit = item_end


def build(case: MoeCase, inputs: Inputs, target: Target) -> Built:
    """The routing's launches and two products; packing the weights, done once, belongs to `prepare`."""
    p = plan(case, target)

    def product(g: Gemm, name: str, args: dict[str, Any]) -> KernelLaunch:
        codes, scale = inputs[name].flatten(0, 1), inputs[f"{name}_scale"]
        words = pack_words(case.weights, codes)
        if case.weights == "mxfp4":
            scale = mxfp4_words(scale, 2 * g.iters, case.dtype)
        return KernelLaunch(
            kernel=expert_words,
            grid=(p.ctas,),
            args={**args, "w": words, "scale": scale, "ROWS": words.shape[0], "stride_w_n": words.stride(0)},
            constexprs={
                "FORMAT": case.weights, "PLAIN": target.kind == "interpreter",
                "BIAS": 253 if case.dtype == "bf16" else 29, "GATED": g.matrices == 2, "EVEN_K": g.even,
                "BLOCK_B": p.BLOCK_B, "BLOCK_N": BLOCK_N, "BLOCK_K": g.BLOCK_K, "STAGES": g.num_stages,
            },
            num_warps=p.num_warps,
            num_stages=g.num_stages,
            streams=("w",),
            wants_mma=True,
        )  # fmt: skip

    return built(case, inputs, p, product)
