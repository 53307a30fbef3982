"""One CTA per 64 tokens of a KV head: look up their pages, then load 16 KiB of K and of V at once (D = 128, bf16).

The loads of a tile depend only on the table entries, not on each other. Several CTAs on an SM hide each other's
look-ups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.common.integers import next_power_of_2
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target, Tuning
from kernels.paged_read.op import CHUNK, PagedReadCase, table_bytes, work


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Grid (H_kv, chunks, B): in NHD the heads of a token lie side by side, so they are read together.

    The number of warps gives each thread 8 or 4 loads, and twice or four times as many for heads of 256 or 512 dims. An
    SM has 65536 registers. As compiled for sm_90, they hold 5 CTAs of 256 threads with up to 48 registers, 8 of 256
    threads with 32 (fp8), or 2 of 512 threads (fp32).
    """

    grid: tuple[int, int, int]
    ctas_per_sm: int
    num_warps: int


CTAS = {"fp8": (8, 6, 3), "fp32": (2, 1, 1)}
"""CTAs per SM for heads of up to 128, up to 256 and more dims; `CTAS_16` for 16 bits."""
CTAS_16 = (5, 3, 1)


def plan(case: PagedReadCase, target: Target) -> Plan:
    size = min(2, max(0, (case.D - 1).bit_length() - 7))
    fields = {"ctas_per_sm": CTAS.get(case.dtype, CTAS_16)[size], "num_warps": 16 if case.dtype == "fp32" else 8}
    fields |= target.overrides
    return Plan(grid=(case.H_kv, case.chunks, case.B), **fields)


def shape_class(case: PagedReadCase) -> str:
    """Cases of one class find the rows of a tile alike; pages of 16 tokens and more are alike."""
    return f"{f'page{min(case.page, 16)}' if case.page else 'contiguous'} D{case.D} {case.dtype}"


def candidates(case: PagedReadCase, target: Target) -> Iterator[dict[str, int]]:
    """Fewer threads with more loads each, or the reverse; CTAs per SM are those compiled for sm_90 in bf16."""
    for num_warps, ctas_per_sm in ((4, 7), (8, 5), (16, 4)):
        yield {"num_warps": num_warps, "ctas_per_sm": ctas_per_sm}


@triton.jit
def paged_read_kernel(
    k,  # [pages, page, H_kv, D] or [pages, H_kv, page, D]; [B, T, H_kv, D] where PAGE is 0
    v,
    block_table,  # [B, columns] int32
    lengths,  # [B] int32
    y,  # [B, chunks, H_kv] fp32
    stride_k_page,
    stride_k_slot,
    stride_k_head,
    stride_v_page,
    stride_v_slot,
    stride_v_head,
    stride_table_b,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """WIDTH is D, padded to a power of two; nothing is read for the padding."""
    h, chunk, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + b)
    offs_t = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    mask_t = offs_t < length
    if PAGE == 0:
        page = b.to(tl.int64)
        slot = offs_t
    else:
        page = tl.load(block_table + b * stride_table_b + offs_t // PAGE, mask=mask_t, other=0).to(tl.int64)
        slot = offs_t % PAGE
    offs_d = tl.arange(0, WIDTH)[None, :]
    mask = mask_t[:, None] if D == WIDTH else mask_t[:, None] & (offs_d < D)
    k_rows = k + page * stride_k_page + slot * stride_k_slot + h * stride_k_head
    v_rows = v + page * stride_v_page + slot * stride_v_slot + h * stride_v_head
    k_tile = tl.load(k_rows[:, None] + offs_d, mask=mask, other=0.0)
    v_tile = tl.load(v_rows[:, None] + offs_d, mask=mask, other=0.0)
    sums = tl.sum(k_tile.to(tl.float32) + v_tile.to(tl.float32))
    tl.store(y + (b * tl.num_programs(1) + chunk) * tl.num_programs(0) + h, sums)


def few(case: PagedReadCase, target: Target) -> str:
    """The reason why a tile has few bytes in flight; empty if there is none."""
    if case.dtype == "fp32":
        return "fp32 caches are read by the smoke suite, which is for hosts"
    if target.sm == 100 and not case.page:
        return "3 of a thread's 8 loads at once: 60 of the 64 KiB that sm_100 wants"
    return ""


def build(case: PagedReadCase, inputs: Inputs, target: Target) -> Built:
    chosen, k, v = plan(case, target), inputs["k"], inputs["v"]
    slot, head = (2, 1) if case.layout == "HND" else (1, 2)
    y = torch.empty(case.B, case.chunks, case.H_kv, device=k.device)
    launch = KernelLaunch(
        kernel=paged_read_kernel,
        grid=chosen.grid,
        args={
            "k": k,
            "v": v,
            "block_table": inputs["block_table"],
            "lengths": inputs["lengths"],
            "y": y,
            "stride_k_page": k.stride(0),
            "stride_k_slot": k.stride(slot),
            "stride_k_head": k.stride(head),
            "stride_v_page": v.stride(0),
            "stride_v_slot": v.stride(slot),
            "stride_v_head": v.stride(head),
            "stride_table_b": inputs["block_table"].stride(0),
        },
        constexprs={"PAGE": case.page, "D": case.D, "WIDTH": next_power_of_2(case.D), "BLOCK_T": CHUNK},
        num_warps=chosen.num_warps,
        num_stages=1,
        streams=("k", "v"),
        why_few_in_flight=few(case, target),
    )
    return Built(launches=(launch,), output=y)


def stages(case: PagedReadCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes. The other heads and chunks read the table and the lengths again, from the L2."""
    chosen = plan(case, target)
    heads, chunks, _ = chosen.grid
    again = (heads - 1) * table_bytes(case) + 4 * case.B * (heads * chunks - 1)
    return (
        Stage(
            name="read",
            work=work(case),
            l2_bytes=again,
            ctas=heads * chunks * case.B,
            ctas_per_sm=chosen.ctas_per_sm,
            # the length masks the look-up of pages, and pages give the addresses of rows
            loads_before={"dram": 2 if case.page else 1},
        ),
    )


def supports(case: PagedReadCase, target: Target) -> str | None:
    if case.dtype == "fp8" and target.kind == "cuda" and target.sm < 89:
        return f"fp8 conversion needs sm_89 or later, this part is sm_{target.sm}"
    return None


TUNING = Tuning(op="paged_read", shape_class=shape_class, candidates=candidates)
IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports, tuning=TUNING),)
