"""What Triton kernels over a KV cache share: unpacking of 8-bit elements, and the merge of partial results.

An 8-bit cache is read as 16-bit words, each with dims 2c and 2c + 1, because shared memory has a transposing load for
words but none for bytes. The low and the high bytes of the words become two fp16 operands of D / 2 dims. A few bit
operations convert them: an fp8 (e4m3) byte shifted into an fp16 is its value / 256; 0x6400 with an int8 + 128 in the
mantissa is 1024 + 128 + its value. On sm_90, PTX does this for two words at a time, and for fp8 it has a conversion.
Triton's code works word by word and takes 8 to 10 instructions for each, which fill 80 to 100% of the slots in which an
SM can issue while it receives a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.common.split_kv import Segment, merge_shape
from kernels.launch import KernelLaunch

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)

GAIN = {"": 1.0, "fp8": 256.0, "int8": 1.0}
"""Unpacked values must be multiplied by this factor, by the type of the cache. Values that PTX unpacks need none."""


@triton.constexpr_function
def unpack_ptx(kv: str) -> str:
    """Two words in $2 -> their low bytes in $0 and their high bytes in $1, as fp16. 0xE480 is -1152."""
    if kv == "fp8":
        return """{
            .reg .b32 x;
            .reg .b16 low, high;
            prmt.b32 x, $2, 0, 0x3120;
            mov.b32 {low, high}, x;
            cvt.rn.f16x2.e4m3x2 $0, low;
            cvt.rn.f16x2.e4m3x2 $1, high;
        }"""
    return """{
        .reg .b32 x, magic, less;
        mov.b32 magic, 0x64646464;
        mov.b32 less, 0xE480E480;
        xor.b32 x, $2, 0x80808080;
        prmt.b32 $0, x, magic, 0x4240;
        prmt.b32 $1, x, magic, 0x4341;
        add.rn.f16x2 $0, $0, less;
        add.rn.f16x2 $1, $1, less;
    }"""


@triton.jit
def unpack(words, KV: tl.constexpr, PTX: tl.constexpr):
    """16-bit words -> their low and high bytes as fp16. Without PTX they lack the factor GAIN, and an fp8 NaN is
    480."""
    w = words.to(tl.uint16, bitcast=True)
    if PTX:
        CODE: tl.constexpr = unpack_ptx(KV)
        return tl.inline_asm_elementwise(CODE, "=&r,=&r,r", [w], (tl.float16, tl.float16), is_pure=True, pack=2)
    if KV == "fp8":
        low = (((w & 0x80) << 8) | ((w & 0x7F) << 7)).to(tl.float16, bitcast=True)
        high = ((w & 0x8000) | ((w >> 1) & 0x3F80)).to(tl.float16, bitcast=True)
    else:
        low = (((w & 0xFF) ^ 0x80) | 0x6400).to(tl.float16, bitcast=True) - 1152.0
        high = (((w >> 8) ^ 0x80) | 0x6400).to(tl.float16, bitcast=True) - 1152.0
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
    TILE: tl.constexpr,
):
    """Grid (cut pairs, rows): each CTA merges one query row. A row of `cut [pairs, 4]` is b, h, first slot, parts."""
    ROWS: tl.constexpr = Q_LEN * GROUP
    pair = tl.program_id(0)
    row = tl.program_id(1)
    b = tl.load(cut + 4 * pair).to(tl.int64)
    h = tl.load(cut + 4 * pair + 1)
    first_slot = tl.load(cut + 4 * pair + 2)
    parts = tl.load(cut + 4 * pair + 3)
    offs_d = tl.arange(0, D)
    m = float("-inf")
    norm = 0.0
    acc = tl.zeros([D], tl.float32)
    for first in range(0, parts, TILE):
        offs_p = first + tl.arange(0, TILE)
        offs_r = (first_slot + offs_p) * ROWS + row
        mask_p = offs_p < parts
        lse = tl.load(partial_lse + offs_r, mask=mask_p, other=float("-inf"))
        part = tl.load(partial_o + offs_r[:, None] * D + offs_d[None, :], mask=mask_p[:, None], other=0.0)
        m_new = tl.maximum(m, tl.max(lse, 0))
        m_finite = tl.where(m_new == float("-inf"), 0.0, m_new)
        alpha = tl.exp2(m - m_finite)
        w = tl.exp2(lse - m_finite)
        norm = norm * alpha + tl.sum(w, 0)
        acc = acc * alpha + tl.sum(part * w[:, None], 0)
        m = m_new
    out = acc / tl.where(norm > 0, norm, 1.0)
    offs_o = b * stride_o_b + row // GROUP * stride_o_i + (h * GROUP + row % GROUP) * stride_o_h
    tl.store(o + offs_o + offs_d, out.to(o.dtype.element_ty))


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


def merge_launch(cut: Sequence[Segment], parts: Parts, o: torch.Tensor, *, group: int) -> KernelLaunch:
    """Merge the parts of pairs into `o [B, q_len, H, D]`. `cut` holds the first segment of each; `group` heads a
    pair."""
    _, q_len, _, D = o.shape
    tile, warps = merge_shape(cut, D)
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
        constexprs={"Q_LEN": q_len, "GROUP": group, "D": D, "TILE": tile},
        num_warps=warps,
        streams=("partial_o",),
        why_few_in_flight="a few MB from the L2 at most, all of it asked for at once",
    )
