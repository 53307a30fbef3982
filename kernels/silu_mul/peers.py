"""The same by torch, operator by operator as model code is written, and as one kernel of torch.compile."""

from __future__ import annotations

from functools import cache
from typing import Any

from kernels.common.gated import OPERATORS, by_torch
from kernels.common.random_inputs import BYTES
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.silu_mul.op import GateCase, work


def one_pass(case: GateCase, target: Target) -> tuple[Stage, ...]:
    """One kernel, taken to move the compulsory bytes."""
    return (Stage(name="gate", work=work(case)),)


def stages(case: GateCase, target: Target) -> tuple[Stage, ...]:
    """The kernels of the activation; what passes between them stays in the L2."""
    array = case.B * case.F * BYTES[case.dtype]
    first, *rest = OPERATORS[case.activation].items()
    return (
        Stage(name=first[0], work=work(case)),
        *(Stage(name=name, work=Work(), l2_bytes=arrays * array) for name, arrays in rest),
    )


def prepare(case: GateCase, inputs: Inputs, target: Target) -> Launch:
    gate, up = inputs["x"].chunk(2, dim=1)
    return lambda: by_torch(case.activation, gate, up)


@cache
def compiled() -> Any:
    import torch

    return torch.compile(lambda kind, x: by_torch(kind, *x.chunk(2, dim=1)), dynamic=False, fullgraph=True)


def prepare_compiled(case: GateCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    x, function = inputs["x"], compiled()
    with torch._dynamo.config.patch(recompile_limit=1 << 10):
        function(case.activation, x)
    return lambda: function(case.activation, x)


def supports_compiled(case: GateCase, target: Target) -> str | None:
    fits = target.kind == "cuda" and target.sm >= 80
    return None if fits else "is compiled for NVIDIA GPUs of sm_80 or later"


IMPLS = (
    Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),
    Impl(
        name="torch-compiled",
        stages=one_pass,
        prepare=prepare_compiled,
        supports=supports_compiled,
        by_torch_compile=True,
        version=torch_version,
    ),
)
