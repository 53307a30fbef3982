"""The activations of `kernels/common/gated.py` on a host, one value at a time, in fp32."""

from __future__ import annotations

import numpy as np

from kernels.common.cpu_jit import jit
from kernels.common.gated import ACTIVATIONS, ALPHA, CUBE, LIMIT, SQRT_2_OVER_PI

RELU2 = ACTIVATIONS.index("relu2")
"""The kind that has no gate."""


@jit
def activate(kind, g, u):
    """h of `kernels/common/gated.py`; `kind` counts in its `ACTIVATIONS`."""
    one = np.float32(1.0)
    if kind == 0:
        return g / (one + np.exp(-g)) * u
    if kind == 1:
        inner = np.float32(SQRT_2_OVER_PI) * (g + np.float32(CUBE) * g * g * g)
        return g * (one + np.tanh(inner)) * np.float32(0.5) * u
    if kind == 3:
        return u / (one + np.exp(-g))
    if kind == RELU2:
        return np.float32(0.0) if g < np.float32(0.0) else g * g
    # not min and max, which drop a NaN
    limit = np.float32(LIMIT)
    if g > limit:
        g = limit
    if u > limit:
        u = limit
    if u < -limit:
        u = -limit
    return g / (one + np.exp(-np.float32(ALPHA) * g)) * (u + one)
