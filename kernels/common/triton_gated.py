"""The activations of `kernels/common/gated.py` in Triton, on fp32 sums."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.common import gated

LIMIT: tl.constexpr = tl.constexpr(gated.LIMIT)
ALPHA: tl.constexpr = tl.constexpr(gated.ALPHA)
CUBE: tl.constexpr = tl.constexpr(gated.CUBE)
TWICE: tl.constexpr = tl.constexpr(2 * gated.SQRT_2_OVER_PI)


@triton.jit
def hidden(gate, up, ACTIVATION: tl.constexpr):
    """h; (1 + tanh(z)) / 2 is the logistic function of 2 z."""
    if ACTIVATION == "relu2":
        # not tl.maximum, which drops a NaN
        positive = tl.where(gate < 0.0, 0.0, gate)
        h = positive * positive
    else:
        if ACTIVATION == "geglu":
            z = TWICE * (gate + CUBE * gate * gate * gate)
        elif ACTIVATION == "swiglu_clamped":
            gate = tl.minimum(gate, LIMIT)
            up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT) + 1.0
            z = ALPHA * gate
        elif ACTIVATION == "glu":
            z = gate
            gate = 1.0
        else:
            z = gate
        h = gate / (1.0 + tl.exp(-z)) * up
    return h


@triton.jit
def output_of(sums, sums_up, ACTIVATION: tl.constexpr):
    """The sums themselves, or h if there is a second sum."""
    return sums if sums_up is None else hidden(sums, sums_up, ACTIVATION)
