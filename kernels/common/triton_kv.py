"""What Triton kernels over a KV cache share: unpacking of 8-bit elements, and the merge of partial results.

An 8-bit cache is read as 16-bit words, each with dims 2c and 2c + 1, because shared memory has a transposing load for
words but none for bytes. The low and the high bytes of the words become two 16-bit operands of D / 2 dims. Inline PTX
converts two words at a time: Triton's own code works word by word and takes twice as many instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.common.integers import next_power_of_2
from kernels.common.split_kv import Segment, merge_shape
from kernels.common.triton_nvfp4 import dims_in_order
from kernels.launch import KernelLaunch

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)

P_EXPONENT: tl.constexpr = tl.constexpr(100)
"""Probabilities that are multiplied with fp8 values times 2^-120 are themselves multiplied by two to this power. The
probabilities are then normal numbers of bf16 down to 2^-226, and the products are normal numbers of fp32."""

P_EXPONENT_FP16: tl.constexpr = tl.constexpr(15)
"""Probabilities that are rounded to fp16 are multiplied by two to this power, the most that 1 allows: they keep all
their digits down to 2^-29, 20 nats below the largest, instead of 2^-14."""


@triton.constexpr_function
def unpacked_exponent(kv: str, to: str, sm: int) -> int:
    """`unpack` gives values times two to this power."""
    if kv != "fp8" or not sm:
        return 0
    if to == "bf16":
        return -120
    return 0 if sm >= 89 else -8


@triton.constexpr_function
def unpack_ptx(kv: str, to: str, sm: int) -> str:
    """PTX that makes two words in $2 into their low bytes in $0 and their high bytes in $1, as fp16 or bf16.

    - fp8 (e4m3): from sm_89 on an instruction converts to fp16. Else the exponent and the mantissa of each byte are
      shifted to their places in a 16-bit float. Its exponent has another bias: see `unpacked_exponent`. NaN is 480
    - int8 to fp16: 0x6400 with the byte + 128 in the mantissa is 1024 + 128 + its value; 0xE480 is -1152
    - int8 to bf16: 0x4300 with the low seven bits in the mantissa is 128 + their value; 0xC300 is -128, and with the
      sign bit in its exponent -256
    """
    if kv == "fp8" and to == "fp16" and sm >= 89:
        return """{
            .reg .b32 x;
            .reg .b16 low, high;
            prmt.b32 x, $2, 0, 0x3120;
            mov.b32 {low, high}, x;
            cvt.rn.f16x2.e4m3x2 $0, low;
            cvt.rn.f16x2.e4m3x2 $1, high;
        }"""
    if kv == "fp8":
        right, mask = (1, "0x3F803F80") if to == "fp16" else (4, "0x07F007F0")
        return f"""{{
            .reg .b32 sign, rest;
            shl.b32 sign, $2, 8;
            shl.b32 rest, $2, {8 - right};
            and.b32 rest, rest, {mask};
            lop3.b32 $0, sign, 0x80008000, rest, 0xEA;
            shr.u32 rest, $2, {right};
            and.b32 rest, rest, {mask};
            lop3.b32 $1, $2, 0x80008000, rest, 0xEA;
        }}"""
    if to == "fp16":
        return """{
            .reg .b32 x, magic, less, one;
            mov.b32 magic, 0x64646464;
            mov.b32 less, 0xE480E480;
            mov.b32 one, 0x3C003C00;
            xor.b32 x, $2, 0x80808080;
            prmt.b32 $0, x, magic, 0x4240;
            prmt.b32 $1, x, magic, 0x4341;
            fma.rn.f16x2 $0, $0, one, less;
            fma.rn.f16x2 $1, $1, one, less;
        }"""
    return """{
        .reg .b32 x, y, high, one;
        mov.b32 one, 0x3F803F80;
        lop3.b32 x, $2, 0x007F007F, 0x43004300, 0xEA;
        lop3.b32 y, $2, 0x00800080, 0xC300C300, 0xEA;
        shr.u32 high, $2, 8;
        fma.rn.bf16x2 $0, x, one, y;
        lop3.b32 x, high, 0x007F007F, 0x43004300, 0xEA;
        lop3.b32 y, high, 0x00800080, 0xC300C300, 0xEA;
        fma.rn.bf16x2 $1, x, one, y;
    }"""


@triton.jit
def unpack(words, KV: tl.constexpr, TO: tl.constexpr, SM: tl.constexpr):
    """16-bit words -> their low and high bytes, times 2^unpacked_exponent, as fp16 or bf16.

    Where kernels are interpreted (SM 0) they are fp32: the interpreter multiplies bf16 as integers.
    """
    w = words.to(tl.uint16, bitcast=True)
    if SM > 0:
        CODE: tl.constexpr = unpack_ptx(KV, TO, SM)
        if TO == "fp16":
            low, high = tl.inline_asm_elementwise(
                CODE, "=&r,=&r,r", [w], (tl.float16, tl.float16), is_pure=True, pack=2
            )
        else:
            low, high = tl.inline_asm_elementwise(
                CODE, "=&r,=&r,r", [w], (tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
            )
    elif KV == "fp8":
        low = (((w & 0x80) << 8) | ((w & 0x7F) << 7)).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        high = ((w & 0x8000) | ((w >> 1) & 0x3F80)).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    else:
        low = ((w & 0xFF) ^ 0x80).to(tl.float32) - 128.0
        high = ((w >> 8) ^ 0x80).to(tl.float32) - 128.0
    return low, high


@triton.jit
def merge_kernel(
    partial_o,
    partial_lse,
    cut,
    o,
    stride_o_b,
    stride_o_i,
    stride_o_h,
    Q_LEN: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    HALVES: tl.constexpr,
):
    """Grid (cut pairs, rows): each CTA merges one query row. A row of `cut [pairs, 4]` is b, h, first slot, parts.
    With HALVES, the parts have the order of unpacked nvfp4: see `dims_in_order`."""
    ROWS: tl.constexpr = Q_LEN * GROUP
    pair = tl.program_id(0)
    row = tl.program_id(1)
    b = tl.load(cut + 4 * pair).to(tl.int64)
    h = tl.load(cut + 4 * pair + 1)
    first_slot = tl.load(cut + 4 * pair + 2)
    parts = tl.load(cut + 4 * pair + 3)
    offs_d = tl.arange(0, WIDTH)
    mask_d = offs_d < D
    m = float("-inf")
    norm = 0.0
    acc = tl.zeros([WIDTH], tl.float32)
    for first in range(0, parts, TILE):
        offs_p = first + tl.arange(0, TILE)
        offs_r = (first_slot + offs_p) * ROWS + row
        mask_p = offs_p < parts
        lse = tl.load(partial_lse + offs_r, mask=mask_p, other=float("-inf"))
        mask = mask_p[:, None] if D == WIDTH else mask_p[:, None] & mask_d[None, :]
        part = tl.load(partial_o + offs_r[:, None] * D + offs_d[None, :], mask=mask, other=0.0)
        m_new = tl.maximum(m, tl.max(lse, 0))
        m_finite = tl.where(m_new == float("-inf"), 0.0, m_new)
        alpha = tl.exp2(m - m_finite)
        w = tl.exp2(lse - m_finite)
        norm = norm * alpha + tl.sum(w, 0)
        acc = acc * alpha + tl.sum(part * w[:, None], 0)
        m = m_new
    out = acc / tl.where(norm > 0, norm, 1.0)
    offs_o = b * stride_o_b + row // GROUP * stride_o_i + (h * GROUP + row % GROUP) * stride_o_h
    tl.store(
        o + offs_o + dims_in_order(offs_d, HALVES), out.to(o.dtype.element_ty), mask=None if D == WIDTH else mask_d
    )


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Partial results: `o [slots, rows, D]` and `lse [slots, rows]`, fp32."""

    o: torch.Tensor
    lse: torch.Tensor


