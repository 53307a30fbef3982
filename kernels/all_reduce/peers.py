"""gloo's all-reduce, on a host."""

from __future__ import annotations

from collections.abc import Callable

from kernels.all_reduce.op import ReduceCase, adds_only, collective, work
from kernels.common.random_inputs import torch_dtype
from kernels.common.ranks import gloo as group
from kernels.common.ranks.cases import together
from kernels.common.ranks.member import Member, Message
from kernels.op import Impl, Inputs, Launch, Stage, Target, torch_version

warm = group.warm


def gloo(member: Member, folder: str) -> Callable[[Message], Callable[[], None]]:
    ranks = group.joined(member, folder)

    def part_of(message: Message) -> Callable[[], None]:
        case = ReduceCase(**message.case)
        shape, dtype = (case.B, case.hidden), torch_dtype(case.dtype)
        x, y = (group.of_rank(memory, member.rank, shape, dtype) for memory in (message.x, message.y))

        def part() -> None:
            y.copy_(x)
            ranks.allreduce([y]).wait()

        return part

    return part_of


def supports(case: ReduceCase, target: Target) -> str | None:
    return group.refused(target) or adds_only(case, target)


def stages(case: ReduceCase, target: Target) -> tuple[Stage, ...]:
    """Of all ranks: a copy, then 2 (n - 1) / n of the message to the next rank, each byte through two sockets' ends."""
    passed = 2 * (case.ranks - 1) * case.size
    return (
        Stage(name="copy", work=together(work(case), case.ranks)),
        Stage(
            name="ring",
            work=together(work(case), case.ranks),
            l2_bytes=4 * passed,
            peer_bytes=passed // case.ranks,
        ),
    )


def prepare(case: ReduceCase, inputs: Inputs, target: Target) -> Launch:
    return collective(f"{__name__}:gloo", case, inputs)


IMPLS = (Impl(name="gloo", stages=stages, prepare=prepare, supports=supports, version=torch_version),)
