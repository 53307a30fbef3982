"""One CTA for each `BLOCK_F` values of a token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.common.integers import cdiv
from kernels.common.triton_gated import hidden
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target
from kernels.silu_mul.op import GateCase, halves, work

BLOCK_F = 1024
"""Four warps load 16 bytes a thread of 16-bit gates; at batch 1 a Llama-3.1-8B still has 14 CTAs."""


@triton.jit
def gate_kernel(
    x,  # [B, F], the gate
    up,  # [B, F]
    h,  # [B, F]
    F,
    stride_x_b,
    stride_up_b,
    stride_h_b,
    ACTIVATION: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    b = tl.program_id(1)
    offs_f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask = offs_f < F
    gate = tl.load(x + b * stride_x_b + offs_f, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(up + b * stride_up_b + offs_f, mask=mask, other=0.0).to(tl.float32)
    tl.store(h + b * stride_h_b + offs_f, hidden(gate, value, ACTIVATION), mask=mask)


def build(case: GateCase, inputs: Inputs, target: Target) -> Built:
    x, up = halves(case, inputs)
    h = torch.empty(case.B, case.F, dtype=x.dtype, device=x.device)
    launch = KernelLaunch(
        kernel=gate_kernel,
        grid=(cdiv(case.F, BLOCK_F), case.B),
        args={
            "x": x,
            "up": up,
            "h": h,
            "F": case.F,
            "stride_x_b": x.stride(0),
            "stride_up_b": up.stride(0),
            "stride_h_b": h.stride(0),
        },
        constexprs={"ACTIVATION": case.activation, "BLOCK_F": BLOCK_F},
        num_warps=4,
        streams=("x",),
        why_narrow="F is no multiple of 8: rows begin anywhere" if case.F % 8 else "",
        why_few_in_flight="a step has some KiB of hidden values a token: the launch decides, not the memory",
    )
    return Built(launches=(launch,), output=h)


def stages(case: GateCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="gate", work=work(case), ctas=cdiv(case.F, BLOCK_F) * case.B, ctas_per_sm=8),)


IMPLS = (triton_impl(name="triton", build=build, stages=stages),)
