"""The ceiling of the FMA pipe: each thread keeps 8 independent chains of multiply-adds in registers.

An SM of compute capability 8.0 to 10.0 has four schedulers. Each starts one warp instruction a cycle, and the result of
a multiply-add is ready about 4 cycles later. Four warps per scheduler with 8 chains each offer 32 independent
instructions for those 4 cycles, and one wave of CTAs offers more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.common.integers import cdiv
from kernels.gemm_peak.op import FMA_A, FMA_B, PeakCase, work
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target

UNROLL = 16
"""Steps between two tests of the loop counter: 128 FMAs a thread for about 3 other instructions."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`ctas` CTAs of `num_warps` warps, with `BLOCK` chains each."""

    ctas: int
    ctas_per_sm: int = 16
    BLOCK: int = 1024
    num_warps: int = 4


def plan(case: PeakCase, target: Target) -> Plan:
    """8 chains for each of 128 threads; the 2048 threads of an SM are 16 such CTAs."""
    return Plan(ctas=cdiv(case.M, Plan.BLOCK))


@triton.jit
def fma_kernel(x, y, M, A: tl.constexpr, B: tl.constexpr, K: tl.constexpr, UNROLL: tl.constexpr, BLOCK: tl.constexpr):
    """K times y <- A y + B, from y = x. Both [M] fp32."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < M
    values = tl.load(x + offs, mask=mask)
    for _ in range(K // UNROLL):
        for _ in tl.static_range(UNROLL):
            values = tl.fma(values, A, B)
    for _ in tl.static_range(K % UNROLL):
        values = tl.fma(values, A, B)
    tl.store(y + offs, values, mask=mask)


def build(case: PeakCase, inputs: Inputs, target: Target) -> Built:
    chosen, x = plan(case, target), inputs["a"]
    y = torch.empty_like(x)
    launch = KernelLaunch(
        kernel=fma_kernel,
        grid=(chosen.ctas,),
        args={"x": x, "y": y, "M": case.M},
        constexprs={"A": FMA_A, "B": FMA_B, "K": case.K, "UNROLL": UNROLL, "BLOCK": chosen.BLOCK},
        num_warps=chosen.num_warps,
        num_stages=1,
        streams=("x",),
        why_few_in_flight="it computes in registers; one byte moves for 2048 FLOP",
    )
    return Built(launches=(launch,), output=y)


def stages(case: PeakCase, target: Target) -> tuple[Stage, ...]:
    chosen = plan(case, target)
    return (Stage(name="fma", work=work(case), ctas=chosen.ctas, ctas_per_sm=chosen.ctas_per_sm),)


def supports(case: PeakCase, target: Target) -> str | None:
    return None if case.kind == "fma" else "the libraries' GEMM is the ceiling; only the fma chains are ours"


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
