"""The step from our kernels for hosts. Rows of the embedding and the largest logit are torch's."""

from __future__ import annotations

from kernels.common.cpu_jit import cpu_impl
from kernels.decode_step import compose
from kernels.decode_step.op import StepCase
from kernels.decode_step.sequence import Sequence
from kernels.op import Inputs, Launch, Stage, Target

NAMES = dict.fromkeys(compose.OPS, ("numba",))


def prepare(case: StepCase, inputs: Inputs, target: Target) -> Launch:
    sequence = Sequence(NAMES, target)
    return sequence.launch(compose.Composition(case, inputs, sequence).logits())


def stages(case: StepCase, target: Target) -> tuple[Stage, ...]:
    return compose.stages(case, NAMES, target)


def supports(case: StepCase, target: Target) -> str | None:
    return compose.refusal(case, NAMES, target)


IMPLS = (cpu_impl(prepare=prepare, stages=stages, supports=supports),)
