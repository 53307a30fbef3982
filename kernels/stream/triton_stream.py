"""Reads, copies and triads at the rate of the memory: 16 bytes a thread and load, many loads in flight.

By Little's law 3.35 TB/s x about 0.7 us of latency keep 2.3 MB in flight, 18 KB on each of an H100's 132 SMs.
There are three ways to get there for the read, since which is best on a part is known only after measuring; the
roof is the best of them:

- `triton`: one CTA of 128 threads per chunk, 8 independent 16-byte loads a thread, of which the compiler starts 4
  before it waits; 16 such CTAs keep 128 KB of an SM in flight, and the hardware balances the SMs
- `triton-async`: persistent CTAs, the next chunks on their way to shared memory by `cp.async`
- `triton-tma`: the same, brought by the tensor memory accelerator (sm_90)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Inputs, Stage, Target
from kernels.stream.op import ALPHA, CHUNK, StreamCase, work

TMA_ROW = 256
"""Elements of a row of the array as TMA sees it: a box has at most 256 elements in each dimension (CUDA
driver API, `cuTensorMapEncodeTiled`), so that a chunk is a box of 16 rows."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`ctas` CTAs, of which `ctas_per_sm` are resident on an SM."""

    ctas: int
    ctas_per_sm: int
    num_warps: int = 4
    num_stages: int = 1


def plan(case: StreamCase, target: Target) -> Plan:
    """One CTA per chunk: 2048 threads of an SM hold 16 CTAs of 4 warps."""
    if case.kind == "launch":
        return Plan(ctas=1, ctas_per_sm=1, num_warps=1)
    return Plan(ctas=case.chunks, ctas_per_sm=16)


def plan_persistent(case: StreamCase, target: Target) -> Plan:
    """As many CTAs as find room, at most 4, each with 3 chunks (48 KiB) of shared memory: up to 192 KB an SM.

    A pipeline of `num_stages` = 4 has 3 buffers; 50 KiB leave room for barriers, sums and the driver's share.
    """
    ctas_per_sm = max(1, min(4, target.smem_per_sm // (50 << 10)))
    return Plan(ctas=min(case.chunks, ctas_per_sm * target.sm_count), ctas_per_sm=ctas_per_sm, num_stages=4)


@triton.jit
def read_kernel(x, y, n, CHUNK: tl.constexpr):
    """y[c] = sum(x[c * CHUNK : (c + 1) * CHUNK]), one CTA per chunk. x [n], y [C], fp32."""
    chunk = tl.program_id(0)
    offs = chunk * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(x + offs, mask=offs < n, other=0.0)
    tl.store(y + chunk, tl.sum(values))


@triton.jit
def read_async_kernel(x, y, n, chunks, CHUNK: tl.constexpr, STAGES: tl.constexpr):
    """The same by persistent CTAs, each taking every `num_programs`-th chunk."""
    for chunk in tl.range(tl.program_id(0), chunks, tl.num_programs(0), num_stages=STAGES):
        offs = chunk * CHUNK + tl.arange(0, CHUNK)
        values = tl.load(x + offs, mask=offs < n, other=0.0)
        tl.store(y + chunk, tl.sum(values))


@triton.jit
def read_tma_kernel(x_desc, y, chunks, ROWS: tl.constexpr, STAGES: tl.constexpr):
    """The same through a descriptor of x as [n / 256, 256], with boxes of ROWS = 16 rows."""
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


def build(case: StreamCase, inputs: Inputs, target: Target) -> Built:
    """Every kind, a chunk per CTA."""
    chosen, x = plan(case, target), inputs["x"]
    streams: tuple[str, ...] = ("x",)
    constexprs: dict[str, int | float]
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
        why_few_in_flight="it moves one element" if case.kind == "launch" else "",
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
    )
    return Built(launches=(launch,), output=out)


def stages(case: StreamCase, target: Target) -> tuple[Stage, ...]:
    """The compulsory bytes; all but the first pass of an `l2_read` come from the L2."""
    chosen = plan(case, target)
    return (
        Stage(
            name=case.kind,
            work=work(case),
            l2_bytes=(case.passes - 1) * case.size,
            ctas=chosen.ctas,
            ctas_per_sm=chosen.ctas_per_sm,
        ),
    )


def stages_persistent(case: StreamCase, target: Target) -> tuple[Stage, ...]:
    chosen = plan_persistent(case, target)
    return (Stage(name="read", work=work(case), ctas=chosen.ctas, ctas_per_sm=chosen.ctas_per_sm),)


def only_reads(case: StreamCase, target: Target) -> str | None:
    return None if case.kind == "read" else f"another way to read; a {case.kind} has one implementation"


def tma_reads(case: StreamCase, target: Target) -> str | None:
    if target.sm < 90:
        return f"the tensor memory accelerator needs sm_90 or later, this part is sm_{target.sm}"
    if case.n % CHUNK:
        return f"a descriptor describes whole chunks of {CHUNK} elements, {case.n} is no multiple"
    return only_reads(case, target)


IMPLS = (
    triton_impl(name="triton", build=build, stages=stages),
    triton_impl(name="triton-async", build=build_async, stages=stages_persistent, supports=only_reads),
    triton_impl(name="triton-tma", build=build_tma, stages=stages_persistent, supports=tma_reads),
)
