"""Triton kernels whose GPUs meet by flags in each other's memory.

CTA c of a rank works on the same elements as CTA c of all other ranks, so only these meet: before they read, and before
they end, since then a rank may change what it has. A CTA writes a number into a flag in the memory of each peer, and
waits until the flags in its own memory have that number too. The number grows with each launch (`epochs`), so a CUDA
graph can replay it.

A launch is one rank, with a grid of (CTAs, 1). A grid of (CTAs, n) is n ranks on one part, for tests: `pretended`.
Where the peers are not there (interpreted, or compiled only), the flags hold numbers that no launch waits for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
import triton
import triton.language as tl

from kernels.common.ranks.cases import MOST_RANKS, RankedCase, xs_of
from kernels.common.ranks.gpus import AllGpus
from kernels.launch import Built, KernelLaunch, triton_impl
from kernels.op import Impl, Inputs, Launch, Stage, Target

RankedT = TypeVar("RankedT", bound=RankedCase)

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


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a launch runs: as one rank, or as `ranks` ranks from this one on, on the part that has y and `epochs`."""

    rank: int
    ranks: int
    flags: Sequence[torch.Tensor]
    """Of each rank of the case, [CTAs, ranks of the case]: where a launch tells that it has come."""
    own: torch.Tensor
    """The flags that it waits for, those of `rank` and behind them those of the ranks after it."""
    epochs: torch.Tensor
    y: torch.Tensor
    """[rows, hidden], or [ranks, rows, hidden] for several."""

    def args(self, xs: Sequence[torch.Tensor]) -> dict[str, Any]:
        """The arguments that all kernels have which meet: `x0` to `flags7`, `own`, `epochs`, `y` and `rank`.

        The first rank's `x` and flags stand for those beyond the ranks, and are not used.
        """
        found: dict[str, Any] = {"own": self.own, "epochs": self.epochs, "y": self.y, "rank": self.rank}
        for name, of_ranks in (("x", xs), ("flags", self.flags)):
            for r in range(MOST_RANKS):
                found[f"{name}{r}"] = of_ranks[r if r < len(of_ranks) else 0]
        return found


@dataclass(frozen=True, kw_only=True)
class Meeting(Generic[RankedT]):
    """A kernel whose ranks meet: what its launches need to know."""

    launch_of: Callable[[RankedT, Inputs, Target, Place], KernelLaunch]
    """The kernel of one rank, or of all."""
    ctas: Callable[[RankedT, Target], int]
    """Of each rank."""
    shape: Callable[[RankedT], tuple[int, int]]
    """Of the output of one rank."""
    ranks_differ: bool = False
    """Does every rank get something else? Then all of them are interpreted and emulated."""

    def on_one_part(self, case: RankedT, inputs: Inputs, target: Target, ranks: int, *, wait: bool) -> Built:
        """The first `ranks` ranks in one launch. They wait for all, or for nobody."""
        ctas, like = self.ctas(case, target), inputs["x0"]
        shape = self.shape(case) if ranks == 1 else (ranks, *self.shape(case))
        told = torch.zeros(case.ranks, ctas, case.ranks, dtype=torch.int32, device=like.device)
        place = Place(
            rank=0,
            ranks=ranks,
            flags=[*told],
            own=told[0] if wait else torch.full_like(told, ARRIVED),
            epochs=torch.zeros(ranks * ctas, dtype=torch.int32, device=like.device),
            y=torch.empty(shape, dtype=like.dtype, device=like.device),
        )
        return Built(launches=(self.launch_of(case, inputs, target, place),), output=place.y)

    def pretended(self, case: RankedT, inputs: Inputs, target: Target) -> Built:
        """All ranks in one launch on one part, where they wait for each other. All CTAs must run at the same time."""
        return self.on_one_part(case, inputs, target, case.ranks, wait=True)

    def everywhere(self, case: RankedT, inputs: Inputs, target: Target) -> Launch:
        """A launch on each GPU."""
        ctas, xs = self.ctas(case, target), xs_of(case, inputs)
        flags = [torch.zeros(ctas, case.ranks, dtype=torch.int32, device=x.device) for x in xs]
        places = [
            Place(
                rank=r,
                ranks=1,
                flags=flags,
                own=flags[r],
                epochs=torch.zeros(ctas, dtype=torch.int32, device=x.device),
                y=torch.empty(self.shape(case), dtype=x.dtype, device=x.device),
            )
            for r, x in enumerate(xs)
        ]
        return AllGpus([self.launch_of(case, inputs, target, place) for place in places], places[0].y)

    def impl(
        self,
        name: str,
        stages: Callable[[RankedT, Target], Sequence[Stage]],
        supports: Callable[[RankedT, Target], str | None],
    ) -> Impl[RankedT]:
        """An `Impl` whose `build` is rank 0, or all ranks, where nobody waits: it is compiled and interpreted."""

        def build(case: RankedT, inputs: Inputs, target: Target) -> Built:
            return self.on_one_part(case, inputs, target, case.ranks if self.ranks_differ else 1, wait=False)

        def prepare(case: RankedT, inputs: Inputs, target: Target) -> Launch:
            return (build if target.kind != "cuda" else self.everywhere)(case, inputs, target)

        one_rank = triton_impl(name=name, build=build, stages=stages, supports=supports)
        return dataclasses.replace(one_rank, prepare=prepare)
