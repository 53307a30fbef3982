"""One CTA per token, or per group of it. The row stays in registers between its uses, as does its largest value."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.common.random_inputs import BYTES, LARGEST
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target
from kernels.rmsnorm.op import LEAST, NormCase, output, work

HALF_EVEN: tl.constexpr = tl.constexpr(12582912.0)
"""1.5 x 2^23: a fp32 added to it is rounded to a whole number."""


@triton.jit
def e4m3(x):
    """x as bytes of fp8, rounded to even, at most 448. Made of integers, it needs no sm_89 and is right when
    interpreted."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    # below 2^-6 in steps of 2^-9; else the last 20 bits of the mantissa are rounded away
    small = (tl.abs(x) * 512.0 + HALF_EVEN) - HALF_EVEN
    normal = tl.minimum(((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960, 126)
    code = tl.where(size < 0x3C800000, small.to(tl.int32), normal)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def norm_kernel(
    x,  # [B GROUPS, D]
    residual,  # [B, D] or None
    addend,  # [B, D], [D] or None
    share,  # [B] or None
    z,  # [B, GROUPS D] or None
    w,  # [D] or [GROUPS, D]
    y,  # [B GROUPS, D]
    scale,  # [B] or None
    h,  # [B, D] or None
    D,
    stride_x_b,
    stride_addend_b,
    stride_share_b,
    stride_z_b,
    stride_w_g,
    GATE: tl.constexpr,
    GROUPS: tl.constexpr,
    EPSILON: tl.constexpr,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    b = tl.program_id(0)
    offs_d = tl.arange(0, BLOCK_D)
    mask = offs_d < D
    at = b * D + offs_d
    row = tl.load(x + b * stride_x_b + offs_d, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        row += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        if addend is not None:
            added = tl.load(addend + b * stride_addend_b + offs_d, mask=mask, other=0.0).to(tl.float32)
            if share is not None:
                added *= tl.sigmoid(tl.load(share + b * stride_share_b).to(tl.float32))
            row += added
        row = row.to(h.dtype.element_ty)
        tl.store(h + at, row, mask=mask)
        row = row.to(tl.float32)
    g = b % GROUPS
    opened = 1.0
    if z is not None:
        gate = tl.load(z + b // GROUPS * stride_z_b + g * D + offs_d, mask=mask, other=0.0).to(tl.float32)
        opened = tl.sigmoid(gate) if GATE == "sigmoid" else gate * tl.sigmoid(gate)
        if GATE == "silu_first":
            row *= opened
    factor = tl.rsqrt(tl.sum(row * row) / D + EPSILON)
    row = row * factor * tl.load(w + g * stride_w_g + offs_d, mask=mask, other=0.0).to(tl.float32)
    if z is not None and GATE != "silu_first":
        row *= opened
    if scale is not None:
        # a maximum leaves NaN out, so codes and scale would be numbers: it counts as infinite, and the scale is NaN
        largest = tl.max(tl.where(row == row, tl.abs(row), float("inf")))
        unit = tl.where(largest < float("inf"), tl.maximum(largest / LARGEST, LEAST), float("nan"))
        tl.store(scale + b, unit)
        row = row / unit
        if y.dtype.element_ty == tl.int8:
            tl.store(y + at, ((row + HALF_EVEN) - HALF_EVEN).to(tl.int8), mask=mask)
        else:
            tl.store(y + at, e4m3(row), mask=mask)
    else:
        tl.store(y + at, row.to(y.dtype.element_ty), mask=mask)


def build(case: NormCase, inputs: Inputs, target: Target) -> Built:
    x = inputs["x"]
    out = output(case, x.device)
    block = triton.next_power_of_2(case.D)
    launch = KernelLaunch(
        kernel=norm_kernel,
        grid=(case.rows,),
        args={
            "x": x,
            "residual": inputs["residual"] if case.residual else None,
            "addend": inputs["addend"] if case.addend else None,
            "share": inputs["share"] if case.addend == "shares" else None,
            "z": inputs["z"] if case.gate else None,
            "w": inputs["w"],
            "y": out.y.view(torch.uint8) if case.activations == "fp8" else out.y,
            "scale": out.scale if case.quantized else None,
            "h": out.h if case.residual else None,
            "D": case.D,
            "stride_x_b": x.stride(0),
            "stride_addend_b": 0 if case.addend == "bias" else case.D,
            "stride_share_b": inputs["share"].stride(0) if case.addend == "shares" else 0,
            "stride_z_b": inputs["z"].stride(0) if case.gate else 0,
            "stride_w_g": 0 if case.shared else case.D,
        },
        constexprs={
            "GATE": case.gate,
            "GROUPS": case.groups,
            "EPSILON": case.epsilon,
            "LARGEST": float(LARGEST.get(case.activations, 1)),
            "LEAST": LEAST,
            "BLOCK_D": block,
        },
        num_warps=max(1, min(16, block // 256)),
        streams=("x",),
        why_narrow="D is no multiple of 8: rows begin anywhere" if case.D % 8 else "",
        why_few_in_flight="a step normalizes some tokens: the launch decides, not the memory",
    )
    return Built(launches=(launch,), output=out.whole)


def stages(case: NormCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes; the other CTAs find w and a bias in the L2."""
    again = (case.rows - (1 if case.shared else case.groups)) * case.D * BYTES[case.dtype]
    again *= 1 + (case.addend == "bias")
    return (Stage(name="norm", work=work(case), l2_bytes=again, ctas=case.rows, ctas_per_sm=4),)


def supports(case: NormCase, target: Target) -> str | None:
    return f"holds a row in registers: D at most 32,768, not {case.D}" if case.D > 1 << 15 else None


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
