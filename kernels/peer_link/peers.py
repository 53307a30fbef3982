"""The copy engines through torch: `copy_` between two GPUs is one `cudaMemcpyPeerAsync`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.common.ranks.cases import too_few, xs_of
from kernels.common.ranks.gpus import AllGpus
from kernels.op import Impl, Inputs, Launch, Stage, Target, torch_version
from kernels.peer_link.op import PeerCase, work

if TYPE_CHECKING:
    import torch


def supports(case: PeerCase, target: Target) -> str | None:
    if target.kind != "cuda":
        return "needs NVIDIA GPUs, one for each rank"
    return too_few(case, target)


def stages(case: PeerCase, target: Target) -> tuple[Stage, ...]:
    """Of one rank."""
    return (Stage(name="copy", work=work(case), peer_bytes=case.size),)


def copied(y: torch.Tensor, x: torch.Tensor) -> Launch:
    return lambda: y.copy_(x, non_blocking=True)


def prepare(case: PeerCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    xs = xs_of(case, inputs)
    ys = [torch.empty_like(x) for x in xs]
    copies = [copied(y, xs[(r + 1) % case.ranks]) for r, y in enumerate(ys)]
    return AllGpus(copies, ys[0])


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, supports=supports, version=torch_version),)
