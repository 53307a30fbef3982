"""What a user could call instead of our kernels: torch's batched product, with heads as the batch."""

from __future__ import annotations

from kernels.common.random_inputs import BYTES
from kernels.head_gemv.op import HeadCase, work
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version


def stages(case: HeadCase, target: Target) -> tuple[Stage, ...]:
    y = BYTES[case.dtype] * case.B * case.H * case.N
    return (Stage(name="bmm", work=work(case)), Stage(name="copy", work=Work(), l2_bytes=2 * y))


def prepare(case: HeadCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    x, w = inputs["x"].transpose(0, 1), inputs["w"].transpose(1, 2)
    by_head = torch.empty(case.H, case.B, case.N, dtype=x.dtype, device=x.device)
    y = torch.empty(case.B, case.H, case.N, dtype=x.dtype, device=x.device)

    def launch() -> torch.Tensor:
        return y.copy_(torch.bmm(x, w, out=by_head).transpose(0, 1))

    return launch


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),)
