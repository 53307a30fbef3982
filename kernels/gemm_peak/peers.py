"""The tensor cores through the libraries that know them best: cuBLAS and cuBLASLt through torch, oneDNN on a CPU."""

from __future__ import annotations

from kernels.common.random_inputs import torch_dtype
from kernels.gemm_peak.op import PeakCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, torch_version


def stages(case: PeakCase, target: Target) -> tuple[Stage, ...]:
    """One GEMM that reads its operands once: if it is tiled well, the L2 serves what it reads again."""
    return (Stage(name="gemm", work=work(case)),)


def no_fma(case: PeakCase) -> str | None:
    return "a library has no chain of multiply-adds that stays in registers" if case.kind == "fma" else None


def mm_supports(case: PeakCase, target: Target) -> str | None:
    return no_fma(case) or ("torch multiplies fp8 by _scaled_mm" if case.dtype == "fp8" else None)


def mm(case: PeakCase, inputs: Inputs, target: Target) -> Launch:
    """`torch.mm`: cuBLAS on a GPU, oneDNN or MKL on a CPU."""
    import torch

    a, b_t = inputs["a"], inputs["b"].T
    c = torch.empty(case.M, case.N, dtype=a.dtype, device=a.device)
    return lambda: torch.mm(a, b_t, out=c)


def lt_supports(case: PeakCase, target: Target) -> str | None:
    if target.kind != "cuda":
        return "needs an NVIDIA GPU (cuBLASLt)"
    return mm_supports(case, target)


def addmm(case: PeakCase, inputs: Inputs, target: Target) -> Launch:
    """`torch.addmm` with a bias of N zeros. torch hands this to cuBLASLt, with the addition fused."""
    import torch

    a, b_t = inputs["a"], inputs["b"].T
    bias = torch.zeros(case.N, dtype=a.dtype, device=a.device)
    c = torch.empty(case.M, case.N, dtype=a.dtype, device=a.device)
    return lambda: torch.addmm(bias, a, b_t, out=c)


def scaled_mm_supports(case: PeakCase, target: Target) -> str | None:
    if case.kind == "fma" or case.dtype != "fp8":
        return no_fma(case) or f"_scaled_mm multiplies fp8, not {case.dtype}"
    if target.kind != "cuda" or target.sm < 89:
        return "needs an NVIDIA GPU of sm_89 or later (fp8 tensor cores)"
    return None


def scaled_mm(case: PeakCase, inputs: Inputs, target: Target) -> Launch:
    """`torch._scaled_mm` (cuBLASLt) with scales of 1 and fast accumulation, as in inference."""
    import torch

    a, b_t = inputs["a"], inputs["b"].T
    one = torch.ones((), device=a.device)
    out_dtype = torch_dtype(case.out_dtype)
    c = torch.empty(case.M, case.N, dtype=out_dtype, device=a.device)
    return lambda: torch._scaled_mm(a, b_t, scale_a=one, scale_b=one, out_dtype=out_dtype, use_fast_accum=True, out=c)


IMPLS = (
    Impl(name="torch", stages=stages, prepare=mm, supports=mm_supports, version=torch_version),
    Impl(name="torch-addmm", stages=stages, prepare=addmm, supports=lt_supports, version=torch_version),
    Impl(name="torch-scaled", stages=stages, prepare=scaled_mm, supports=scaled_mm_supports, version=torch_version),
)
