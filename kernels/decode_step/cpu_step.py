"""The step from our kernels for hosts. Rows of the embedding and the largest logit are torch's."""

from __future__ import annotations

from kernels.common.cpu_jit import cpu_impl
from kernels.decode_step import compose
from kernels.decode_step.op import StepCase
from kernels.decode_step.parts import parts as parts_of
from kernels.decode_step.sequence import Sequence
from kernels.op import Case, Impl, Inputs, Launch, Stage, Target

NAMES = dict.fromkeys(compose.OPS, ("numba",))


def prepare(case: StepCase, inputs: Inputs, target: Target) -> Launch:
    sequence = Sequence(NAMES, target)
    return sequence.launch(compose.Composition(case, inputs, sequence).logits())


def stages(case: StepCase, target: Target) -> tuple[Stage, ...]:
    return compose.stages(case, NAMES, target)


def supports(case: StepCase, target: Target) -> str | None:
    return compose.refusal(case, NAMES, target)


def parts(case: StepCase, target: Target) -> list[tuple[str, str, Case, Impl]]:
    """What is an operation of `kernels/`, that is without looking up the embedding and choosing the token."""
    every = [(part, compose.chosen(part, NAMES, target)[0]) for part in parts_of(case) if part.op in NAMES]
    return [(part.name, part.op, part.case, impl) for part, impl in every if part.case and impl]


IMPLS = (cpu_impl(prepare=prepare, stages=stages, supports=supports, parts=parts),)
