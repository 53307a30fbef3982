"""The same by torch, operator by operator as model code is written."""

from __future__ import annotations

from kernels.common.gated import OPERATORS, by_torch
from kernels.common.random_inputs import BYTES
from kernels.op import Impl, Inputs, Launch, Stage, Target, Work, torch_version
from kernels.silu_mul.op import GateCase, halves, work


def stages(case: GateCase, target: Target) -> tuple[Stage, ...]:
    """The kernels of the activation; what passes between them stays in the L2."""
    array = case.B * case.F * BYTES[case.dtype]
    first, *rest = OPERATORS[case.activation].items()
    return (
        Stage(name=first[0], work=work(case)),
        *(Stage(name=name, work=Work(), l2_bytes=arrays * array) for name, arrays in rest),
    )


def prepare(case: GateCase, inputs: Inputs, target: Target) -> Launch:
    gate, up = halves(case, inputs)
    if case.wide:
        return lambda: by_torch(case.activation, gate, up).to(gate.dtype)
    return lambda: by_torch(case.activation, gate, up)


IMPLS = (Impl(name="torch", stages=stages, prepare=prepare, version=torch_version),)
