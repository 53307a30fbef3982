"""One CTA of one warp per sequence and head: it norms and rotates a head of Q or K, and writes it where it belongs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.common.quantization import SCALE_GROUP
from kernels.common.random_inputs import BYTES
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target
from kernels.rmsnorm.triton_norm import HALF_EVEN, e4m3
from kernels.rope_append.op import RopeCase, cache_of, q_of, work


@triton.jit
def rope_kernel(
    qkv,  # [B, H_q + 2 H_kv, D]
    q,  # [B, H_q, D]
    bias,  # [H_q + 2 H_kv, D] or None
    kv,  # [2, pages, page, H_kv, D] or [2, pages, H_kv, page, D]
    q_weight,  # [D] or None
    k_weight,
    rotations,  # [T, R] fp32
    k_scale,  # [pages, groups, H_kv] fp32 or None
    v_scale,
    block_table,  # [B, columns] int32
    lengths,  # [B] int32
    H_q,
    H_kv,
    stride_qkv_b,
    stride_kv_half,
    stride_kv_page,
    stride_kv_slot,
    stride_kv_head,
    stride_table_b,
    groups,
    SCALE_GROUP: tl.constexpr,
    EPSILON: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    h, b = tl.program_id(0), tl.program_id(1)
    position = tl.load(lengths + b)
    offs_d = tl.arange(0, BLOCK_D)
    mask = offs_d < D
    first = qkv + b * stride_qkv_b + h * D
    row = tl.load(first + offs_d, mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        row += tl.load(bias + h * D + offs_d, mask=mask, other=0.0).to(tl.float32)
    if h < H_q + H_kv:
        # the other one of the pair that is rotated; dims past R are not
        other = tl.where(offs_d < R // 2, offs_d + R // 2, tl.where(offs_d < R, offs_d - R // 2, offs_d))
        pair = tl.load(first + other, mask=mask, other=0.0).to(tl.float32)
        if bias is not None:
            pair += tl.load(bias + h * D + other, mask=mask, other=0.0).to(tl.float32)
        if q_weight is not None:
            weight = q_weight
            if h >= H_q:
                weight = k_weight
            factor = tl.rsqrt(tl.sum(row * row) / D + EPSILON)
            row *= factor * tl.load(weight + offs_d, mask=mask, other=0.0).to(tl.float32)
            pair *= factor * tl.load(weight + other, mask=mask, other=0.0).to(tl.float32)
        angle = rotations + position * R + offs_d % (R // 2)
        cos = tl.load(angle, mask=offs_d < R, other=1.0)
        sin = tl.load(angle + R // 2, mask=offs_d < R, other=0.0)
        row = row * cos + tl.where(offs_d < R // 2, -pair, pair) * sin
    tl.store(q + (b * H_q + h) * D + offs_d, row.to(q.dtype.element_ty), mask=offs_d < tl.where(h < H_q, D, 0))
    if h >= H_q:
        if PAGE == 0:
            page, slot = b, position
        else:
            page, slot = tl.load(block_table + b * stride_table_b + position // PAGE), position % PAGE
        half, head = (h - H_q) // H_kv, (h - H_q) % H_kv
        place = half * stride_kv_half.to(tl.int64) + page.to(tl.int64) * stride_kv_page
        to = kv + place + slot * stride_kv_slot + head * stride_kv_head + offs_d
        if k_scale is None:
            tl.store(to, row.to(kv.dtype.element_ty), mask=mask)
        else:
            scales = k_scale
            if half == 1:
                scales = v_scale
            code = row / tl.load(scales + (page * groups + slot // SCALE_GROUP) * H_kv + head)
            if kv.dtype.element_ty == tl.int8:
                code = tl.minimum(tl.maximum(code, -127.0), 127.0)
                tl.store(to, ((code + HALF_EVEN) - HALF_EVEN).to(tl.int8), mask=mask)
            else:
                tl.store(to, e4m3(tl.minimum(tl.maximum(code, -448.0), 448.0)), mask=mask)


def build(case: RopeCase, inputs: Inputs, target: Target) -> Built:
    memory, qkv, table = inputs["memory"], inputs["qkv"], inputs["block_table"]
    kv = cache_of(case, memory)
    slot, head = (3, 2) if case.layout == "HND" else (2, 3)
    launch = KernelLaunch(
        kernel=rope_kernel,
        grid=(case.heads, case.B),
        args={
            "qkv": qkv,
            "q": q_of(case, memory),
            "bias": inputs["bias"] if case.bias else None,
            "kv": kv.view(torch.uint8) if case.kv == "fp8" else kv,
            "q_weight": inputs["q_weight"] if case.qk_norm else None,
            "k_weight": inputs["k_weight"] if case.qk_norm else None,
            "rotations": inputs["rotations"],
            "k_scale": inputs["k_scale"] if case.kv else None,
            "v_scale": inputs["v_scale"] if case.kv else None,
            "block_table": table,
            "lengths": inputs["lengths"],
            "H_q": case.H_q,
            "H_kv": case.H_kv,
            "stride_qkv_b": qkv.stride(0),
            "stride_kv_half": kv.stride(0),
            "stride_kv_page": kv.stride(1),
            "stride_kv_slot": kv.stride(slot),
            "stride_kv_head": kv.stride(head),
            "stride_table_b": table.stride(0),
            "groups": case.scale_shape[1],
        },
        constexprs={
            "SCALE_GROUP": SCALE_GROUP,
            "EPSILON": case.epsilon,
            "PAGE": case.page,
            "D": case.D,
            "R": case.R,
            "BLOCK_D": triton.next_power_of_2(case.D),
        },
        num_warps=1,
        num_stages=1,
        streams=("qkv",),
        why_narrow="a head of 128 elements of 16 bits gives each lane of the only warp 8 bytes",
        why_few_in_flight="a step has some KiB of heads a sequence: the launch decides, not the memory",
    )
    return Built(launches=(launch,), output=memory)


def stages(case: RopeCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes. The other heads of a token find its angles in the L2, and other tokens the weights. A CTA
    waits for its position, then for the angles or the page."""
    turned = case.B * (case.H_q + case.H_kv)
    again = 4 * case.R * (turned - case.B) + (BYTES[case.dtype] * case.D * turned if case.qk_norm else 0)
    again += (case.B - 1) * case.heads * case.D * BYTES[case.dtype] if case.bias else 0
    return (
        Stage(
            name="rope",
            work=work(case),
            l2_bytes=again,
            ctas=case.heads * case.B,
            ctas_per_sm=32,
            loads_before={"dram": 1},
        ),
    )


IMPLS = (triton_impl(name="triton", build=build, stages=stages),)
