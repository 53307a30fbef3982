"""The same by torch, operator by operator as model code is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.common.random_inputs import BYTES
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.short_conv.op import ConvCase, append, ring_of, window, work, y_of

if TYPE_CHECKING:
    import torch


def stages(case: ConvCase, target: Target) -> tuple[Stage, ...]:
    """The window is put together, multiplied, summed and activated; what passes between stays in the L2."""
    array = case.B * case.C * BYTES[case.dtype]
    return (
        Stage(name="window", work=work(case)),
        Stage(name="product", work=Work(), l2_bytes=3 * case.taps * array),
        Stage(name="sum", work=Work(), l2_bytes=(case.taps + 1) * array),
        Stage(name="silu", work=Work(), l2_bytes=4 * array),
    )


def prepare(case: ConvCase, inputs: Inputs, target: Target) -> Launch:
    """In fp32, rounded once."""
    import torch

    memory = inputs["memory"]
    rings, y = ring_of(case, memory), y_of(case, memory)

    def launch() -> torch.Tensor:
        seen = window(case, inputs, rings).float()
        y.copy_(torch.nn.functional.silu((seen * inputs["weight"].float()).sum(1) + inputs["bias"].float()))
        append(case, inputs, rings)
        return memory

    return launch


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),)
