"""Ranks that share a host's memory, one thread each: a rank copies what the next one has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kernels.common.cpu_jit import cpu_impl
from kernels.common.random_inputs import torch_dtype
from kernels.common.ranks.cases import together, too_few
from kernels.common.ranks.member import Member, Message
from kernels.common.ranks.segment import Segment
from kernels.op import Inputs, Launch, Stage, Target
from kernels.peer_link.op import PeerCase, work


def warm(dtype: str) -> None:
    """Nothing is compiled."""


def shared(member: Member, folder: str) -> Callable[[Message], Callable[[], None]]:
    def part_of(message: Message) -> Callable[[], None]:
        size = PeerCase(**message.case).size
        x, y = (np.frombuffer(memory, np.uint8) for memory in (message.x, message.y))
        there = (member.rank + 1) % member.ranks * size
        own = slice(member.rank * size, (member.rank + 1) * size)
        return lambda: np.copyto(y[own], x[there : there + size])

    return part_of


def stages(case: PeerCase, target: Target) -> tuple[Stage, ...]:
    """Of all ranks; `peer_bytes` are those of one."""
    return (Stage(name="copy", work=together(work(case), case.ranks), peer_bytes=case.size),)


def prepare(case: PeerCase, inputs: Inputs, target: Target) -> Launch:
    from kernels.common.ranks.group import Collective

    y = Segment((case.ranks, case.elements), torch_dtype(case.dtype))
    return Collective(f"{__name__}:shared", case, inputs["segment"], y)


IMPLS = (cpu_impl(name="shared", prepare=prepare, stages=stages, supports=too_few),)