def new_parts(slots: int, rows: int, D: int, device: torch.device) -> Parts:
    o = torch.empty(max(1, slots), rows, D, dtype=torch.float32, device=device)
    return Parts(o=o, lse=torch.empty(max(1, slots), rows, dtype=torch.float32, device=device))


def table(values: Sequence[Sequence[int]] | Sequence[int], device: torch.device) -> torch.Tensor:
    """A host-side list as int32 on the device."""
    return torch.tensor(values, dtype=torch.int32).to(device)


def strides(name: str, tensor: torch.Tensor) -> dict[str, int]:
    """Strides of a tensor `[B, q_len, H, D]`; the last one must be 1."""
    if tensor.stride(-1) != 1:
        raise ValueError(f"{name}: the last dimension has stride {tensor.stride(-1)}, expected 1")
    return {f"stride_{name}_{axis}": stride for axis, stride in zip("bih", tensor.stride(), strict=False)}


def merge_launch(
    cut: Sequence[Segment], parts: Parts, o: torch.Tensor, *, group: int, halves: bool = False
) -> KernelLaunch:
    """Merge the parts of pairs into `o [B, q_len, H, D]`. `cut` holds the first segment of each; `group` heads a pair.
    `halves`: the dims of the parts are in the order of unpacked nvfp4."""
    _, q_len, _, D = o.shape
    width = max(64, next_power_of_2(D))
    tile, warps = merge_shape(cut, width)
    return KernelLaunch(
        kernel=merge_kernel,
        grid=(len(cut), q_len * group),
        args={
            "partial_o": parts.o,
            "partial_lse": parts.lse,
            "cut": table([(s.b, s.h, s.first_slot, s.parts) for s in cut], o.device),
            "o": o,
            **strides("o", o),
        },
        constexprs={"Q_LEN": q_len, "GROUP": group, "D": D, "WIDTH": width, "TILE": tile, "HALVES": halves},
        num_warps=warps,
        streams=("partial_o",),
        why_few_in_flight="a few MB from the L2 at most, all of it asked for at once",
    )
