"""Reads, copies and triads at the rate of the memory: 16 bytes a thread and load, many loads in flight. And a chase,
whose loads come one after the other.

By Little's law, 3.35 TB/s x about 0.7 us of latency need 2.3 MB in flight: 18 KB on each of an H100's 132 SMs. Only a
measurement tells which way of reading is best on a part. So there are three, and the best of them is the roof:

- `triton`: one CTA of 128 threads per chunk. Each thread has 8 independent 16-byte loads, and the compiler starts 4 of
  them before it waits. 16 such CTAs keep 128 KB of an SM in flight, and the hardware balances the SMs
- `triton-async`: persistent CTAs; `cp.async` brings the next chunks to shared memory
- `triton-tma`: the same, but the tensor memory accelerator (sm_90) brings the chunks
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.common.integers import MiB
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target, Tuning
from kernels.stream.op import ALPHA, CHUNK, LINE, SECTOR, StreamCase, work

TMA_ROW = 32
"""Elements of a row of the array as TMA sees it: 128 bytes, the widest swizzle. A chunk is then one box of 128 rows (at
most 256, CUDA driver API, `cuTensorMapEncodeTiled`), which is contiguous in memory and comes with one instruction."""

RESIDENT = {
    "read": {2: 32, 4: 16, 8: 8, 16: 4},
    "copy": {2: 10, 4: 10, 8: 8, 16: 4},
    "triad": {2: 8, 4: 9, 8: 6, 16: 4},
    "l2_read": {2: 24, 4: 12, 8: 6, 16: 4},
}
"""For each number of warps, the CTAs that fit an SM's 65536 registers and 2048 threads, as compiled for sm_90. With 4
warps the kinds take 32, 45, 54 and 34 registers a thread."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`ctas` CTAs; `ctas_per_sm` of them are resident on an SM."""

    ctas: int
    ctas_per_sm: int
    num_warps: int = 4
    num_stages: int = 1


def plan(case: StreamCase, target: Target) -> Plan:
    """One CTA of 4 warps per chunk; one of a single warp per chain."""
    if case.kind == "launch":
        return Plan(ctas=1, ctas_per_sm=1, num_warps=1)
    if case.kind == "chase":
        return Plan(ctas=case.chains, ctas_per_sm=1, num_warps=1)
    fields = {"num_warps": 4} | target.overrides
    return Plan(ctas=case.chunks, ctas_per_sm=RESIDENT[case.kind][fields["num_warps"]], **fields)


def buffers(num_stages: int) -> int:
    """Bytes of shared memory of a persistent CTA: a chunk for each stage but one, 2 KiB for barriers, sums, driver."""
    return (num_stages - 1) * 4 * CHUNK + (2 << 10)


