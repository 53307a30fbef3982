"""The convolution on the host's cores, in fp32, piece by piece of the channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, kernel, on_fma, prange, spread, threads
from kernels.common.cpu_loops import convert
from kernels.op import Inputs, Launch, Stage, Target
from kernels.short_conv.op import ConvCase, ring_of, work, y_of

if TYPE_CHECKING:
    import torch

PIECE = 256
"""Channels that are widened, convolved and stored together."""


@kernel
def convolve(x, ring, y, weight, bias, rings, positions, shape, wide):
    """`shape` is B, C, taps and the stride of the rows of x."""
    B, C, taps, stride = shape
    runs, pieces = len(wide), (C + PIECE - 1) // PIECE
    for run in prange(runs):
        sums, found = wide[run, :PIECE], wide[run, PIECE:]
        for at in range(B * pieces * run // runs, B * pieces * (run + 1) // runs):
            b, first = at // pieces, at % pieces * PIECE
            count = min(PIECE, C - first)
            mine, position = np.int64(rings[b]) * taps, np.int64(positions[b])
            sums[:count] = bias[first : first + count]
            for back in range(taps):
                if back == 0:
                    convert(x, b * stride + first, count, np.float32(1.0), found, 0)
                else:
                    place = (mine + (position - back) % taps) * C + first
                    convert(ring, place, count, np.float32(1.0), found, 0)
                row = (taps - 1 - back) * C + first
                for i in range(count):
                    sums[i] += weight[row + i] * found[i]
            for i in range(count):
                sums[i] /= np.float32(1.0) + np.exp(-sums[i])
            convert(sums, 0, count, np.float32(1.0), y, b * C + first)
            place = (mine + position % taps) * C + first
            for i in range(count):
                ring[place + i] = x[b * stride + first + i]


def prepare(case: ConvCase, inputs: Inputs, target: Target) -> Launch:
    """The weights are widened here, as engines keep them."""
    import torch

    memory, x = inputs["memory"], inputs["x"]
    arguments = (
        spread(x),
        *(array(part) for part in (ring_of(case, memory), y_of(case, memory))),
        *(array(inputs[name].float()) for name in ("weight", "bias")),
        *(array(inputs[name]) for name in ("rings", "positions")),
        (case.B, case.C, case.taps, x.stride(0)),
        torch.empty(threads(target), 2 * PIECE).numpy(),
    )

    def launch() -> torch.Tensor:
        convolve(*arguments)
        return memory

    return launch


def stages(case: ConvCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="conv", work=on_fma(work(case))),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
