"""The arithmetic ceilings: what the pipes deliver when memory is no limit.

| kind | computes | pipe |
|---|---|---|
| `gemm` | C[M, N] = A[M, K] B[N, K]^T | `mma_bf16`, `mma_fp8`; fp32 (no TF32) `fma_fp32` |
| `fma` | y[M]: K times y <- (1 - 2^-12) y + 2^-12, from y = x | `fma_fp32` |

The values are normally distributed, as in a model. Zeros would draw less power, let the clock rise, and flatter the
peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from kernels.common.compare import rounded
from kernels.common.fields import OneOf
from kernels.common.random_inputs import BYTES, RandomInputs
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

FMA_A = 1 - 2**-12
FMA_B = 2**-12
"""Each step brings y nearer to 1 by 1/4096. K steps give 1 + a^K (x - 1), which shows how many steps there were."""

FMA_M = 132 * 16 * 1024
"""Chains: each of an H100's 132 SMs holds 16 CTAs of 128 threads at once, and each CTA has 1024 chains."""

PIPES = {"fp32": "fma_fp32", "bf16": "mma_bf16", "fp16": "mma_bf16", "fp8": "mma_fp8"}


@dataclass(frozen=True, kw_only=True)
class PeakCase(Case):
    """`gemm`: A `[M, K]`, B `[N, K]` in `dtype`; C `[M, N]` in `dtype`, bf16 for fp8. `fma`: x, y `[M]`, K steps."""

    kind: Literal["gemm", "fma"] = "gemm"
    M: int
    N: int = 1
    K: int
    dtype: Annotated[str, OneOf(*PIPES)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "fma" and (self.dtype != "fp32" or self.N != 1):
            raise ValueError(f"dtype {self.dtype}, N = {self.N}: fma chains are fp32 and have N = 1")

    @property
    def id(self) -> str:
        shape = f"M{self.M}-N{self.N}-K{self.K}" if self.kind == "gemm" else f"M{self.M}-K{self.K}"
        return f"{self.kind}-{shape}-{self.dtype}"

    @property
    def out_dtype(self) -> str:
        return "bf16" if self.dtype == "fp8" else self.dtype


def cases(suite: str) -> list[PeakCase]:
    """Squares that are large enough to fill the part: with 8192, a GEMM has 2731 FLOP per byte in bf16."""

    def squares(size: int, *dtypes: str) -> list[PeakCase]:
        return [PeakCase(M=size, N=size, K=size, dtype=dtype) for dtype in dtypes]

    fma = PeakCase(kind="fma", M=FMA_M, K=8192, dtype="fp32")
    if suite == "smoke":
        return squares(1024, "fp32", "bf16")
    if suite == "quick":
        return [fma, *squares(8192, "bf16", "fp8")]
    if suite == "full":
        return [fma, *squares(4096, "fp32", "bf16", "fp8"), *squares(8192, "bf16", "fp8")]
    return [
        PeakCase(kind="fma", M=2048, K=64, dtype="fp32"),
        PeakCase(kind="fma", M=1024 + 37, K=33, dtype="fp32"),
        PeakCase(M=48, N=80, K=33, dtype="fp32"),
        PeakCase(M=48, N=80, K=64, dtype="bf16"),
        PeakCase(M=48, N=80, K=64, dtype="fp8"),
    ]


def inputs(case: PeakCase, device: str, seed: int) -> Inputs:
    """`gemm`: a ~ N(0, 1) and b ~ N(0, 1/K), so that C is of order 1 (fp8: b ~ N(0, 1), within its range). `fma`: x is
    `a`."""
    draw = RandomInputs(device, seed)
    if case.kind == "fma":
        return {"a": draw.normal((case.M,), "fp32")}
    scale = 1.0 if case.dtype == "fp8" else case.K**-0.5
    return {
        "a": draw.normal((case.M, case.K), case.dtype),
        "b": draw.normal((case.N, case.K), case.dtype, scale=scale),
    }


def reference(case: PeakCase, inputs: Inputs) -> torch.Tensor:
    """fp64 for fp32, else fp32, in slices of A; the chains in fp64 by their closed form."""
    import torch

    if case.kind == "fma":
        return 1 + FMA_A**case.K * (inputs["a"].double() - 1)
    wide = torch.float64 if case.dtype == "fp32" else torch.float32
    b = inputs["b"].to(wide)
    return torch.cat([part.to(wide) @ b.T for part in inputs["a"].split(2048)])


def work(case: PeakCase) -> Work:
    """2 M N K FLOP; operands and result once."""
    operands = case.M if case.kind == "fma" else (case.M + case.N) * case.K
    return Work(
        flops={PIPES[case.dtype]: 2 * case.M * case.N * case.K},
        bytes_read=BYTES[case.dtype] * operands,
        bytes_written=BYTES[case.out_dtype] * case.M * case.N,
    )


def tolerance(case: PeakCase) -> Tolerance:
    if case.kind == "fma":
        return Tolerance(
            max_rel=3e-4,
            rms_rel=2e-5,
            why="roundings of 2^-24 shrink by the factor a in each step: they add up to 2^-12 = 2.4e-4 if all point "
            "one way; one lost step of 8192 is an rms of 5e-5",
        )
    if case.dtype == "fp8":
        return Tolerance(
            max_rel=0.15,
            rms_rel=0.03,
            why="Hopper's fp8 tensor cores keep about 14 bits of a sum: nearly 2% at worst for K = 4096 "
            "(DeepSeek-V3 Technical Report, 3.3.2), more for 8192; 64 terms of 8192 left out are an rms of 9%",
        )
    return rounded(case.dtype, terms="K terms", max_units=4, rms_units=1, why="one rounding of C to its type")


OP = Op(
    name="gemm_peak",
    title="arithmetic peaks",
    role="ceiling",
    about="arithmetic ceilings: tensor cores and FMA pipe",
    formula="C[M,N] = A[M,K] B[N,K]^T; y <- (1 - 2^-12) y + 2^-12, K times",
    case_type=PeakCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("a",),
)
