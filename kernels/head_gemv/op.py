"""y[b, h, n] = sum_k W[h, n, k] x[b, h, k]: each head has its own matrix, and each weight is read once.

Absorbed latent attention has two of these in a layer: queries [B, H, K] become latents [B, H, N], and what attention
gives in latents becomes the values of each head. x is [B, H, K], W [H, N, K], y [B, H, N]; a row x[b, h] lies together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernels.common.compare import rounded
from kernels.common.fields import Dtype
from kernels.common.random_inputs import BYTES, RandomInputs
from kernels.models import MODELS
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class HeadCase(Case):
    """`H` heads with a matrix `[N, K]` each, times `B` rows; sums in fp32."""

    B: int
    H: int
    N: int
    K: int
    dtype: Dtype = "bf16"

    @property
    def id(self) -> str:
        return f"B{self.B}-H{self.H}-N{self.N}-K{self.K}-{self.dtype}"


def of_model(model: str, B: int, **more: Any) -> list[HeadCase]:
    """Queries to latents, and latents to values."""
    shape = MODELS[model]
    sizes = ((shape.kv_latent, shape.head_dim), (shape.v_head_dim, shape.kv_latent))
    return [HeadCase(model=model, B=B, H=shape.heads, N=N, K=K, **more) for N, K in sizes]


def cases(suite: str) -> list[HeadCase]:
    if suite == "quick":
        return of_model("deepseek-v3", 16)[:1]
    if suite == "full":
        return [case for B in (1, 64) for case in of_model("deepseek-v3", B)]
    if suite == "test":
        return [
            HeadCase(B=1, H=3, N=64, K=32, dtype="fp16"),
            HeadCase(B=18, H=2, N=70, K=72, dtype="fp16"),
            HeadCase(B=3, H=2, N=5, K=136, dtype="fp32"),
        ]
    return []


def inputs(case: HeadCase, device: str, seed: int) -> Inputs:
    """x ~ N(0, 1) and W of order K^-1/2, so that y is of order 1."""
    draw = RandomInputs(device, seed)
    return {
        "x": draw.normal((case.B, case.H, case.K), case.dtype),
        "w": draw.normal((case.H, case.N, case.K), case.dtype, scale=case.K**-0.5),
    }


def reference(case: HeadCase, inputs: Inputs) -> torch.Tensor:
    """fp32."""
    import torch

    return torch.einsum("bhk,hnk->bhn", inputs["x"].float(), inputs["w"].float())


def work(case: HeadCase) -> Work:
    """Weights, x and y once; 2 B H N K FLOP."""
    size = BYTES[case.dtype]
    return Work(
        flops={"fma_fp32" if case.dtype == "fp32" else "mma_bf16": 2 * case.B * case.H * case.N * case.K},
        bytes_read=size * case.H * case.K * (case.N + case.B),
        bytes_written=size * case.B * case.H * case.N,
    )


def tolerance(case: HeadCase) -> Tolerance:
    why = "one rounding of y to its type"
    return rounded(case.dtype, terms="K terms", max_units=4, rms_units=1.5, why=why)


OP = Op(
    name="head_gemv",
    title="products by head",
    role="decode",
    about="a matrix of its own for each head: queries to latents and latents to values in absorbed MLA",
    formula="y[b,h,n] = sum_k W[h,n,k] x[b,h,k]",
    case_type=HeadCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("x",),
)
