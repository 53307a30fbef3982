"""One shot: each GPU reads what all GPUs hold over their links, adds it up, and writes its own sum.

CTA c of a rank works on the same elements as CTA c of all other ranks, so only these meet: before they read, and before
they end, since then a rank may change its x. A CTA writes a number into a flag in the memory of each peer, and waits
until the flags in its own memory have that number too. The number grows with each launch (`epochs`), so a CUDA graph
can replay it.

A launch is one rank, with a grid of (CTAs, 1). A grid of (CTAs, n) is n ranks on one part, for tests: `pretended`.
Where the peers are not there (interpreted, or compiled only), the flags hold numbers that no launch waits for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels.all_reduce.gpus import AllGpus
from kernels.all_reduce.op import MOST_RANKS, NAMES, ReduceCase, one_shot, too_few
from kernels.common.random_inputs import BYTES
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Impl, Inputs, Launch, Stage, Target

WARPS = 8
ARRIVED = 1 << 30
"""The number in the flags where peers are not waited for."""


@triton.jit
def meet(own, flags, cta, rank, number, RANKS: tl.constexpr):
    """Tell all ranks that this one has come, then wait until they have. `own` and `flags` are [CTAs, RANKS]."""
    tl.debug_barrier()
    for q in tl.static_range(RANKS):
        tl.atomic_xchg(flags[q] + cta * RANKS + rank, number, sem="release", scope="sys")
    for q in tl.static_range(RANKS):
        seen = tl.atomic_add(own + cta * RANKS + q, 0, sem="acquire", scope="sys")
        while seen < number:
            seen = tl.atomic_add(own + cta * RANKS + q, 0, sem="acquire", scope="sys")
    tl.debug_barrier()


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


def launch_of(
    case: ReduceCase,
    inputs: Inputs,
    target: Target,
    *,
    rank: int,
    flags: Sequence[torch.Tensor],
    y: torch.Tensor,
    ranks: int = 1,
) -> KernelLaunch:
    """The kernel of one rank, or of so many from this one on; y is [ranks, B, hidden] then."""
    block, ctas = plan(case, target)

    def all_of(of_ranks: Sequence[torch.Tensor], name: str) -> dict[str, torch.Tensor]:
        padded = [*of_ranks, *[of_ranks[0]] * (MOST_RANKS - case.ranks)]
        return {f"{name}{r}": each for r, each in enumerate(padded)}

    return KernelLaunch(
        kernel=one_shot_kernel,
        grid=(ctas, ranks),
        args={
            **all_of([inputs[name] for name in NAMES[: case.ranks]], "x"),
            **all_of(flags, "flags"),
            "own": flags[rank],
            "epochs": torch.zeros(ranks * ctas, dtype=torch.int32, device=y.device),
            "y": y,
            "elements": case.elements,
            "rank": rank,
        },
        constexprs={"RANKS": case.ranks, "BLOCK": block},
        num_warps=WARPS,
        streams=NAMES[: case.ranks],
        why_narrow="the last 16 bytes are not whole" if case.elements % 16 else "",
        why_few_in_flight="a message of decode is small: the latency of the link decides, not its bytes in flight",
    )


def build(case: ReduceCase, inputs: Inputs, target: Target) -> Built:
    """Rank 0 alone, its peers taken to have arrived."""
    x = inputs["x0"]
    shape = (plan(case, target)[1], case.ranks)
    flags = [torch.full(shape, ARRIVED, dtype=torch.int32, device=x.device) for _ in range(case.ranks)]
    y = torch.empty_like(x)
    return Built(launches=(launch_of(case, inputs, target, rank=0, flags=flags, y=y),), output=y)


def pretended(case: ReduceCase, inputs: Inputs, target: Target) -> Built:
    """All ranks in one launch on one part, where they wait for each other. All CTAs must run at the same time."""
    device, shape = inputs["x0"].device, (case.ranks, plan(case, target)[1], case.ranks)
    flags = torch.zeros(shape, dtype=torch.int32, device=device)
    y = torch.empty(case.ranks, case.B, case.hidden, dtype=inputs["x0"].dtype, device=device)
    launch = launch_of(case, inputs, target, rank=0, flags=[*flags], y=y, ranks=case.ranks)
    return Built(launches=(launch,), output=y)


def prepare(case: ReduceCase, inputs: Inputs, target: Target) -> Launch:
    if target.kind != "cuda":
        return build(case, inputs, target)
    xs = [inputs[name] for name in NAMES[: case.ranks]]
    shape = (plan(case, target)[1], case.ranks)
    flags = [torch.zeros(shape, dtype=torch.int32, device=x.device) for x in xs]
    ys = [torch.empty_like(x) for x in xs]
    launches = [launch_of(case, inputs, target, rank=r, flags=flags, y=y) for r, y in enumerate(ys)]
    return AllGpus(launches, ys[0])


def stages(case: ReduceCase, target: Target) -> tuple[Stage, ...]:
    """Of one rank: its own x from its memory, the others' over the link. Two barriers: a write and a read of flags."""
    work = one_shot(case)
    ctas = plan(case, target)[1]
    return (Stage(name="read and add", work=work, peer_bytes=(case.ranks - 1) * case.size, ctas=ctas, ctas_per_sm=2),)


ONE_SHOT: Impl[ReduceCase] = triton_impl(name="triton-one-shot", build=build, stages=stages, supports=too_few)
IMPLS = (dataclasses.replace(ONE_SHOT, prepare=prepare),)
