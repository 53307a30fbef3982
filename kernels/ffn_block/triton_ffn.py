"""The SwiGLU block in two launches: gate, up and activation fused, then down.

The first kernel reads a tile of W_gate and the same rows of W_up side by side against one tile of x, so that gate and
up meet in registers and only h = silu(gate) * up is stored: `[B, F]`, B / 3H of the weights' bytes, and served by the
L2. It runs on the tensor cores at every batch. The second is `ffn_gemv`'s own kernel on h. Both share their weights
among CTAs as `ffn_gemv/triton_share.py` tells.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from kernels.draw import BYTES
from kernels.ffn_block.op import FfnCase
from kernels.ffn_gemv import triton_gemv_dense
from kernels.ffn_gemv.op import GemvCase
from kernels.ffn_gemv.triton_share import Plan, cta_of, first_unit, power_of_2, share
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target, Work


def max_block_b(target: Target) -> int:
    """Batch columns of a CTA: twice 128 x 128 sums are 128 registers in each of 256 threads, where wgmma needs no more
    for its operands; half of that elsewhere."""
    return 128 if target.sm in (0, 90) else 64


def plan(case: FfnCase, target: Target) -> Plan:
    """Units of 16 KB of both matrices together, of 32 KB for wide batches."""
    size = BYTES[case.dtype]
    BLOCK_B = min(max_block_b(target), max(16, power_of_2(case.B)))
    BLOCK_N = 64 if BLOCK_B <= 64 else 128
    BLOCK_K = triton_gemv_dense.block_k(case.hidden, 128 // size)
    return share(
        N=case.ffn, K=case.hidden, B=case.B, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, BLOCK_B=BLOCK_B,
        unit_bytes=2 * BLOCK_N * BLOCK_K * size, unit_smem=(2 * BLOCK_N + BLOCK_B) * BLOCK_K * size,
        ctas_per_sm=2 if BLOCK_B <= 64 else 1, num_warps=BLOCK_N // 16, use_mma=True, target=target, sums=2,
    )  # fmt: skip


def down_case(case: FfnCase) -> GemvCase:
    """The second launch."""
    return GemvCase(B=case.B, N=case.hidden, K=case.ffn, dtype=case.dtype, layer="down")


@triton.jit
def silu(gate):
    """gate * sigmoid(gate), in fp32."""
    return gate / (1.0 + tl.exp(-gate))


@triton.jit
def gate_up(
    x, w_gate, w_up, h, partial, arrived, B, N, K, stride_x_b, stride_gate_n, stride_up_n, stride_h_b,
    BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Tiles of W_gate and W_up [BLOCK_N, BLOCK_K] @ x^T [BLOCK_K, BLOCK_B] -> h [B, N] = silu(gate) * up."""
    TILE: tl.constexpr = BLOCK_N * BLOCK_B
    cta = tl.program_id(1)
    ctas = tl.num_programs(1)
    iters = tl.cdiv(K, BLOCK_K)
    units = tl.cdiv(N, BLOCK_N) * iters
    unit = first_unit(cta, units, ctas)
    end = first_unit(cta + 1, units, ctas)
    offs_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = offs_b < B
    offs_k = tl.arange(0, BLOCK_K)
    offs_x = (offs_b * stride_x_b)[None, :] + offs_k[:, None]
    while unit < end:
        tile = unit // iters
        tile_end = tl.minimum(end, tile * iters + iters)
        offs_n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        gate_first = w_gate + (tile * BLOCK_N).to(tl.int64) * stride_gate_n
        up_first = w_up + (tile * BLOCK_N).to(tl.int64) * stride_up_n
        # rows past the last read the last one: their sums are not stored
        row = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - tile * BLOCK_N)
        offs_gate = (row * stride_gate_n)[:, None] + offs_k[None, :]
        offs_up = (row * stride_up_n)[:, None] + offs_k[None, :]
        gate = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        for it in tl.range(unit - tile * iters, tile_end - tile * iters, num_stages=STAGES):
            k = it * BLOCK_K
            if EVEN_K:
                gate_tile = tl.load(gate_first + k + offs_gate)
                up_tile = tl.load(up_first + k + offs_up)
                x_tile = tl.load(x + k + offs_x, mask=mask_b[None, :], other=0.0)
            else:
                mask_k = offs_k < K - k
                gate_tile = tl.load(gate_first + k + offs_gate, mask=mask_k[None, :], other=0.0)
                up_tile = tl.load(up_first + k + offs_up, mask=mask_k[None, :], other=0.0)
                x_tile = tl.load(x + k + offs_x, mask=mask_b[None, :] & mask_k[:, None], other=0.0)
            gate = tl.dot(gate_tile, x_tile, gate, input_precision="ieee")
            up = tl.dot(up_tile, x_tile, up, input_precision="ieee")
        first = cta_of(tile * iters, units, ctas)
        last = cta_of(tile * iters + iters - 1, units, ctas)
        h_at = h + offs_n[:, None] + (offs_b * stride_h_b)[None, :]
        mask = (offs_n < N)[:, None] & mask_b[None, :]
        if first == last:
            tl.store(h_at, (silu(gate) * up).to(h.dtype.element_ty), mask=mask)
        else:
            shares = partial + tl.program_id(0).to(tl.int64) * ctas * (4 * TILE)
            if BLOCK_B > 64:
                # addresses and masks of a whole column of outputs would not fit the registers
                offs = tl.arange(0, BLOCK_N)[:, None] * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
                mask_share = tl.full((1, 1), 1, tl.int1)
            else:
                offs = tl.arange(0, BLOCK_N)[:, None] + tl.arange(0, BLOCK_B)[None, :] * BLOCK_N
                mask_share = mask_b[None, :]
            counter = arrived + tile * tl.num_programs(0) + tl.program_id(0)
            slot = 2 * cta + (first_unit(cta, units, ctas) < tile * iters).to(tl.int32)
            tl.store(shares + slot.to(tl.int64) * (2 * TILE) + offs, gate, mask=mask_share)
            tl.store(shares + slot.to(tl.int64) * (2 * TILE) + TILE + offs, up, mask=mask_share)
            # all threads have stored before one of them releases
            tl.debug_barrier()
            if tl.atomic_add(counter, 1, sem="acq_rel") == last - first:
                whole_gate = tl.zeros_like(gate)
                whole_up = tl.zeros_like(up)
                for sharer in range(first, last + 1):
                    slot = 2 * sharer + (first_unit(sharer, units, ctas) < tile * iters).to(tl.int32)
                    share_at = shares + slot.to(tl.int64) * (2 * TILE)
                    whole_gate += tl.load(share_at + offs, mask=mask_share, other=0.0, cache_modifier=".cg")
                    whole_up += tl.load(share_at + TILE + offs, mask=mask_share, other=0.0, cache_modifier=".cg")
                tl.store(h_at, (silu(whole_gate) * whole_up).to(h.dtype.element_ty), mask=mask)
                tl.store(counter, 0)
        unit = tile_end


