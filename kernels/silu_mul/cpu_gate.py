"""The gated activation on the host's cores, in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_gated import activate
from kernels.common.cpu_jit import array, cpu_impl, kernel, prange, spread, threads
from kernels.common.cpu_loops import convert
from kernels.common.gated import ACTIVATIONS
from kernels.op import Inputs, Launch, Stage, Target
from kernels.silu_mul.op import GateCase, halves, work

if TYPE_CHECKING:
    import torch

PIECE = 256
"""Values that are widened, activated and stored together."""


@kernel
def gate_all(x, other, h, B, F, strides, kind, wide):
    """`strides` are those of rows of the gate x and of the other half."""
    runs, pieces = len(wide), (F + PIECE - 1) // PIECE
    for run in prange(runs):
        gate, up = wide[run, :PIECE], wide[run, PIECE:]
        for at in range(B * pieces * run // runs, B * pieces * (run + 1) // runs):
            b, first = at // pieces, at % pieces * PIECE
            count = min(PIECE, F - first)
            convert(x, b * strides[0] + first, count, np.float32(1.0), gate, 0)
            convert(other, b * strides[1] + first, count, np.float32(1.0), up, 0)
            for i in range(count):
                gate[i] = activate(kind, gate[i], up[i])
            convert(gate, 0, count, np.float32(1.0), h, b * F + first)


def prepare(case: GateCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    x, up = halves(case, inputs)
    h = torch.empty(case.B, case.F, dtype=x.dtype)
    wide = torch.empty(threads(target), 2 * PIECE).numpy()
    strides = (x.stride(0), up.stride(0))
    arguments = (spread(x), spread(up), array(h), case.B, case.F, strides, ACTIVATIONS.index(case.activation), wide)

    def launch() -> torch.Tensor:
        gate_all(*arguments)
        return h

    return launch


def stages(case: GateCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="gate", work=work(case)),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
