"""torch's symmetric memory: its all-reduces in one shot, in two, and by the switch. A process for each GPU.

Their time holds a barrier and a copy of x into memory that all ranks can reach, because x is anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from kernels.all_reduce.op import ReduceCase, adds_only, one_shot, work
from kernels.common.ranks import symmetric
from kernels.common.ranks.cases import xs_of
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version


def supports(case: ReduceCase, target: Target, *, way: str) -> str | None:
    return adds_only(case, target) or symmetric.refused(way, target)


def prepare(case: ReduceCase, inputs: Inputs, target: Target, *, way: str) -> Launch:
    return symmetric.launched(way, xs_of(case, inputs))


def stages(case: ReduceCase, target: Target, *, reduce: Work, sent: int) -> Sequence[Stage]:
    """Of one rank. What is copied is read again from the L2."""
    copy = Stage(name="copy", work=Work(bytes_read=case.size), l2_bytes=case.size)
    return (copy, Stage(name="all-reduce", work=reduce, l2_bytes=case.size, peer_bytes=sent))


def written(case: ReduceCase, done: Work) -> Work:
    """The same work without the reading of x, which the copy has done."""
    return Work(flops=done.flops, bytes_written=done.bytes_written)


def in_one_shot(case: ReduceCase, target: Target) -> Sequence[Stage]:
    sent = (case.ranks - 1) * case.size
    return stages(case, target, reduce=written(case, one_shot(case)), sent=sent)


def in_two_shots(case: ReduceCase, target: Target) -> Sequence[Stage]:
    sent = 2 * (case.ranks - 1) * case.size // case.ranks
    return stages(case, target, reduce=written(case, work(case)), sent=sent)


def by_the_switch(case: ReduceCase, target: Target) -> Sequence[Stage]:
    """A rank gets the sums of its own part, then all other parts: its message, once."""
    return stages(case, target, reduce=Work(bytes_written=case.size), sent=case.size)


WAYS: dict[str, Callable[[ReduceCase, Target], Sequence[Stage]]] = {
    "one-shot": in_one_shot,
    "two-shot": in_two_shots,
    "multimem": by_the_switch,
}

IMPLS = tuple(
    Impl(
        name=f"symmetric-{way}",
        stages=of,
        prepare=partial(prepare, way=way),
        supports=partial(supports, way=way),
        version=torch_version,
    )
    for way, of in WAYS.items()
)
