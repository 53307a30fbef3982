"""One shot: each GPU reads what all GPUs hold over their links, adds it up, and writes its own sum.

How the GPUs meet: `kernels/common/ranks/triton_meet.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.all_reduce.op import ReduceCase, adds_only, one_shot
from kernels.common.random_inputs import BYTES
from kernels.common.ranks.cases import NAMES, xs_of
from kernels.common.ranks.triton_meet import WHY_FEW, Meeting, Place, meet
from kernels.launch import KernelLaunch
from kernels.op import Inputs, Stage, Target

WARPS = 8


@triton.jit
def one_shot_kernel(
    x0,  # [elements] of each rank; those beyond the ranks are not used
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
    y,  # [elements]
    elements,
    rank,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    cta, ctas = tl.program_id(0), tl.num_programs(0)
    further = tl.program_id(1)  # 0 but for pretended ranks
    rank += further
    own += further * ctas * RANKS
    epochs += further * ctas
    y += further * elements
    xs = (x0, x1, x2, x3, x4, x5, x6, x7)
    flags = (flags0, flags1, flags2, flags3, flags4, flags5, flags6, flags7)
    epoch = tl.load(epochs + cta)
    meet(own, flags, cta, rank, 2 * epoch + 1, RANKS)
    for begin in range(cta * BLOCK, elements, ctas * BLOCK):
        at = begin + tl.arange(0, BLOCK)
        mask = at < elements
        total = tl.load(x0 + at, mask=mask, other=0.0).to(tl.float32)
        for r in tl.static_range(1, RANKS):
            total += tl.load(xs[r] + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(y + at, total.to(y.dtype.element_ty), mask=mask)
    meet(own, flags, cta, rank, 2 * epoch + 2, RANKS)
    tl.store(epochs + cta, epoch + 1)


def plan(case: ReduceCase, target: Target) -> tuple[int, int]:
    """Elements of a tile, 16 bytes of each rank for each thread, and the CTAs: one for each tile, one an SM at most."""
    block = WARPS * 32 * 16 // BYTES[case.dtype]
    return block, min(triton.cdiv(case.elements, block), target.sm_count)


def launch_of(case: ReduceCase, inputs: Inputs, target: Target, where: Place) -> KernelLaunch:
    """The kernel of one rank, or of all."""
    block, ctas = plan(case, target)
    return KernelLaunch(
        kernel=one_shot_kernel,
        grid=(ctas, where.ranks),
        args={
            **where.args(xs_of(case, inputs)),
            "elements": case.elements,
        },
        constexprs={"RANKS": case.ranks, "BLOCK": block},
        num_warps=WARPS,
        streams=NAMES[: case.ranks],
        why_narrow="the last 16 bytes are not whole" if case.elements % 16 else "",
        why_few_in_flight=WHY_FEW,
    )


def stages(case: ReduceCase, target: Target) -> tuple[Stage, ...]:
    """Of one rank: its own x from its memory, the others' over the link. Two barriers: a write and a read of flags."""
    work = one_shot(case)
    ctas = plan(case, target)[1]
    return (Stage(name="read and add", work=work, peer_bytes=(case.ranks - 1) * case.size, ctas=ctas, ctas_per_sm=2),)


def ctas(case: ReduceCase, target: Target) -> int:
    return plan(case, target)[1]


MEETING = Meeting(launch_of=launch_of, ctas=ctas, shape=lambda case: (case.B, case.hidden))

IMPLS = (MEETING.impl("triton-one-shot", stages, adds_only),)
