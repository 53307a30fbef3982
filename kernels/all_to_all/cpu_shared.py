"""All-to-all by ranks that share a host's memory, one thread each: a rank reads the rows that it gets."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np

from kernels.all_to_all.op import (
    AllToAllCase,
    collective,
    dispatched,
    most_from_others,
    of_all_ranks,
    rows_of,
    shape,
)
from kernels.common.cpu_jit import STORED, cpu_impl, jit
from kernels.common.cpu_loops import convert
from kernels.common.ranks.cases import too_few
from kernels.common.ranks.member import Member, Message
from kernels.op import Inputs, Launch, Stage, Target

CHUNK = 2048
"""Elements that are added up at once: sums and terms of fp32, 16 KiB, stay in the L1."""


@jit
def add_rows(x, height, hidden, rows, ranks, y, at, total, term):
    """y[at + i hidden + d] = sum over ranks s of x[s, rows[i, s], d]; the sum is fp32, and -1 is no row."""
    for i in range(len(rows) // ranks):
        for begin in range(0, hidden, len(total)):
            length = min(len(total), hidden - begin)
            found = 0
            for s in range(ranks):
                row = rows[i * ranks + s]
                if row < 0:
                    continue
                start = (s * height + row) * hidden + begin
                if found == 0:
                    convert(x, start, length, np.float32(1.0), total, 0)
                else:
                    convert(x, start, length, np.float32(1.0), term, 0)
                    for d in range(length):
                        total[d] += term[d]
                found += 1
            convert(total, 0, length, np.float32(1.0), y, at + i * hidden + begin)


def warm(dtype: str) -> None:
    """Compile, or load what was compiled."""
    nothing, scratch = np.empty(0, STORED[dtype]), np.empty(1, np.float32)
    add_rows(nothing, 1, 1, np.empty(0, np.int32), 2, nothing, 0, scratch, scratch)


def shared(member: Member, folder: str) -> Callable[[Message], Callable[[], None]]:
    total, term = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)

    def part_of(message: Message) -> Callable[[], None]:
        case = AllToAllCase(**message.case)
        x, y = (np.frombuffer(memory, STORED[case.dtype]) for memory in (message.x, message.y))
        height = x.size // (case.ranks * case.hidden)
        rows = np.array([*chain.from_iterable(rows_of(case, member.rank))], np.int32)
        at = member.rank * shape(case)[0] * case.hidden
        warm(case.dtype)
        return lambda: add_rows(x, height, case.hidden, rows, case.ranks, y, at, total, term)

    return part_of


def stages(case: AllToAllCase, target: Target) -> tuple[Stage, ...]:
    """Of all ranks. A token that goes to several ranks comes from memory once. `peer_bytes` are those of the rank that
    gets the most."""
    again = 0
    if case.direction == "dispatch":
        again = (sum(map(len, dispatched(case))) - case.ranks * case.B) * case.row_bytes
    others = most_from_others(case)
    return (Stage(name="read and add", work=of_all_ranks(case), l2_bytes=again, peer_bytes=others),)


def prepare(case: AllToAllCase, inputs: Inputs, target: Target) -> Launch:
    return collective(f"{__name__}:shared", case, inputs)


IMPLS = (cpu_impl(name="shared", prepare=prepare, stages=stages, supports=too_few),)
