"""What a user could call instead of our kernels: torch."""

from __future__ import annotations

from kernels.common.random_inputs import torch_dtype
from kernels.ffn_gemv.op import GemvCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, torch_version


def one_pass(case: GemvCase, target: Target) -> tuple[Stage, ...]:
    """A library call, assumed to move only the compulsory bytes."""
    return (Stage(name="gemm", work=work(case)),)


def mm(case: GemvCase, inputs: Inputs, target: Target) -> Launch:
    """`torch.mm`: cuBLAS on a GPU, oneDNN or MKL on a CPU."""
    import torch

    x, w_t = inputs["x"], inputs["w"].T
    y = torch.empty(case.B, case.N, dtype=x.dtype, device=x.device)
    return lambda: torch.mm(x, w_t, out=y)


INNER_K_TILES = 8
"""Tiles of 16 columns that tinygemm lays together. This is its widest choice, and the one of gpt-fast."""


def supports(case: GemvCase, target: Target) -> str | None:
    if not case.quantized:
        return None
    if case.activations == case.dtype and case.weights != "int4":
        return f"torch has no kernel that multiplies {case.weights} weights with {case.dtype} activations"
    if target.kind != "cuda":
        return "torch's int4 and fp8 kernels need an NVIDIA GPU"
    if case.dtype != "bf16":
        return f"torch's int4 and fp8 kernels give bf16, not {case.dtype}"
    if case.weights == "int4":
        fits = target.sm >= 80 and case.K % (16 * INNER_K_TILES) == 0 and case.N % 8 == 0
        return None if fits else f"tinygemm needs sm_80, K = n {16 * INNER_K_TILES} and N = n 8"
    if case.weights == "fp8_block":
        return "torch scales blocks of W only together with blocks of x, not with rows of x"
    fits = target.sm >= 89 and case.K % 16 == 0 and case.N % 16 == 0
    return None if fits else "cuBLASLt's fp8 needs sm_89, K = n 16 and N = n 16"


def int4(case: GemvCase, inputs: Inputs, target: Target) -> Launch:
    """`torch._weight_int4pack_mm` (tinygemm): W = (code - 8) * scale + zero, here with a zero of 0.

    It wants the even column in the high nibble, and allocates its output.
    """
    import torch

    x, codes, scale = inputs["x"], inputs["w"], inputs["w_scale"]
    packed = torch._convert_weight_to_int4pack((codes << 4) | (codes >> 4), INNER_K_TILES)
    scale_and_zero = torch.stack((scale, torch.zeros_like(scale)), dim=-1).transpose(0, 1).contiguous()
    return lambda: torch._weight_int4pack_mm(x, packed, 128, scale_and_zero)


def fp8(case: GemvCase, inputs: Inputs, target: Target) -> Launch:
    """`torch._scaled_mm` with one scale for each row of x and of W.

    Fast accumulation stays off, as by default: Hopper's fp8 tensor cores keep 13 bits of a running sum, and over
    K = 8192 this loses more than the tolerance allows.
    """
    import torch

    x, w_t = inputs["x"], inputs["w"].T
    scale_x, scale_w = inputs["x_scale"][:, None], inputs["w_scale"][None, :]
    y = torch.empty(case.B, case.N, dtype=torch_dtype(case.dtype), device=x.device)
    return lambda: torch._scaled_mm(x, w_t, scale_a=scale_x, scale_b=scale_w, out_dtype=y.dtype, out=y)


def prepare(case: GemvCase, inputs: Inputs, target: Target) -> Launch:
    """Torch's kernel for these types."""
    if case.activations != case.dtype:
        return fp8(case, inputs, target)
    return int4(case, inputs, target) if case.quantized else mm(case, inputs, target)


IMPLS = (Impl(name="torch", stages=one_pass, prepare=prepare, supports=supports, version=torch_version),)
