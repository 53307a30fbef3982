"""One shot with the residual and the norm: CTA c adds up rows c, c + CTAs, ... of all GPUs and the residual, and
normalizes them.

A row stays in registers between the sum and the norm, so nothing but h and y is written. The ranks meet before the
first row and after the last one: see `kernels/common/ranks/triton_meet.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.all_reduce.op import EPSILON, ReduceCase, one_shot
from kernels.common.random_inputs import BYTES
from kernels.common.ranks.cases import NAMES, too_few, xs_of
from kernels.common.ranks.triton_meet import WHY_FEW, Meeting, Place, meet
from kernels.launch import KernelLaunch
from kernels.op import Inputs, Stage, Target


@triton.jit
def fused_kernel(
    x0,  # [B, D] of each rank; those beyond the ranks are not used
    x1,
    x2,
    x3,
    x4,
    x5,
    x6,
    x7,
    flags0,  # [CTAs, RANKS] int32 in the memory of each rank
    flags1,
    flags2,
    flags3,
    flags4,
    flags5,
    flags6,
    flags7,
    own,  # the flags of this rank
    epochs,  # [CTAs] int32: launches so far
    residual,  # [B, D]
    w,  # [D]
    y,  # [2 B, D]: y, then h
    B,
    D,
    rank,
    RANKS: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    cta, ctas = tl.program_id(0), tl.num_programs(0)
    further = tl.program_id(1)  # 0 but for pretended ranks
    rank += further
    own += further * ctas * RANKS
    epochs += further * ctas
    y += further * 2 * B * D
    xs = (x0, x1, x2, x3, x4, x5, x6, x7)
    flags = (flags0, flags1, flags2, flags3, flags4, flags5, flags6, flags7)
    offs_d = tl.arange(0, BLOCK_D)
    mask = offs_d < D
    scale = tl.load(w + offs_d, mask=mask, other=0.0).to(tl.float32)
    epoch = tl.load(epochs + cta)
    meet(own, flags, cta, rank, 2 * epoch + 1, RANKS)
    for b in range(cta, B, ctas):
        at = b * D + offs_d
        h = tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
        for r in tl.static_range(RANKS):
            h += tl.load(xs[r] + at, mask=mask, other=0.0).to(tl.float32)
        h = h.to(y.dtype.element_ty)
        tl.store(y + B * D + at, h, mask=mask)
        h = h.to(tl.float32)
        factor = tl.rsqrt(tl.sum(h * h) / D + EPSILON)
        tl.store(y + at, (h * factor * scale).to(y.dtype.element_ty), mask=mask)
    meet(own, flags, cta, rank, 2 * epoch + 2, RANKS)
    tl.store(epochs + cta, epoch + 1)


def launch_of(case: ReduceCase, inputs: Inputs, target: Target, where: Place) -> KernelLaunch:
    """The kernel of one rank, or of all."""
    block = triton.next_power_of_2(case.hidden)
    return KernelLaunch(
        kernel=fused_kernel,
        grid=(ctas(case, target), where.ranks),
        args={
            **where.args(xs_of(case, inputs)),
            "residual": inputs["residual"].to(where.y.device),
            "w": inputs["w"].to(where.y.device),
            "B": case.B,
            "D": case.hidden,
        },
        constexprs={"RANKS": case.ranks, "EPSILON": EPSILON, "BLOCK_D": block},
        num_warps=max(1, min(16, block // 256)),
        max_registers=128,
        streams=(*NAMES[: case.ranks], "residual"),
        why_narrow="the rows are no multiple of 16 elements: they begin anywhere" if case.hidden % 16 else "",
        why_few_in_flight=WHY_FEW,
    )


def ctas(case: ReduceCase, target: Target) -> int:
    """One for each row, one an SM at most: all of a rank run at the same time, whatever order they start in."""
    return min(case.B, target.sm_count)


def stages(case: ReduceCase, target: Target) -> tuple[Stage, ...]:
    """Of one rank, as without the norm; the other CTAs find w in the L2."""
    count = ctas(case, target)
    again = (count - 1) * case.hidden * BYTES[case.dtype]
    sent = (case.ranks - 1) * case.size
    return (Stage(name="read, add and norm", work=one_shot(case), l2_bytes=again, peer_bytes=sent, ctas=count),)


def supports(case: ReduceCase, target: Target) -> str | None:
    if not case.fused:
        return "needs a residual and a norm behind the sum"
    if case.hidden > 1 << 14:
        return f"holds a row in registers: hidden at most 16,384, not {case.hidden}"
    return too_few(case, target)


MEETING = Meeting(launch_of=launch_of, ctas=ctas, shape=lambda case: (2 * case.B, case.hidden))

IMPLS = (MEETING.impl("triton-fused", stages, supports),)