def plan_persistent(case: StreamCase, target: Target) -> Plan:
    """Up to 4 CTAs per SM, as many as fit. Each has 4 stages, which keep 3 chunks (48 KiB) in flight: up to 192 KB."""
    reasoned = {"ctas_per_sm": max(1, min(4, target.smem_per_sm // buffers(4))), "num_warps": 4, "num_stages": 4}
    fields = reasoned | target.overrides
    return Plan(ctas=min(case.chunks, fields["ctas_per_sm"] * target.sm_count), **fields)


def shape_class(case: StreamCase) -> str:
    """Small cases are apart: below 12 MiB an SM of an H100 reads fewer than 6 chunks, and latency decides."""
    return case.kind if case.size >= 12 * MiB else f"{case.kind} small"


def candidates(case: StreamCase, target: Target) -> Iterator[dict[str, int]]:
    """Fewer threads with more loads each, or the reverse."""
    if case.kind in RESIDENT:
        for num_warps in RESIDENT[case.kind]:
            yield {"num_warps": num_warps}


def candidates_persistent(case: StreamCase, target: Target) -> Iterator[dict[str, int]]:
    """Ways to divide an SM's shared memory into CTAs and stages that leave at most half of it unused."""
    for ctas_per_sm in (1, 2, 3, 4, 6):
        for num_stages in (3, 4, 5, 6, 8, 12, 14):
            if target.smem_per_sm // 2 <= ctas_per_sm * buffers(num_stages) <= target.smem_per_sm:
                for num_warps in (4, 8):
                    yield {"ctas_per_sm": ctas_per_sm, "num_stages": num_stages, "num_warps": num_warps}


@triton.jit
def read_kernel(x, y, n, CHUNK: tl.constexpr):
    """y[c] = sum(x[c * CHUNK : (c + 1) * CHUNK]), one CTA per chunk. x [n], y [C], fp32."""
    chunk = tl.program_id(0)
    offs = chunk * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(x + offs, mask=offs < n, other=0.0)
    tl.store(y + chunk, tl.sum(values))


@triton.jit
def read_async_kernel(x, y, n, chunks, CHUNK: tl.constexpr, STAGES: tl.constexpr):
    """The same by persistent CTAs; each takes every `num_programs`-th chunk."""
    for chunk in tl.range(tl.program_id(0), chunks, tl.num_programs(0), num_stages=STAGES):
        offs = chunk * CHUNK + tl.arange(0, CHUNK)
        values = tl.load(x + offs, mask=offs < n, other=0.0)
        tl.store(y + chunk, tl.sum(values))


@triton.jit
def read_tma_kernel(x_desc, y, chunks, ROWS: tl.constexpr, STAGES: tl.constexpr):
    """The same through a descriptor of x as [n / 32, 32], with boxes of ROWS = 128 rows."""
    for chunk in tl.range(tl.program_id(0), chunks, tl.num_programs(0), num_stages=STAGES):
        values = x_desc.load([chunk * ROWS, 0])
        tl.store(y + chunk, tl.sum(values))


@triton.jit
def copy_kernel(x, y, n, BLOCK: tl.constexpr):
    """y = x. Both [n] fp32."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    tl.store(y + offs, tl.load(x + offs, mask=mask), mask=mask)


@triton.jit
def triad_kernel(x, y, z, n, ALPHA: tl.constexpr, BLOCK: tl.constexpr):
    """z = x + ALPHA y. All [n] fp32."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    values = tl.load(x + offs, mask=mask) + ALPHA * tl.load(y + offs, mask=mask)
    tl.store(z + offs, values, mask=mask)


@triton.jit
def l2_read_kernel(x, y, chunks, PASSES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y[c] = sum over p < PASSES of sum(chunk (c + p) mod chunks).

    `.cg` keeps the lines out of the L1, which would else hold an SM's share of the array; another chunk each
    time keeps the loads from being moved out of the loop. A chunk is [ROWS, COLUMNS] with each column in one thread,
    so that a pass ends without any exchange.
    """
    start = tl.program_id(0)
    offs = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros([COLUMNS], tl.float32)
    for p in range(PASSES):
        chunk = (start + p) % chunks
        values = tl.load(x + chunk * ROWS * COLUMNS + offs, cache_modifier=".cg")
        total += tl.sum(values, axis=0)
    tl.store(y + start, tl.sum(total))


@triton.jit
def launch_kernel(x, y):
    """y[0] = x[0]."""
    tl.store(y, tl.load(x))


@triton.jit
def chase_kernel(x, y, loads, LINE: tl.constexpr, CACHE: tl.constexpr):
    """y[c] = where `loads` steps at <- x[at] lead from the first element of line c. x [n], y [C], int32."""
    at = tl.program_id(0) * LINE
    for _ in range(loads):
        at = tl.load(x + at, cache_modifier=CACHE)
    tl.store(y + tl.program_id(0), at)


def few(chosen: Plan, target: Target) -> str:
    """Why a read of fewer chunks than SMs has few bytes in flight. Nothing excuses a larger read."""
    return f"{chosen.ctas} chunks leave SMs without any" if chosen.ctas < target.sm_count else ""


def build(case: StreamCase, inputs: Inputs, target: Target) -> Built:
    """One CTA per chunk or chain, for every kind."""
    chosen, x = plan(case, target), inputs["x"]
    streams: tuple[str, ...] = ("x",)
    constexprs: dict[str, int | float | str]
    if case.kind == "launch":
        out = torch.empty_like(x)
        kernel, args, constexprs, streams = launch_kernel, {"x": x, "y": out}, {}, ()
    elif case.kind == "copy":
        out = torch.empty_like(x)
        kernel, args, constexprs = copy_kernel, {"x": x, "y": out, "n": case.n}, {"BLOCK": CHUNK}
    elif case.kind == "triad":
        out = torch.empty_like(x)
        args = {"x": x, "y": inputs["y"], "z": out, "n": case.n}
        kernel, constexprs, streams = triad_kernel, {"ALPHA": ALPHA, "BLOCK": CHUNK}, ("x", "y")
    elif case.kind == "l2_read":
        out = torch.empty(case.chunks, device=x.device)
        args = {"x": x, "y": out, "chunks": case.chunks}
        columns = 4 * 32 * chosen.num_warps
        constexprs = {"PASSES": case.passes, "ROWS": CHUNK // columns, "COLUMNS": columns}
        kernel = l2_read_kernel
    elif case.kind == "chase":
        out = torch.empty(case.chains, dtype=x.dtype, device=x.device)
        args = {"x": x, "y": out, "loads": case.loads}
        kernel, constexprs = chase_kernel, {"LINE": LINE, "CACHE": "" if case.l1 else ".cg"}
    else:
        out = torch.empty(case.chunks, device=x.device)
        kernel, args, constexprs = read_kernel, {"x": x, "y": out, "n": case.n}, {"CHUNK": CHUNK}
    launch = KernelLaunch(
        kernel=kernel,
        grid=(chosen.ctas,),
        args=args,
        constexprs=constexprs,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        streams=streams,
        why_narrow="a chain needs one element of a line, the place of the next" if case.kind == "chase" else "",
        why_few_in_flight={
            "launch": "it moves one element",
            "chase": "each load waits for the load before it",
            "l2_read": "the L2 answers sooner than the memory for which the need is computed",
        }.get(case.kind, few(chosen, target)),
    )
    return Built(launches=(launch,), output=out)


def build_async(case: StreamCase, inputs: Inputs, target: Target) -> Built:
    chosen, x = plan_persistent(case, target), inputs["x"]
    out = torch.empty(case.chunks, device=x.device)
    launch = KernelLaunch(
        kernel=read_async_kernel,
        grid=(chosen.ctas,),
        args={"x": x, "y": out, "n": case.n, "chunks": case.chunks},
        constexprs={"CHUNK": CHUNK, "STAGES": chosen.num_stages},
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        streams=("x",),
        why_few_in_flight=few(chosen, target),
    )
    return Built(launches=(launch,), output=out)


def build_tma(case: StreamCase, inputs: Inputs, target: Target) -> Built:
    chosen, x = plan_persistent(case, target), inputs["x"]
    out = torch.empty(case.chunks, device=x.device)
    rows = CHUNK // TMA_ROW
    launch = KernelLaunch(
        kernel=read_tma_kernel,
        grid=(chosen.ctas,),
        args={
            "x_desc": TensorDescriptor.from_tensor(x.view(-1, TMA_ROW), [rows, TMA_ROW]),
            "y": out,
            "chunks": case.chunks,
        },
        constexprs={"ROWS": rows, "STAGES": chosen.num_stages},
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        streams=("x_desc",),
        why_few_in_flight=few(chosen, target),
    )
    return Built(launches=(launch,), output=out)


def stages(case: StreamCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes; a cache serves all passes of an `l2_read` or a `chase` but the first."""
    chosen = plan(case, target)
    again = case.chains * case.loads - case.lines_met
    row = (
        {"dram": case.lines_met // case.chains, "l1" if case.l1 else "l2": again // case.chains} if case.chains else {}
    )
    return (
        Stage(
            name=case.kind,
            work=work(case),
            l2_bytes=SECTOR * again if case.kind == "chase" else (case.passes - 1) * case.size,
            ctas=chosen.ctas,
            ctas_per_sm=chosen.ctas_per_sm,
            loads_before=row,
        ),
    )


def stages_persistent(case: StreamCase, target: Target) -> tuple[Stage, ...]:
    chosen = plan_persistent(case, target)
    return (Stage(name="read", work=work(case), ctas=chosen.ctas, ctas_per_sm=chosen.ctas_per_sm),)


def supports(case: StreamCase, target: Target) -> str | None:
    return "a GPU hides arithmetic behind its loads: an fma_read is for hosts" if case.kind == "fma_read" else None


def only_reads(case: StreamCase, target: Target) -> str | None:
    return None if case.kind == "read" else f"another way to read; a {case.kind} has one implementation"


def tma_reads(case: StreamCase, target: Target) -> str | None:
    if target.sm < 90:
        return f"the tensor memory accelerator needs sm_90 or later, this part is sm_{target.sm}"
    if case.n % CHUNK:
        return f"a descriptor describes whole chunks of {CHUNK} elements, {case.n} is no multiple"
    return only_reads(case, target)


PERSISTENT = Tuning(op="stream", shape_class=shape_class, candidates=candidates_persistent)

IMPLS = (
    triton_impl(
        name="triton",
        build=build,
        stages=stages,
        supports=supports,
        tuning=Tuning(op="stream", shape_class=shape_class, candidates=candidates),
    ),
    triton_impl(
        name="triton-async",
        build=build_async,
        stages=stages_persistent,
        supports=only_reads,
        tuning=PERSISTENT,
    ),
    triton_impl(
        name="triton-tma",
        build=build_tma,
        stages=stages_persistent,
        supports=tma_reads,
        tuning=PERSISTENT,
    ),
)
