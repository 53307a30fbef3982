"""y[B, N] = x[B, K] W[N, K]^T with W in 8 or 4 bits and x in 16: W is unpacked in registers and multiplied from there.

`kernels/common/triton_unpack.py` tells how the weights are packed and unpacked.

Unpacking has a roof of its own (`SLOTS`). In a cycle, an H100's SM issues for 4 x 32 lanes and receives 15 bytes of
weights (3.35 TB/s, 132 SMs, 1.7 GHz), an H200's 21. So at B <= 16 weights of 4 bits take 56 to 57% of an H100's issue
slots and 80 to 82% of an H200's, weights of 8 bits 45 to 58% and 65 to 83%.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import triton
import triton.language as tl

from kernels.common.integers import next_power_of_2
from kernels.common.quantization import BLOCK_WORDS, E2M1_FORMATS, FORMATS, weight_bytes
from kernels.common.random_inputs import BYTES
from kernels.common.stream_k import (
    Plan,
    clipped_rows,
    finish_tile,
    launch,
    more_or_fewer,
    own_batch,
    own_part,
    own_units,
    share,
    stage,
    weights_at,
)
from kernels.common.triton_unpack import (
    apart,
    beside,
    half_of,
    magic_number,
    max_block_b,
    parts_of,
    scales_of,
    unpacked,
    words_of,
)
from kernels.ffn_gemv.op import GemvCase, activation_bytes
from kernels.launch import Built
from kernels.op import Inputs, Stage, Target

SLOTS = {
    "int8": (3.9, 4.3, 4.4),
    "fp8": (4.5, 4.65, 4.6),
    "fp8_block": (4.5, 4.75, 5.15),
    "mxfp8": (5.1, 5.2, 5.3),
    "int4": (4.95, 7.05, 7.0),
    "int4_zp": (5.1, 7.1, 7.1),
    "mxfp4": (5.1, 7.15, 6.5),
    "nvfp4": (5.5, 7.4, 6.9),
}
"""Instructions of a thread for each byte of packed weights, the loop's overhead included, as compiled for sm_90: for
tiles of 16, 32 and 64 batch columns."""


def slots_per_byte(case: GemvCase, p: Plan, target: Target) -> float:
    """`KernelLaunch.slots_per_byte`; 0 for a part that is not sm_90."""
    return SLOTS[case.weights][p.BLOCK_B.bit_length() - 5] if target.sm == 90 and target.kind == "cuda" else 0.0


def parts_at_once(format: str, p: Plan) -> int:
    """Parts of a slice. Two of 4-bit codes spill where a thread has 168 registers or fewer. With 128, four of mxfp8
    spill, and of int8 beside 32 columns of sums. A block of fp8_block is a slice, so that it is scaled once."""
    few = p.max_registers is not None
    if FORMATS[format].bits == 4:
        return 1 if few else 2
    return 1 if format == "mxfp8" or (few and p.BLOCK_B > 16 and format == "int8") else 4


def plan(case: GemvCase, target: Target) -> Plan:
    """Units of 128 rows by 32 words: 16 KB of weights, and x^T beside them."""
    parts = 32 // FORMATS[case.weights].bits
    BLOCK_N, BLOCK_K = 128, parts * BLOCK_WORDS
    BLOCK_B = min(max_block_b(target), max(16, next_power_of_2(case.B)))
    unit_bytes = BLOCK_N * BLOCK_WORDS * 4
    if parts == 8 and BLOCK_B == 16 and target.sm in (0, 90):
        # one warp group for all 128 rows needs a sixth fewer instructions; beside zero points or factors there are no
        # registers for a third CTA
        num_warps, ctas_per_sm = 4, 3 if case.weights == "int4" else 2
    else:
        # on sm_100, unpacking mxfp4 would spill to make room for a second CTA
        fit_twice = max_block_b(target) > BLOCK_B and not (case.weights in E2M1_FORMATS and target.sm >= 100)
        num_warps, ctas_per_sm = 8, 2 if fit_twice else 1
    chosen = {"num_warps": num_warps, "ctas_per_sm": ctas_per_sm} | target.overrides
    plan = Plan(
        B=case.B,
        N=case.N,
        K=case.K,
        BLOCK_B=BLOCK_B,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        use_mma=True,
        unit_bytes=unit_bytes,
        unit_smem=unit_bytes + 2 * BLOCK_B * BLOCK_K,
        **chosen,
    )
    return share(plan, target)


def candidates(case: GemvCase, target: Target) -> Iterator[dict[str, int]]:
    """The format sets the tile; more or fewer threads, CTAs and bytes in flight are tried."""
    return more_or_fewer()


@triton.jit
def gemv_words(
    x,
    w,
    scale,
    unpacking,
    y,
    partial,
    arrived,
    B,
    N,
    K,
    stride_x_b,
    stride_w_n,
    stride_y_b,
    FORMAT: tl.constexpr,
    PARTS: tl.constexpr,
    PLAIN: tl.constexpr,
    MAGIC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Words of W [BLOCK_N, 32] -> slices [BLOCK_N, 128]; each times its slice of x^T [128, BLOCK_B] -> fp32 sums."""
    SLICES: tl.constexpr = parts_of(FORMAT) // PARTS
    SLICE: tl.constexpr = BLOCK_K // SLICES
    WIDTH: tl.constexpr = SLICE // PARTS
    GROUPED: tl.constexpr = FORMAT == "int4" or FORMAT == "int4_zp" or FORMAT == "fp8_block"
    iters, units, unit, end = own_units(N, K, BLOCK_N, BLOCK_K)
    offs_k = tl.arange(0, SLICE)
    offs_word = tl.arange(0, WIDTH)
    offs_b, mask_b, offs_x = own_batch(B, stride_x_b, offs_k, BLOCK_B)
    while unit < end:
        tile, it_first, it_end = own_part(unit, end, iters)
        rows = clipped_rows(tile * BLOCK_N, N, BLOCK_N)
        w_first, offs_w = weights_at(w, tile * BLOCK_N, rows, stride_w_n, offs_word)
        rows += tile * BLOCK_N
        sums = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        for it in tl.range(it_first, it_end, num_stages=STAGES):
            words = tl.load(w_first + (it * WIDTH + offs_w))
            extra = beside(unpacking, it, N, rows, FORMAT)
            if FORMAT == "int4" or FORMAT == "int4_zp":
                scales = tl.load(scale + (it * N + rows))
            if SLICES == 8 and not PLAIN:
                # unpacked one by one between the products, they would spill
                lower = apart(words, extra[0], x, 0, 4, FORMAT)
                upper = apart(words, extra[1], x, 4, 4, FORMAT)
            for i in tl.static_range(SLICES):
                mask_x = mask_b[None, :]
                if not EVEN_K:
                    mask_x = mask_x & (offs_k < K - it * BLOCK_K - i * SLICE)[:, None]
                x_tile = tl.load(x + it * BLOCK_K + i * SLICE + offs_x, mask=mask_x, other=0.0)
                if PLAIN:
                    x_tile = x_tile.to(tl.float32)
                if SLICES < 8 or PLAIN:
                    w_tile = unpacked(words, extra[i * PARTS // 4], x, i * PARTS, PARTS, FORMAT, PLAIN, MAGIC)
                elif i < 4:
                    w_tile = lower[i]
                else:
                    w_tile = upper[i - 4]
                if GROUPED:
                    # a group of weights with a scale of its own is summed on its own, then scaled
                    if i * PARTS % 4 == 0:
                        group = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
                    group = tl.dot(w_tile, x_tile, group, input_precision="ieee")
                    if FORMAT == "fp8_block":
                        sums += group * tl.load(scale + tile * BLOCK_N // 128 * tl.cdiv(K, 128) + it)
                    elif (i + 1) * PARTS % 4 == 0:
                        sums += group * half_of(scales, i * PARTS // 4, x)[:, None]
                else:
                    sums = tl.dot(w_tile, x_tile, sums, input_precision="ieee")
        if FORMAT == "int8" or FORMAT == "fp8":
            sums *= tl.load(scale + rows)[:, None]
        elif FORMAT == "nvfp4":
            sums *= tl.load(scale)
        finish_tile(sums, None, y, offs_b, B, N, stride_y_b, partial, arrived, tile, iters, units, True, "")
        unit += it_end - it_first


def build(case: GemvCase, inputs: Inputs, target: Target) -> Built:
    """One launch over packed words. The weights are packed once, which belongs to `prepare`."""
    x = inputs["x"]
    p = plan(case, target)
    plain = target.kind == "interpreter"
    words = words_of(case.weights, inputs["w"], case.dtype, plain)
    y = torch.empty(case.B, case.N, dtype=x.dtype, device=x.device)
    given = inputs["w_scale"], inputs.get("w_zero"), inputs.get("w_global")
    scale, unpacking = scales_of(case.weights, case.dtype, p.iters, *given, plain=plain)
    only = launch(
        gemv_words,
        p,
        {"x": x, "w": words, "scale": scale, "unpacking": unpacking, "y": y},
        constexprs={
            "FORMAT": case.weights,
            "PARTS": parts_at_once(case.weights, p),
            "PLAIN": plain,
            "MAGIC": magic_number(case.weights, case.dtype),
        },
        slots_per_byte=slots_per_byte(case, p, target),
    )
    # without a limit, the compiler spills to make room for CTAs that shared memory cannot hold
    return Built(launches=(replace(only, max_registers=only.max_registers or 255),), output=y)


def stages(case: GemvCase, target: Target) -> tuple[Stage, ...]:
    """Packed words (K padded to a block), packed scales, x and y once, and what tiles read again."""
    p = plan(case, target)
    size = BYTES[case.dtype]
    extra = (
        {"int4": size, "int4_zp": 2 * size, "mxfp8": 2, "mxfp4": 4, "nvfp4": 8}.get(case.weights, 0)
        * 2
        * p.iters
        * case.N
    )
    if not extra:
        extra = weight_bytes(case.weights, case.N, case.K, size) - case.N * case.K
    extra += 4 if case.weights == "nvfp4" else 0
    weights = 4 * BLOCK_WORDS * p.iters * case.N + extra
    outputs = size * case.B * case.N
    return (
        stage(
            "gemv_words",
            p,
            target,
            pipe="mma_bf16",
            weights=weights,
            activations=activation_bytes(case),
            outputs=outputs,
            slots=slots_per_byte(case, p, target),
        ),
    )


def supports(case: GemvCase, target: Target) -> str | None:
    return "weights are unpacked to bf16 or fp16, not to fp32" if case.dtype == "fp32" else None
