"""The gated FFN block in two launches: gate, up and activation fused, then down.

The first kernel multiplies a tile of W_gate and the same rows of W_up with one tile of x. So gate and up meet in
registers, and only h = a(gate, up) is stored. h is `[B, F]`, B / 3H of the weights' bytes, and stays in the L2.
This kernel runs on the tensor cores at every batch. The second launch is `ffn_gemv`'s kernel on h. In both, CTAs share
the weights as `kernels/common/stream_k.py` tells.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from kernels.common.integers import next_power_of_2
from kernels.common.random_inputs import BYTES
from kernels.common.stream_k import (
    Plan,
    clipped_rows,
    finish_tile,
    launch,
    load_weights,
    load_x,
    own_batch,
    own_part,
    own_units,
    share,
    stage,
    weights_at,
)
from kernels.common.workspace import passing
from kernels.ffn_block.op import FfnCase
from kernels.ffn_gemv import triton_gemv, triton_gemv_dense
from kernels.ffn_gemv.op import GemvCase
from kernels.launch import Built, triton_impl
from kernels.op import Inputs, Stage, Target


def max_block_b(target: Target) -> int:
    """The most batch columns of a CTA: two times 128 x 128 sums take 128 registers in each of 256 threads. wgmma needs
    no further registers for its operands; other parts have half as many columns."""
    return 128 if target.sm in (0, 90) else 64


def plan(case: FfnCase, target: Target) -> Plan:
    """Units of 16 KB, both matrices together; of 32 KB for wide batches."""
    size = BYTES[case.dtype]
    BLOCK_B = min(max_block_b(target), max(16, next_power_of_2(case.B)))
    BLOCK_N = 64 if BLOCK_B <= 64 else 128
    BLOCK_K = triton_gemv_dense.block_k(case.hidden, 128 // size)
    reasoned = Plan(
        B=case.B,
        N=case.ffn,
        K=case.hidden,
        BLOCK_B=BLOCK_B,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
        use_mma=True,
        unit_bytes=2 * BLOCK_N * BLOCK_K * size,
        unit_smem=(2 * BLOCK_N + BLOCK_B) * BLOCK_K * size,
        ctas_per_sm=2 if BLOCK_B <= 64 else 1,
        num_warps=BLOCK_N // 16,
        sums=2,
    )
    return share(reasoned, target)


(DOWN,) = triton_gemv.IMPLS
"""The implementation of the second launch, with its own tuned configuration."""


def down_case(case: FfnCase) -> GemvCase:
    """The case of the second launch."""
    return GemvCase(B=case.B, N=case.hidden, K=case.ffn, dtype=case.dtype, layer="down")


@triton.jit
def gate_up(
    x,
    w_gate,
    w_up,
    y,
    partial,
    arrived,
    B,
    N,
    K,
    stride_x_b,
    stride_w_gate_n,
    stride_w_up_n,
    stride_y_b,
    ACTIVATION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Tiles of W_gate and W_up [BLOCK_N, BLOCK_K] @ x^T [BLOCK_K, BLOCK_B] -> y [B, N] = ACTIVATION(gate, up),
    which is h."""
    iters, units, unit, end = own_units(N, K, BLOCK_N, BLOCK_K)
    offs_k = tl.arange(0, BLOCK_K)
    offs_b, mask_b, offs_x = own_batch(B, stride_x_b, offs_k, BLOCK_B)
    while unit < end:
        tile, it_first, it_end = own_part(unit, end, iters)
        rows = clipped_rows(tile * BLOCK_N, N, BLOCK_N)
        gate_first, offs_gate = weights_at(w_gate, tile * BLOCK_N, rows, stride_w_gate_n, offs_k)
        up_first, offs_up = weights_at(w_up, tile * BLOCK_N, rows, stride_w_up_n, offs_k)
        gate = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        for it in tl.range(it_first, it_end, num_stages=STAGES):
            k = it * BLOCK_K
            mask_k = offs_k < K - k
            gate_tile = load_weights(gate_first + k + offs_gate, mask_k[None, :], EVEN_K)
            up_tile = load_weights(up_first + k + offs_up, mask_k[None, :], EVEN_K)
            x_tile = load_x(x + k + offs_x, mask_b[None, :], mask_k[:, None], EVEN_K)
            gate = tl.dot(gate_tile, x_tile, gate, input_precision="ieee")
            up = tl.dot(up_tile, x_tile, up, input_precision="ieee")
        finish_tile(
            gate,
            up,
            y,
            offs_b,
            B,
            N,
            stride_y_b,
            partial,
            arrived,
            tile,
            iters,
            units,
            N_ROWS=True,
            ACTIVATION=ACTIVATION,
        )
        unit += it_end - it_first


def build(case: FfnCase, inputs: Inputs, target: Target) -> Built:
    """Two launches; h belongs to them."""
    x, w_gate, w_up = inputs["x"], inputs["w_gate"], inputs["w_up"]
    assert DOWN.build is not None
    p = plan(case, target)
    h = torch.empty(case.B, case.ffn, dtype=x.dtype, device=x.device)
    tensors = {"x": x, "w_gate": w_gate, "w_up": w_up, "y": h}
    constexprs = {"ACTIVATION": case.activation}
    first = launch(gate_up, p, tensors, ("w_gate", "w_up"), constexprs=constexprs, **p.excuses(w_gate, w_up))
    down = DOWN.build(down_case(case), {"x": h, "w": inputs["w_down"]}, target)
    return Built(launches=(first, *down.launches), output=down.output)


def stages(case: FfnCase, target: Target) -> tuple[Stage, ...]:
    """Each matrix once from DRAM. h passes from the first launch to the second, which reads it again for each tile of
    rows."""
    p = plan(case, target)
    size = BYTES[case.dtype]
    weights, x, h = 2 * case.ffn * case.hidden * size, case.B * case.hidden * size, case.B * case.ffn * size
    pipe = "fma_fp32" if case.dtype == "fp32" else "mma_bf16"
    first = stage("gate_up", p, target, pipe=pipe, weights=weights, activations=x, outputs=0)
    (down,) = DOWN.stages(down_case(case), target)
    down = replace(down, name="down", work=replace(down.work, bytes_read=down.work.bytes_read - h))
    return passing(first, target, h, written=h), passing(down, target, h, read=h)


def supports(case: FfnCase, target: Target) -> str | None:
    if target.kind == "interpreter" and case.dtype == "bf16":
        return "Triton's interpreter multiplies bf16 operands of tl.dot as integers; use fp16 there"
    return None


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
