"""y[B, N] = x[B, K] W[N, K]^T, B = 1 to 512: each projection of a decode step, reading every weight once.

At batch B the intensity is about 2 B FLOP per weight element: 1 FLOP/B in bf16 at B = 1, whatever N and K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernels.draw import BYTES, Draw
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class GemvCase(Case):
    """x `[B, K]` and W `[N, K]`, both in `dtype`; y `[B, N]` in `dtype`, accumulated in fp32."""

    B: int
    N: int
    K: int
    dtype: str = "bf16"

    @property
    def id(self) -> str:
        return f"B{self.B}-N{self.N}-K{self.K}-{self.dtype}"


def cases(suite: str) -> list[GemvCase]:
    return []


def inputs(case: GemvCase, device: str, seed: int) -> Inputs:
    """x ~ N(0, 1), W ~ N(0, 1/K): y is of order 1."""
    draw = Draw(device, seed)
    return {
        "x": draw.normal((case.B, case.K), case.dtype),
        "w": draw.normal((case.N, case.K), case.dtype, scale=case.K**-0.5),
    }


def reference(case: GemvCase, inputs: Inputs) -> torch.Tensor:
    """fp32, in slices of N, so that a large W is never held twice."""
    import torch

    x = inputs["x"].float()
    rows = max(1, (1 << 26) // case.K)
    return torch.cat([x @ part.float().T for part in inputs["w"].split(rows)], dim=1)


def work(case: GemvCase) -> Work:
    """Weights and activations once, outputs once; 2 B N K FLOP.

    The pipe is the tensor cores' for 16-bit types; an implementation that computes on another says so in its stages.
    """
    size = BYTES[case.dtype]
    return Work(
        flops={"fma_fp32" if case.dtype == "fp32" else "mma_bf16": 2 * case.B * case.N * case.K},
        bytes_read=size * (case.N * case.K + case.B * case.K),
        bytes_written=size * case.B * case.N,
    )


def tolerance(case: GemvCase) -> Tolerance:
    if case.dtype == "fp32":
        return Tolerance(max_rel=1e-4, rms_rel=1e-5, why="fp32 sums of K terms in another order")
    unit = {"bf16": 2**-8, "fp16": 2**-11}[case.dtype]
    return Tolerance(max_rel=4 * unit, rms_rel=unit, why="one rounding of y to its type")


OP = Op(
    name="ffn_gemv",
    about="batched matrix-vector product of the decode projections",
    formula="y[B,N] = x[B,K] W[N,K]^T",
    case_type=GemvCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x",),
)
