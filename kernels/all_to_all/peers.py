"""gloo's all-to-all, on a host: pack the rows, send them, and add up those that come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kernels.all_to_all.exchange import exchange
from kernels.all_to_all.op import AllToAllCase, collective, most_from_others, of_all_ranks, received, shape
from kernels.common.random_inputs import torch_dtype
from kernels.common.ranks import gloo as group
from kernels.common.ranks.cases import too_few
from kernels.common.ranks.member import Member, Message
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version

if TYPE_CHECKING:
    import torch

warm = group.warm


def gloo(member: Member, folder: str) -> Callable[[Message], Callable[[], None]]:
    import torch
    from torch import distributed

    ranks = group.joined(member, folder)

    def part_of(message: Message) -> Callable[[], None]:
        case = AllToAllCase(**message.case)
        plan, dtype = exchange(case, member.rank), torch_dtype(case.dtype)
        height = case.B if case.direction == "dispatch" else received(case)
        x = group.of_rank(message.x, member.rank, (height, case.hidden), dtype)
        y = group.of_rank(message.y, member.rank, shape(case), dtype)
        pack, adds = torch.tensor(plan.pack, dtype=torch.int64), torch.tensor(plan.adds, dtype=torch.int64)
        sent = torch.empty(len(pack), case.hidden, dtype=dtype) if plan.pack else x[: sum(plan.sends)]
        got = torch.empty(len(adds), case.hidden, dtype=dtype) if plan.adds else y[: sum(plan.gets)]
        total = torch.empty(y.shape)

        def part() -> None:
            if plan.pack:
                torch.index_select(x, 0, pack, out=sent)
            sizes = [*plan.gets], [*plan.sends]
            ranks.alltoall_base(bytes_of(got), bytes_of(sent), *sizes, distributed.AllToAllOptions()).wait()
            if plan.adds:
                y.copy_(total.zero_().index_add_(0, adds, got.float()))

        return part

    return part_of


def bytes_of(rows: torch.Tensor) -> torch.Tensor:
    """Rows as bytes, which gloo sends whatever their type."""
    import torch

    return rows.view(torch.uint8)


def supports(case: AllToAllCase, target: Target) -> str | None:
    return group.refused(target) or too_few(case, target)


def around(case: AllToAllCase, moved: int) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """What a library does before and behind the exchange of so many bytes: it packs, or it adds up."""
    if case.direction == "dispatch":
        return (Stage(name="pack", work=Work(bytes_read=moved), l2_bytes=moved),), ()
    return (), (Stage(name="add up", work=Work(), l2_bytes=moved),)


def stages(case: AllToAllCase, target: Target) -> tuple[Stage, ...]:
    """Of all ranks. Each row goes through two sockets' ends."""
    moved = sum(sum(exchange(case, r).sends) for r in range(case.ranks)) * case.row_bytes
    before, behind = around(case, moved)
    others = most_from_others(case)
    moving = Stage(name="exchange", work=of_all_ranks(case), l2_bytes=4 * moved, peer_bytes=others)
    return (*before, moving, *behind)


def prepare(case: AllToAllCase, inputs: Inputs, target: Target) -> Launch:
    return collective(f"{__name__}:gloo", case, inputs)


IMPLS = (Impl(name="gloo", stages=stages, prepare=prepare, supports=supports, version=torch_version),)