def build(case: FfnCase, inputs: Inputs, target: Target) -> Built:
    """Two launches; h, the workspaces and the counters belong to them."""
    x, w_gate, w_up = inputs["x"], inputs["w_gate"], inputs["w_up"]
    if x.stride(1) != 1 or w_gate.stride(1) != 1 or w_up.stride(1) != 1:
        raise ValueError("x, w_gate and w_up must be contiguous along their columns")
    p = plan(case, target)
    h = torch.empty(case.B, case.ffn, dtype=x.dtype, device=x.device)
    first = KernelLaunch(
        kernel=gate_up,
        grid=(p.tiles_b, p.ctas),
        args={
            "x": x,
            "w_gate": w_gate,
            "w_up": w_up,
            "h": h,
            **p.workspace(x.device),
            "B": case.B,
            "N": case.ffn,
            "K": case.hidden,
            "stride_x_b": x.stride(0),
            "stride_gate_n": w_gate.stride(0),
            "stride_up_n": w_up.stride(0),
            "stride_h_b": h.stride(0),
        },
        constexprs={
            "BLOCK_B": p.BLOCK_B,
            "BLOCK_N": p.BLOCK_N,
            "BLOCK_K": p.BLOCK_K,
            "EVEN_K": p.even_k,
            "STAGES": p.num_stages,
            **p.register_cap(),
        },
        num_warps=p.num_warps,
        num_stages=p.num_stages,
        streams=("w_gate", "w_up"),
        **p.excuses(w_gate, w_up),
        wants_mma=case.dtype != "fp32",
    )
    down = triton_gemv_dense.build(down_case(case), {"x": h, "w": inputs["w_down"]}, target)
    return Built(launches=(first, *down.launches), output=down.output)


def stages(case: FfnCase, target: Target) -> tuple[Stage, ...]:
    """Each matrix once from DRAM; h is written and read in the L2, where 512 sequences of it fit on an H100."""
    p = plan(case, target)
    size = BYTES[case.dtype]
    weights, x, h = 2 * case.ffn * case.hidden * size, case.B * case.hidden * size, case.B * case.ffn * size
    (down,) = triton_gemv_dense.stages(down_case(case), target)
    pipe = "fma_fp32" if case.dtype == "fp32" else "mma_bf16"
    return (
        Stage(
            name="gate_up",
            work=Work(flops={pipe: p.flops}, bytes_read=weights + x),
            l2_bytes=(p.tiles_b - 1) * weights + (p.tiles_n - 1) * x + h + p.partial_bytes,
            ctas=p.ctas * p.tiles_b,
            ctas_per_sm=p.ctas_per_sm,
        ),
        replace(
            down,
            name="down",
            work=replace(down.work, bytes_read=down.work.bytes_read - h),
            l2_bytes=down.l2_bytes + h,
        ),
    )


def supports(case: FfnCase, target: Target) -> str | None:
    if target.kind == "interpreter" and case.dtype == "bf16":
        return "Triton's interpreter multiplies bf16 operands of tl.dot as integers; use fp16 there"
    return None


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
