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
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.all_reduce.gpus import AllGpus
from kernels.all_reduce.op import MOST_RANKS, NAMES, ReduceCase, adds_only, one_shot
from kernels.common.random_inputs import BYTES
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Impl, Inputs, Launch, Stage, Target

WARPS = 8
WHY_FEW = "a message of decode is small: the latency of the link decides, not its bytes in flight"
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


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a launch runs: as one rank, or as `ranks` ranks from this one on, on the part that has y and `epochs`."""

    rank: int
    ranks: int
    flags: Sequence[torch.Tensor]
    """Of each rank of the case, [CTAs, ranks of the case]."""
    epochs: torch.Tensor
    y: torch.Tensor
    """[rows, hidden], or [ranks, rows, hidden] for several."""


Launches = Callable[[ReduceCase, Inputs, Target, Place], KernelLaunch]
"""A kernel that meets its peers, as `launch_of` gives it."""


def rows(case: ReduceCase) -> int:
    return (2 if case.fused else 1) * case.B


def alone(launches: Launches, ctas: int, case: ReduceCase, inputs: Inputs, target: Target) -> Built:
    """Rank 0 alone, its peers taken to have arrived."""
    device, dtype = inputs["x0"].device, inputs["x0"].dtype
    place = Place(
        rank=0,
        ranks=1,
        flags=[torch.full((ctas, case.ranks), ARRIVED, dtype=torch.int32, device=device) for _ in range(case.ranks)],
        epochs=torch.zeros(ctas, dtype=torch.int32, device=device),
        y=torch.empty(rows(case), case.hidden, dtype=dtype, device=device),
    )
    return Built(launches=(launches(case, inputs, target, place),), output=place.y)


def pretended(launches: Launches, ctas: int, case: ReduceCase, inputs: Inputs, target: Target) -> Built:
    """All ranks in one launch on one part, where they wait for each other. All CTAs must run at the same time."""
    device, dtype, n = inputs["x0"].device, inputs["x0"].dtype, case.ranks
    place = Place(
        rank=0,
        ranks=n,
        flags=[*torch.zeros(n, ctas, n, dtype=torch.int32, device=device)],
        epochs=torch.zeros(n * ctas, dtype=torch.int32, device=device),
        y=torch.empty(n, rows(case), case.hidden, dtype=dtype, device=device),
    )
    return Built(launches=(launches(case, inputs, target, place),), output=place.y)


def everywhere(launches: Launches, ctas: int, case: ReduceCase, inputs: Inputs, target: Target) -> Launch:
    """A launch on each GPU."""
    homes = [inputs[name].device for name in NAMES[: case.ranks]]
    flags = [torch.zeros(ctas, case.ranks, dtype=torch.int32, device=home) for home in homes]
    places = [
        Place(
            rank=r,
            ranks=1,
            flags=flags,
            epochs=torch.zeros(ctas, dtype=torch.int32, device=home),
            y=torch.empty(rows(case), case.hidden, dtype=inputs["x0"].dtype, device=home),
        )
        for r, home in enumerate(homes)
    ]
    return AllGpus([launches(case, inputs, target, place) for place in places], places[0].y)


def of_all(case: ReduceCase, inputs: Inputs, flags: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The arguments `x0` to `flags7`; the first rank's stand for those beyond the ranks, and are not used."""
    found = {}
    for name, of_ranks in (("x", [inputs[name] for name in NAMES[: case.ranks]]), ("flags", flags)):
        for r in range(MOST_RANKS):
            found[f"{name}{r}"] = of_ranks[r if r < case.ranks else 0]
    return found


def launch_of(case: ReduceCase, inputs: Inputs, target: Target, where: Place) -> KernelLaunch:
    """The kernel of one rank, or of all."""
    block, ctas = plan(case, target)
    return KernelLaunch(
        kernel=one_shot_kernel,
        grid=(ctas, where.ranks),
        args={
            **of_all(case, inputs, where.flags),
            "own": where.flags[where.rank],
            "epochs": where.epochs,
            "y": where.y,
            "elements": case.elements,
            "rank": where.rank,
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


def impl(
    name: str,
    launches: Launches,
    ctas: Callable[[ReduceCase, Target], int],
    stages: Callable[[ReduceCase, Target], Sequence[Stage]],
    supports: Callable[[ReduceCase, Target], str | None],
) -> Impl[ReduceCase]:
    """An `Impl` whose `build` is rank 0 alone, which is compiled, interpreted and emulated."""

    def build(case: ReduceCase, inputs: Inputs, target: Target) -> Built:
        return alone(launches, ctas(case, target), case, inputs, target)

    def prepare(case: ReduceCase, inputs: Inputs, target: Target) -> Launch:
        if target.kind != "cuda":
            return build(case, inputs, target)
        return everywhere(launches, ctas(case, target), case, inputs, target)

    one_rank = triton_impl(name=name, build=build, stages=stages, supports=supports)
    return dataclasses.replace(one_rank, prepare=prepare)


def ctas(case: ReduceCase, target: Target) -> int:
    return plan(case, target)[1]


IMPLS = (impl("triton-one-shot", launch_of, ctas, stages, adds_only),)
