"""NCCL, as torch brings it, with all GPUs in one process."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from kernels.all_reduce.op import EPSILON, ReduceCase, after, work
from kernels.common.ranks.cases import too_few, xs_of
from kernels.common.ranks.gpus import Forked
from kernels.common.ranks.nccl import refused, version
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work

if TYPE_CHECKING:
    import torch


def supports(case: ReduceCase, target: Target) -> str | None:
    return refused(target.kind) or too_few(case, target)


def prepare(case: ReduceCase, inputs: Inputs, target: Target) -> Launch:
    import torch
    from torch.cuda import nccl
    from torch.nn.functional import rms_norm

    xs = xs_of(case, inputs)
    ys = [torch.empty_like(x) for x in xs]
    forked = Forked(case.ranks)

    def launch() -> torch.Tensor:
        forked(lambda streams: nccl.all_reduce(xs, ys, streams=list(streams)))
        return ys[0]

    if not case.fused:
        return launch
    output = torch.empty(2, case.B, case.hidden, dtype=xs[0].dtype, device=xs[0].device)

    def fused() -> torch.Tensor:
        # on GPU 0 alone: the other GPUs would do the same meanwhile
        h = torch.add(launch(), inputs["residual"], out=output[1])
        output[0].copy_(rms_norm(h, (case.hidden,), inputs["w"], EPSILON))
        return output.flatten(0, 1)

    return fused


def stages(case: ReduceCase, target: Target) -> tuple[Stage, ...]:
    """Of one rank: the least over the link, 2 (n - 1) / n of the message. NCCL picks ring, tree or switch itself.
    Fused, torch's addition and norm follow, which find what they read in the L2."""
    alone, sent = dataclasses.replace(case, fused=False), 2 * (case.ranks - 1) * case.size // case.ranks
    reduce = Stage(name="all-reduce", work=work(alone), peer_bytes=sent)
    if not case.fused:
        return (reduce,)
    return (
        reduce,
        Stage(name="add", work=after(case), l2_bytes=case.size),
        Stage(name="norm", work=Work(), l2_bytes=2 * case.size),
    )


IMPLS = (Impl(name="nccl", stages=stages, prepare=prepare, supports=supports, version=version),)
