"""Each GPU reads the rows that it gets over the links, adds up those of one token, and writes them.

CTAs take tiles of rows in turns; the number of rows comes from memory, so one launch serves any routing up to the size
of y. How the GPUs meet: `kernels/common/ranks/triton_meet.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.all_to_all.op import AllToAllCase, most_from_others, rows_of, shape, work
from kernels.common.random_inputs import BYTES
from kernels.common.ranks.cases import NAMES, too_few, xs_of
from kernels.common.ranks.triton_meet import WHY_FEW, Meeting, Place, meet
from kernels.launch import KernelLaunch
from kernels.op import Inputs, Stage, Target, Work

WARPS = 4


@triton.jit
def gather_kernel(
    x0,  # [its rows, hidden] of each rank; those beyond the ranks are not used
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
    rows,  # [RANKS, height, RANKS] int32: by rank and row of its y, the row of each rank's x, or -1
    counts,  # [RANKS] int32: rows that each rank gets
    y,  # [height, hidden]
    height,
    hidden,
    rank,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    cta, ctas = tl.program_id(0), tl.num_programs(0)
    further = tl.program_id(1)  # 0 but for pretended ranks
    rank += further
    own += further * ctas * RANKS
    epochs += further * ctas
    y += further * height * hidden
    rows += rank * height * RANKS
    xs = (x0, x1, x2, x3, x4, x5, x6, x7)
    flags = (flags0, flags1, flags2, flags3, flags4, flags5, flags6, flags7)
    epoch = tl.load(epochs + cta)
    tiles = tl.cdiv(hidden, BLOCK)
    count = tl.load(counts + rank)
    meet(own, flags, cta, rank, 2 * epoch + 1, RANKS)
    for tile in range(cta, count * tiles, ctas):
        i = tile // tiles
        at = tile % tiles * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for r in tl.static_range(RANKS):
            row = tl.load(rows + i * RANKS + r)
            there = at < tl.where(row >= 0, hidden, 0)
            total += tl.load(xs[r] + row * hidden + at, mask=there, other=0.0).to(tl.float32)
        tl.store(y + i * hidden + at, total.to(y.dtype.element_ty), mask=at < hidden)
    meet(own, flags, cta, rank, 2 * epoch + 2, RANKS)
    tl.store(epochs + cta, epoch + 1)


def plan(case: AllToAllCase, target: Target) -> tuple[int, int]:
    """Elements of a tile, 16 bytes for each thread, and the CTAs: one for each tile, two an SM at most."""
    block = WARPS * 32 * 16 // BYTES[case.dtype]
    height, hidden = shape(case)
    return block, min(height * triton.cdiv(hidden, block), 2 * target.sm_count)


def ctas(case: AllToAllCase, target: Target) -> int:
    return plan(case, target)[1]


def launch_of(case: AllToAllCase, inputs: Inputs, target: Target, where: Place) -> KernelLaunch:
    """The kernel of one rank, or of all."""
    block, ctas = plan(case, target)
    return KernelLaunch(
        kernel=gather_kernel,
        grid=(ctas, where.ranks),
        args={
            **where.args(xs_of(case, inputs)),
            "rows": inputs["rows"].to(where.y.device),
            "counts": inputs["counts"].to(where.y.device),
            "height": shape(case)[0],
            "hidden": case.hidden,
        },
        constexprs={"RANKS": case.ranks, "BLOCK": block},
        num_warps=WARPS,
        streams=NAMES[: case.ranks],
        why_narrow="the rows are no multiple of 16 elements: they begin anywhere" if case.hidden % 16 else "",
        why_few_in_flight=WHY_FEW,
    )


def stages(case: AllToAllCase, target: Target) -> tuple[Stage, ...]:
    """Of the rank that gets the most: what it has is read once from its memory, and the others' rows cross the links.
    The list is waited for before the rows."""
    least, (_, grid) = work(case), plan(case, target)
    most = max(len(rows_of(case, r)) for r in range(case.ranks))
    done = Work(
        flops={"fma_fp32": case.ranks * most * case.hidden},
        bytes_read=least.bytes_read + 4 * (case.ranks - 1) * most,
        bytes_written=least.bytes_written,
    )
    return (
        Stage(
            name="read and add",
            work=done,
            peer_bytes=most_from_others(case),
            ctas=grid,
            ctas_per_sm=4,
            loads_before={"dram": 1},
        ),
    )


MEETING = Meeting(launch_of=launch_of, ctas=ctas, shape=shape, ranks_differ=True)

IMPLS = (MEETING.impl("triton", stages, too_few),)
