"""One CTA for each head, block of its rows and block of tokens. Weights are the M side of the tensor cores."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.common.integers import cdiv, next_power_of_2
from kernels.common.random_inputs import BYTES
from kernels.head_gemv.op import HeadCase, work
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target

BLOCK_N = 64
"""Rows of one wgmma."""

MAX_BLOCK_B = 64


@triton.jit
def head_kernel(
    x,  # [B, H, K]
    w,  # [H, N, K]
    y,  # [B, H, N]
    B,
    H,
    N,
    K,
    stride_x_b,
    stride_x_h,
    EVEN_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    h = tl.program_id(1)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_b = tl.program_id(2) * BLOCK_B + tl.arange(0, BLOCK_B)
    offs_k = tl.arange(0, BLOCK_K)
    mask_b = offs_b < B
    w_rows = w + (h * N + tl.minimum(offs_n, N - 1))[:, None] * K + offs_k[None, :]
    x_columns = x + (offs_b * stride_x_b + h * stride_x_h)[None, :] + offs_k[:, None]
    sums = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            w_tile = tl.load(w_rows + k)
            x_tile = tl.load(x_columns + k, mask=mask_b[None, :], other=0.0)
        else:
            mask_k = offs_k < K - k
            w_tile = tl.load(w_rows + k, mask=mask_k[None, :], other=0.0)
            x_tile = tl.load(x_columns + k, mask=mask_k[:, None] & mask_b[None, :], other=0.0)
        sums = tl.dot(w_tile, x_tile, sums, input_precision="ieee")
    y_at = y + (offs_b * H + h)[None, :] * N + offs_n[:, None]
    tl.store(y_at, sums.to(y.dtype.element_ty), mask=(offs_n < N)[:, None] & mask_b[None, :])


def blocks(case: HeadCase) -> tuple[int, int]:
    """Tokens and columns of a block: 128 bytes of each row of W, twice that if it divides K."""
    width = 128 // BYTES[case.dtype]
    columns = 2 * width if case.K % (2 * width) == 0 else min(width, max(16, next_power_of_2(case.K)))
    return min(MAX_BLOCK_B, max(16, next_power_of_2(case.B))), columns


def build(case: HeadCase, inputs: Inputs, target: Target) -> Built:
    x, w = inputs["x"], inputs["w"]
    BLOCK_B, BLOCK_K = blocks(case)
    y = torch.empty(case.B, case.H, case.N, dtype=x.dtype, device=x.device)
    launch = KernelLaunch(
        kernel=head_kernel,
        grid=(cdiv(case.N, BLOCK_N), case.H, cdiv(case.B, BLOCK_B)),
        args={
            "x": x,
            "w": w,
            "y": y,
            "B": case.B,
            "H": case.H,
            "N": case.N,
            "K": case.K,
            "stride_x_b": x.stride(0),
            "stride_x_h": x.stride(1),
        },
        constexprs={
            "EVEN_K": case.K % BLOCK_K == 0,
            "BLOCK_B": BLOCK_B,
            "BLOCK_N": BLOCK_N,
            "BLOCK_K": BLOCK_K,
            "STAGES": 3,
        },
        num_warps=4,
        streams=("w",),
        why_narrow="" if case.K * BYTES[case.dtype] % 16 == 0 else "rows of K elements are not 16-byte aligned",
        why_few_in_flight="a head's matrix is some ten KiB a CTA: the launch decides, not the memory",
        wants_mma=case.dtype != "fp32",
    )
    return Built(launches=(launch,), output=y)


def stages(case: HeadCase, target: Target) -> tuple[Stage, ...]:
    """W comes from the L2 again for each further block of tokens, and x for each further block of rows. Shared memory
    has room for three CTAs, or for two with more tokens."""
    BLOCK_B, _ = blocks(case)
    size, rows = BYTES[case.dtype], cdiv(case.N, BLOCK_N)
    again = (cdiv(case.B, BLOCK_B) - 1) * case.H * case.N * case.K + (rows - 1) * case.B * case.H * case.K
    ctas = rows * case.H * cdiv(case.B, BLOCK_B)
    return (
        Stage(name="heads", work=work(case), l2_bytes=size * again, ctas=ctas, ctas_per_sm=3 if BLOCK_B <= 32 else 2),
    )


def supports(case: HeadCase, target: Target) -> str | None:
    if target.kind == "interpreter" and case.dtype == "bf16":
        return "Triton's interpreter multiplies bf16 operands of tl.dot as integers; use fp16 there"
    return None


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
