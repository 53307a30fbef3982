"""One CTA of one warp per sequence and KV head: it finds the slot and copies a row of K and one of V."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.kv_append.op import AppendCase, work
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target


def plan(case: AppendCase, target: Target) -> tuple[int, int]:
    """Grid (H_kv, B). In bf16 a row of 128 elements gives each lane of one warp 8 bytes; more lanes would be idle."""
    return (case.H_kv, case.B)


@triton.jit
def append_kernel(
    k,  # [B, H_kv, D]
    v,
    kv,  # [2, pages, page, H_kv, D] or [2, pages, H_kv, page, D]
    block_table,  # [B, columns] int32
    lengths,  # [B] int32, -1 where nothing is written
    stride_k_b,
    stride_k_head,
    stride_v_b,
    stride_v_head,
    stride_kv_half,
    stride_kv_page,
    stride_kv_slot,
    stride_kv_head,
    stride_table_b,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    h, b = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + b)
    offs_d = tl.arange(0, BLOCK_D)
    mask = offs_d < tl.where(length >= 0, D, 0)
    if PAGE == 0:
        page = b
        slot = length
    else:
        page = tl.load(block_table + b * stride_table_b + tl.maximum(length, 0) // PAGE)
        slot = length % PAGE
    k_row = tl.load(k + b * stride_k_b + h * stride_k_head + offs_d, mask=mask)
    v_row = tl.load(v + b * stride_v_b + h * stride_v_head + offs_d, mask=mask)
    place = kv + page.to(tl.int64) * stride_kv_page + slot * stride_kv_slot + h * stride_kv_head + offs_d
    tl.store(place, k_row, mask=mask)
    tl.store(place + stride_kv_half, v_row, mask=mask)


def as_bits(x: torch.Tensor) -> torch.Tensor:
    """8-bit floats as bytes, so that a part that cannot compute with them can copy them."""
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x


def build(case: AppendCase, inputs: Inputs, target: Target) -> Built:
    k, v, kv = (as_bits(inputs[name]) for name in ("k", "v", "kv"))
    slot, head = (3, 2) if case.layout == "HND" else (2, 3)
    launch = KernelLaunch(
        kernel=append_kernel,
        grid=plan(case, target),
        args={
            "k": k,
            "v": v,
            "kv": kv,
            "block_table": inputs["block_table"],
            "lengths": inputs["lengths"],
            "stride_k_b": k.stride(0),
            "stride_k_head": k.stride(1),
            "stride_v_b": v.stride(0),
            "stride_v_head": v.stride(1),
            "stride_kv_half": kv.stride(0),
            "stride_kv_page": kv.stride(1),
            "stride_kv_slot": kv.stride(slot),
            "stride_kv_head": kv.stride(head),
            "stride_table_b": inputs["block_table"].stride(0),
        },
        constexprs={"PAGE": case.page, "D": case.D, "BLOCK_D": triton.next_power_of_2(case.D)},
        num_warps=1,
        num_stages=1,
        streams=("k", "v"),
        why_narrow="a row of 128 elements of 16 bits gives each lane of the only warp 8 bytes",
        why_few_in_flight="a step writes some KiB a sequence: the launch decides, not the memory",
    )
    return Built(launches=(launch,), output=inputs["kv"])


def stages(case: AppendCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes; the other heads find lengths and table entries in the L2. An SM holds at most 32 CTAs. A
    page is looked up behind the length."""
    heads, B = plan(case, target)
    again = (heads - 1) * 4 * (B + (B - case.idle if case.page else 0))
    return (
        Stage(
            name="append",
            work=work(case),
            l2_bytes=again,
            ctas=heads * B,
            ctas_per_sm=32,
            loads_before={"dram": 1} if case.page else {},
        ),
    )


IMPLS = (triton_impl(name="triton", build=build, stages=stages),)
