"""NCCL, as torch brings it, with all GPUs in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.all_reduce.gpus import Forked
from kernels.all_reduce.op import NAMES, ReduceCase, too_few, work
from kernels.op import Impl, Inputs, Launch, Stage, Target

if TYPE_CHECKING:
    import torch


def supports(case: ReduceCase, target: Target) -> str | None:
    from torch import distributed

    if target.kind != "cuda":
        return "needs NVIDIA GPUs, one for each rank"
    if not (distributed.is_available() and distributed.is_nccl_available()):
        return "needs NCCL, which this torch was built without"
    return too_few(case, target)


def prepare(case: ReduceCase, inputs: Inputs, target: Target) -> Launch:
    import torch
    from torch.cuda import nccl

    xs = [inputs[name] for name in NAMES[: case.ranks]]
    ys = [torch.empty_like(x) for x in xs]
    forked = Forked(case.ranks)

    def launch() -> torch.Tensor:
        forked(lambda streams: nccl.all_reduce(xs, ys, streams=list(streams)))
        return ys[0]

    return launch


def stages(case: ReduceCase, target: Target) -> tuple[Stage, ...]:
    """Of one rank: the least over the link, 2 (n - 1) / n of the message. NCCL picks ring, tree or switch itself."""
    return (Stage(name="all-reduce", work=work(case), peer_bytes=2 * (case.ranks - 1) * case.size // case.ranks),)


def version() -> str:
    from torch.cuda import nccl

    return "NCCL " + ".".join(str(part) for part in nccl.version())


IMPLS = (Impl(name="nccl", stages=stages, prepare=prepare, supports=supports, version=version),)
