"""NCCL's sends and receives, as torch brings them, with torch's packing before and its sums behind.

The host knows how many rows go where. A server reads these numbers from the GPU first, which is not in the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kernels.all_to_all.exchange import exchange
from kernels.all_to_all.op import AllToAllCase, most_from_others, shape, work
from kernels.all_to_all.peers import around
from kernels.common.ranks import nccl
from kernels.common.ranks.cases import too_few, xs_of
from kernels.common.ranks.gpus import Forked
from kernels.op import Impl, Inputs, Stage, Target

if TYPE_CHECKING:
    import torch


class Rank:
    """What one GPU packs, and what it adds up."""

    def __init__(self, case: AllToAllCase, rank: int, x: torch.Tensor) -> None:
        import torch

        plan = exchange(case, rank)
        self.x, self.y = x, torch.empty(shape(case), dtype=x.dtype, device=x.device)
        self.pack, self.adds = (
            torch.tensor(each, dtype=torch.int64, device=x.device) for each in (plan.pack, plan.adds)
        )
        self.packed = x.new_empty(len(plan.pack), case.hidden)
        self.came = x.new_empty(len(plan.adds), case.hidden)
        # sums in fp32; nothing is allocated in a launch, since a graph of GPU 0 would not keep memory of the others
        self.terms = x.new_empty(len(plan.adds), case.hidden, dtype=torch.float32)
        self.total = x.new_empty(case.B, case.hidden, dtype=torch.float32)
        rows = self.packed if plan.pack else x[: sum(plan.sends)]
        self.sent = rows.split([*plan.sends])
        self.got = (self.came if plan.adds else self.y[: sum(plan.gets)]).split([*plan.gets])

    def before(self) -> None:
        import torch

        if len(self.pack):
            torch.index_select(self.x, 0, self.pack, out=self.packed)

    def behind(self) -> None:
        if len(self.adds):
            self.y.copy_(self.total.zero_().index_add_(0, self.adds, self.terms.copy_(self.came)))


class Exchanged:
    """A prepared launch: pack on each GPU, exchange, add up on each GPU."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self.ranks, self.comms, self.forked = ranks, nccl.communicators(len(ranks)), Forked(len(ranks))

    def __call__(self) -> torch.Tensor:
        self.forked(self.steps)
        return self.ranks[0].y

    def steps(self, streams: Sequence[Any]) -> None:
        import torch

        for rank, stream in zip(self.ranks, streams, strict=True):
            with torch.cuda.stream(stream):
                rank.before()
        nccl.exchange(self.comms, [rank.sent for rank in self.ranks], [rank.got for rank in self.ranks], streams)
        for rank, stream in zip(self.ranks, streams, strict=True):
            with torch.cuda.stream(stream):
                rank.behind()


def prepare(case: AllToAllCase, inputs: Inputs, target: Target) -> Exchanged:
    return Exchanged([Rank(case, r, x) for r, x in enumerate(xs_of(case, inputs))])


def supports(case: AllToAllCase, target: Target) -> str | None:
    return nccl.refused(target.kind) or too_few(case, target)


def stages(case: AllToAllCase, target: Target) -> tuple[Stage, ...]:
    """Of the rank that gets the most."""
    moved = max(sum(exchange(case, r).sends) for r in range(case.ranks)) * case.row_bytes
    before, behind = around(case, moved)
    return (*before, Stage(name="exchange", work=work(case), peer_bytes=most_from_others(case)), *behind)


IMPLS = (Impl(name="nccl", stages=stages, prepare=prepare, supports=supports, version=nccl.version),)
