"""gloo, which torch brings: what servers call on a host."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from kernels.all_reduce.member import LIMIT_S, Member, Message
from kernels.all_reduce.op import ReduceCase, adds_only, together, work
from kernels.common.random_inputs import torch_dtype
from kernels.op import Impl, Inputs, Launch, Stage, Target, torch_version


def gloo(member: Member, folder: str) -> Callable[[Message], Callable[[], None]]:
    """Ranks that talk over the loopback interface. They find each other by a file."""
    import torch
    from torch import distributed

    backend: Any = distributed.ProcessGroupGloo
    options = backend._Options()
    options._devices = [backend.create_device(hostname="127.0.0.1")]
    options._timeout = timedelta(seconds=LIMIT_S)
    store = distributed.FileStore(f"{folder}/store", member.ranks)
    ranks = backend(store, member.rank, member.ranks, options)

    def part_of(message: Message) -> Callable[[], None]:
        x, y = (
            torch.frombuffer(
                memory,
                dtype=torch_dtype(message.dtype),
                count=message.elements,
                offset=member.rank * message.elements * torch_dtype(message.dtype).itemsize,
            )
            for memory in (message.x, message.y)
        )

        def part() -> None:
            y.copy_(x)
            ranks.allreduce([y]).wait()

        return part

    return part_of


def gloo_supports(case: ReduceCase, target: Target) -> str | None:
    from torch import distributed

    if target.kind != "cpu":
        return "needs a host: it adds up on the host's own cores"
    if not (distributed.is_available() and distributed.is_gloo_available()):
        return "needs gloo, which this torch was built without"
    return adds_only(case, target)


def gloo_stages(case: ReduceCase, target: Target) -> tuple[Stage, ...]:
    """Of all ranks: a copy, then 2 (n - 1) / n of the message to the next rank, each byte through two sockets' ends."""
    passed = 2 * (case.ranks - 1) * case.size
    return (
        Stage(name="copy", work=together(work(case), case.ranks)),
        Stage(name="ring", work=together(work(case), case.ranks), l2_bytes=4 * passed),
    )


def gloo_prepare(case: ReduceCase, inputs: Inputs, target: Target) -> Launch:
    from kernels.all_reduce.ranks import Collective

    return Collective("gloo", case, inputs)


IMPLS = (Impl(name="gloo", stages=gloo_stages, prepare=gloo_prepare, supports=gloo_supports, version=torch_version),)
