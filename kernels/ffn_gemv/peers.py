"""What a user could call instead of ours: torch."""

from __future__ import annotations

from kernels.ffn_gemv.op import GemvCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target


def one_pass(case: GemvCase, target: Target) -> tuple[Stage, ...]:
    """A library call taken to move the compulsory bytes and no more."""
    return (Stage(name="gemm", work=work(case)),)


def linear(case: GemvCase, inputs: Inputs, target: Target) -> Launch:
    """`F.linear`: cuBLAS on a GPU, oneDNN or MKL on a CPU."""
    import torch

    x, w = inputs["x"], inputs["w"]
    y = torch.empty(case.B, case.N, dtype=x.dtype, device=x.device)
    return lambda: torch.mm(x, w.T, out=y)


def torch_version() -> str:
    import torch

    return f"torch {torch.__version__}"


IMPLS = (Impl(name="torch", stages=one_pass, prepare=linear, version=torch_version),)
