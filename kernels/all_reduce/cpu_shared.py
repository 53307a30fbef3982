"""All-reduce by ranks that share a host's memory, one thread each.

In one shot, each rank adds up what all ranks hold. In two, each rank adds up its part of the elements; then the ranks
meet, and each copies the other parts. Two shots add n times less and wait once more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from kernels.all_reduce.op import ReduceCase, adds_only, collective, one_shot, work
from kernels.common.cpu_jit import STORED, cpu_impl, jit
from kernels.common.cpu_loops import convert
from kernels.common.ranks.cases import together
from kernels.common.ranks.member import Member, Message
from kernels.op import Inputs, Launch, Stage, Target

CHUNK = 2048
"""Elements that are added up at once: sums and terms of fp32, 16 KiB, stay in the L1."""


@jit
def add_up(x, ranks, elements, first, last, y, at, total, term):
    """y[at + i] = sum over ranks of x[r, i] for first <= i < last; the sum is fp32."""
    for begin in range(first, last, len(total)):
        length = min(len(total), last - begin)
        convert(x, begin, length, np.float32(1.0), total, 0)
        for r in range(1, ranks):
            convert(x, r * elements + begin, length, np.float32(1.0), term, 0)
            for i in range(length):
                total[i] += term[i]
        convert(total, 0, length, np.float32(1.0), y, at + begin)


def warm(dtype: str) -> None:
    """Compile, or load what was compiled."""
    nothing, scratch = np.empty(0, STORED[dtype]), np.empty(1, np.float32)
    add_up(nothing, 1, 0, 0, 0, nothing, 0, scratch, scratch)


def shared(member: Member, folder: str) -> Callable[[Message], Callable[[], None]]:
    total, term = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)

    def part_of(message: Message) -> Callable[[], None]:
        case = ReduceCase(**message.case)
        x, y = (np.frombuffer(memory, STORED[case.dtype]) for memory in (message.x, message.y))
        n = case.elements
        own = member.rank * n
        cuts = [n * r // member.ranks for r in range(member.ranks + 1)]
        warm(case.dtype)

        def whole() -> None:
            add_up(x, member.ranks, n, 0, n, y, own, total, term)

        def by_parts() -> None:
            add_up(x, member.ranks, n, cuts[member.rank], cuts[member.rank + 1], y, own, total, term)
            member.reach(2)
            for r in (each for each in range(member.ranks) if each != member.rank):
                y[own + cuts[r] : own + cuts[r + 1]] = y[r * n + cuts[r] : r * n + cuts[r + 1]]

        return whole if message.shots == 1 else by_parts

    return part_of


def one_shot_stages(case: ReduceCase, target: Target) -> tuple[Stage, ...]:
    """Of all ranks: each x comes from memory once and is read by the other ranks from the cache. `peer_bytes` are what
    one rank reads of the others."""
    others = (case.ranks - 1) * case.size
    work = together(one_shot(case), case.ranks)
    return (Stage(name="add", work=work, l2_bytes=case.ranks * others, peer_bytes=others),)


def two_shot_stages(case: ReduceCase, target: Target) -> tuple[Stage, ...]:
    """Of all ranks: parts of x from memory, all of y to memory; sums are read again from the cache."""
    again = (case.ranks - 1) * case.size
    others = 2 * again // case.ranks
    return (Stage(name="add and copy", work=together(work(case), case.ranks), l2_bytes=again, peer_bytes=others),)


def prepare(case: ReduceCase, inputs: Inputs, target: Target, *, shots: int) -> Launch:
    return collective(f"{__name__}:shared", case, inputs, shots)


IMPLS = tuple(
    cpu_impl(name=name, prepare=partial(prepare, shots=shots), stages=stages, supports=adds_only)
    for name, shots, stages in (("shared-one-shot", 1, one_shot_stages), ("shared-two-shot", 2, two_shot_stages))
)
