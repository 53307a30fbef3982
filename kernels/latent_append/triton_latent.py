"""One CTA of one warp per sequence and head, and one more per sequence that norms and writes its latent and key."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.latent_append.op import LatentCase, cache_of, q_of, work
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target


@triton.jit
def turned(row, other, angle, offs_r, mask, R: tl.constexpr):
    """R values of which those at distance R/2 are pairs; `other` are the other ones of each pair."""
    cos = tl.load(angle + offs_r % (R // 2), mask=mask, other=1.0)
    sin = tl.load(angle + R // 2 + offs_r % (R // 2), mask=mask, other=0.0)
    return row * cos + tl.where(offs_r < R // 2, -other, other) * sin


@triton.jit
def latent_kernel(
    q,  # [B, H, D + R]
    kv,  # [B, L + R]
    q_rope,  # [B, H, R]
    cache,  # [pages, page, L + R]
    weight,  # [L]
    rotations,  # [T, R] fp32
    block_table,  # [B, columns] int32
    lengths,  # [B] int32
    H,
    stride_q_b,
    stride_kv_b,
    stride_cache_page,
    stride_table_b,
    EPSILON: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    h, b = tl.program_id(0), tl.program_id(1)
    position = tl.load(lengths + b)
    offs_r = tl.arange(0, BLOCK_R)
    mask = offs_r < R
    first = q + b * stride_q_b + h * (D + R) + D
    if h == H:
        first = kv + b * stride_kv_b + L
    row = tl.load(first + offs_r, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(first + (offs_r + R // 2) % R, mask=mask, other=0.0).to(tl.float32)
    value = turned(row, other, rotations + position * R, offs_r, mask, R).to(q_rope.dtype.element_ty)
    if h < H:
        tl.store(q_rope + (b * H + h) * R + offs_r, value, mask=mask)
    else:
        if PAGE == 0:
            page, slot = b, position
        else:
            page, slot = tl.load(block_table + b * stride_table_b + position // PAGE), position % PAGE
        to = cache + page.to(tl.int64) * stride_cache_page + slot * (L + R)
        tl.store(to + L + offs_r, value, mask=mask)
        offs_l = tl.arange(0, BLOCK_L)
        mask_l = offs_l < L
        latent = tl.load(kv + b * stride_kv_b + offs_l, mask=mask_l, other=0.0).to(tl.float32)
        factor = tl.rsqrt(tl.sum(latent * latent) / L + EPSILON)
        latent = latent * factor * tl.load(weight + offs_l, mask=mask_l, other=0.0).to(tl.float32)
        tl.store(to + offs_l, latent.to(cache.dtype.element_ty), mask=mask_l)


def build(case: LatentCase, inputs: Inputs, target: Target) -> Built:
    memory, kv, table = inputs["memory"], inputs["kv"], inputs["block_table"]
    cache = cache_of(case, memory)
    launch = KernelLaunch(
        kernel=latent_kernel,
        grid=(case.H + 1, case.B),
        args={
            "q": inputs["q"],
            "kv": kv,
            "q_rope": q_of(case, memory),
            "cache": cache,
            "weight": inputs["weight"],
            "rotations": inputs["rotations"],
            "block_table": table,
            "lengths": inputs["lengths"],
            "H": case.H,
            "stride_q_b": inputs["q"].stride(0),
            "stride_kv_b": kv.stride(0),
            "stride_cache_page": cache.stride(0),
            "stride_table_b": table.stride(0),
        },
        constexprs={
            "EPSILON": case.epsilon,
            "PAGE": case.page,
            "D": case.D,
            "L": case.L,
            "R": case.R,
            "BLOCK_L": triton.next_power_of_2(case.L),
            "BLOCK_R": triton.next_power_of_2(case.R),
        },
        num_warps=1,
        num_stages=1,
        streams=("q",),
        why_narrow="a rotary part of 64 elements gives each lane of the only warp 4 bytes",
        why_few_in_flight="a step has some KiB of rotary parts a sequence: the launch decides, not the memory",
    )
    return Built(launches=(launch,), output=memory)


def stages(case: LatentCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes. The heads of a token find its angles in the L2. A CTA waits for its position, then for the
    angles or the page."""
    again = 4 * case.R * case.B * case.H
    ctas = case.B * (case.H + 1)
    return (
        Stage(name="latents", work=work(case), l2_bytes=again, ctas=ctas, ctas_per_sm=32, loads_before={"dram": 1}),
    )


IMPLS = (triton_impl(name="triton", build=build, stages=stages),)
