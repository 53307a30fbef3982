"""What a user could call instead of our kernels: torch's batched product, with heads as the batch."""

from __future__ import annotations

from kernels.head_gemv.op import HeadCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, torch_version


def stages(case: HeadCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="bmm", work=work(case)),)


def prepare(case: HeadCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    x, w = inputs["x"].transpose(0, 1), inputs["w"].transpose(1, 2)
    y = torch.empty(case.B, case.H, case.N, dtype=x.dtype, device=x.device)

    def launch() -> torch.Tensor:
        torch.bmm(x, w, out=y.transpose(0, 1))
        return y

    return launch


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),)
