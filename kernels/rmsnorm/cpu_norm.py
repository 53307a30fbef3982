"""RMSNorm on the host: one thread, or all where there are so many values that waking them takes less than they save."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit, kernel, prange, spread, threads
from kernels.common.cpu_loops import convert
from kernels.common.random_inputs import LARGEST
from kernels.op import Inputs, Launch, Stage, Target
from kernels.rmsnorm.op import GATES, LEAST, NormCase, output, work

if TYPE_CHECKING:
    import torch

ALONE = 1 << 16
"""So many values take one thread about 20 us, as long as to wake another one."""


SILU, SIGMOID, SILU_FIRST = range(3)
"""Gates, as `GATES` counts them."""


@jit
def open_share(share, at, spare):
    """What the addend is multiplied by."""
    if not len(share):
        return np.float32(1.0)
    convert(share, at, 1, np.float32(1.0), spare, 0)
    return np.float32(1.0) / (np.float32(1.0) + np.exp(-spare[0]))


@jit
def norm_row(x, residual, addend, share, z, h, b, D, strides, gating, epsilon, row, other, weight):
    """`row` becomes the normalized row b. With a residual, h gets the sum, which is rounded before the norm. `strides`
    are those of rows of x and of the addend, and of tokens of shares and of z; `gating` the groups of a token, how many
    of them have a weight of their own, and the number of the gate."""
    groups, own, gate = gating
    convert(x, b * strides[0], D, np.float32(1.0), row, 0)
    if len(residual):
        convert(residual, b * D, D, np.float32(1.0), other, 0)
        for d in range(D):
            row[d] += other[d]
        if len(addend):
            convert(addend, b * strides[1], D, open_share(share, b * strides[2], other), other, 0)
            for d in range(D):
                row[d] += other[d]
        convert(row, 0, D, np.float32(1.0), h, b * D)
        convert(h, b * D, D, np.float32(1.0), row, 0)
    if gate >= 0:
        convert(z, b // groups * strides[3] + b % groups * D, D, np.float32(1.0), other, 0)
        for d in range(D):
            opened = np.float32(1.0) / (np.float32(1.0) + np.exp(-other[d]))
            other[d] = opened if gate == SIGMOID else other[d] * opened
    if gate == SILU_FIRST:
        for d in range(D):
            row[d] *= other[d]
    total = np.float32(0.0)
    for d in range(D):
        total += row[d] * row[d]
    factor = np.float32(1.0) / np.sqrt(total / np.float32(D) + epsilon)
    first = b % own * D
    for d in range(D):
        row[d] = row[d] * factor * weight[first + d]
    if gate in (SILU, SIGMOID):
        for d in range(D):
            row[d] *= other[d]


@jit
def scale_of(row, D, most, least):
    largest = np.float32(0.0)
    for d in range(D):
        if not abs(row[d]) <= largest:  # a NaN stays
            largest = abs(row[d])
    return max(largest / most, least) if largest == largest else largest


@jit
def store_codes(row, bits, D, unit, to_fp8, y, at):
    """int8, or e4m3 in the bytes of y. Of a fp32 the last 20 bits of the mantissa are rounded away, to even."""
    for d in range(D):
        row[d] = row[d] / unit
    for d in range(D):
        if not to_fp8:
            y[at + d] = np.int8(np.rint(row[d]))
            continue
        size = bits[d] & 0x7FFFFFFF
        if size < 0x3C800000:  # below 2^-6, in steps of 2^-9
            code = np.int64(np.rint(abs(row[d]) * np.float32(512.0)))
        else:
            code = min(np.int64((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960, np.int64(126))
        y[at + d] = code | ((bits[d] >> 24) & 0x80)


@jit
def norm_rows(
    first,
    last,
    x,
    residual,
    addend,
    share,
    z,
    w,
    y,
    codes,
    scale,
    h,
    D,
    strides,
    gating,
    limits,
    row,
    bits,
    other,
    weight,
):
    """`limits` is the epsilon, the largest code, the least scale, and whether codes are in fp8. One of y and codes is
    None, and Numba leaves out what would store it."""
    convert(w, 0, len(w), np.float32(1.0), weight, 0)
    epsilon, most, least, to_fp8 = limits
    for b in range(first, last):
        norm_row(x, residual, addend, share, z, h, b, D, strides, gating, epsilon, row, other, weight)
        if y is not None:
            convert(row, 0, D, np.float32(1.0), y, b * D)
        if codes is not None:
            scale[b] = scale_of(row, D, most, least)
            store_codes(row, bits, D, scale[b], to_fp8, codes, b * D)


@kernel
def norm_all(
    x, residual, addend, share, z, w, y, codes, scale, h, B, D, strides, gating, limits, row, bits, other, weight
):
    runs = len(row)
    for r in prange(runs):
        norm_rows(
            B * r // runs,
            B * (r + 1) // runs,
            x,
            residual,
            addend,
            share,
            z,
            w,
            y,
            codes,
            scale,
            h,
            D,
            strides,
            gating,
            limits,
            row[r],
            bits[r],
            other[r],
            weight[r],
        )


def prepare(case: NormCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    x = inputs["x"]
    out = output(case, x.device)
    B, D = case.rows, case.D
    runs = min(threads(target), B) if B * D > ALONE else 1
    rows, weights = torch.empty(2, runs, D).numpy(), torch.empty(runs, len(inputs["w"])).numpy()
    limits = (np.float32(case.epsilon), np.float32(LARGEST.get(case.activations, 0)), np.float32(LEAST))
    none = torch.empty(0, dtype=x.dtype)
    y, codes = (None, array(out.y)) if case.quantized else (array(out.y), None)
    given = (
        spread(x),
        *(array(inputs.get(name, none)) for name in ("residual", "addend")),
        *(spread(inputs[name]) if name in inputs else array(none) for name in ("share", "z")),
        array(inputs["w"]),
        *(y, codes, array(out.scale)),
        array(out.h if case.residual else none),
    )
    scratch = (rows[0], rows[0].view(np.int32), rows[1], weights)
    flags = (*limits, case.activations == "fp8")
    apart = (inputs[name].stride(0) if name in inputs else 0 for name in ("share", "z"))
    strides = (x.stride(0), 0 if case.addend == "bias" else D, *apart)
    gating = (case.groups, 1 if case.shared else case.groups, GATES.index(case.gate) if case.gate else -1)

    def launch() -> torch.Tensor:
        if runs > 1:
            norm_all(*given, B, D, strides, gating, flags, *scratch)
        else:
            norm_rows(0, B, *given, D, strides, gating, flags, *(each[0] for each in scratch))
        return out.whole

    return launch


def stages(case: NormCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="norm", work=work(case)),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
