"""One CTA for each `BLOCK_C` channels of a sequence."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.common.integers import cdiv
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target
from kernels.short_conv.op import ConvCase, ring_of, work, y_of

BLOCK_C = 1024
"""Four warps load 16 bytes a thread of 16-bit tokens; the 8,192 channels of Jamba still have 8 CTAs at batch 1."""


@triton.jit
def conv_kernel(
    x,  # [B, C]
    ring,  # [B, TAPS, C]
    y,  # [B, C]
    weight,  # [TAPS, C]
    bias,  # [C]
    rings,  # [B] int32
    positions,  # [B] int32
    C,
    stride_x_b,
    TAPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    b = tl.program_id(1)
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = offs_c < C
    at = tl.load(positions + b)
    ring += tl.load(rings + b).to(tl.int64) * (TAPS * C)
    new = tl.load(x + b * stride_x_b + offs_c, mask=mask, other=0.0)
    value = tl.load(bias + offs_c, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(weight + (TAPS - 1) * C + offs_c, mask=mask, other=0.0).to(tl.float32) * new.to(tl.float32)
    for back in tl.static_range(1, TAPS):
        old = tl.load(ring + (at - back) % TAPS * C + offs_c, mask=mask, other=0.0).to(tl.float32)
        value += tl.load(weight + (TAPS - 1 - back) * C + offs_c, mask=mask, other=0.0).to(tl.float32) * old
    tl.store(y + b * C + offs_c, value * tl.sigmoid(value), mask=mask)
    tl.store(ring + at % TAPS * C + offs_c, new, mask=mask)


def build(case: ConvCase, inputs: Inputs, target: Target) -> Built:
    memory, x = inputs["memory"], inputs["x"]
    launch = KernelLaunch(
        kernel=conv_kernel,
        grid=(cdiv(case.C, BLOCK_C), case.B),
        args={
            "x": x,
            "ring": ring_of(case, memory),
            "y": y_of(case, memory),
            "weight": inputs["weight"],
            "bias": inputs["bias"],
            "rings": inputs["rings"],
            "positions": inputs["positions"],
            "C": case.C,
            "stride_x_b": x.stride(0),
        },
        constexprs={"TAPS": case.taps, "BLOCK_C": BLOCK_C},
        num_warps=4,
        streams=("weight",),
        why_narrow="C is no multiple of 8: rows begin anywhere" if case.C % 8 else "",
        why_few_in_flight="a step has some KiB of channels a token: the launch decides, not the memory",
    )
    return Built(launches=(launch,), output=memory)


def stages(case: ConvCase, target: Target) -> tuple[Stage, ...]:
    """What the sequences read of the weights again comes from the L2. The ring waits for its number."""
    again = (case.B - 1) * (case.taps + 1) * case.C * (4 if case.dtype == "fp32" else 2)
    ctas = cdiv(case.C, BLOCK_C) * case.B
    return (Stage(name="conv", work=work(case), l2_bytes=again, ctas=ctas, ctas_per_sm=8, loads_before={"dram": 1}),)


IMPLS = (triton_impl(name="triton", build=build, stages=stages),)
