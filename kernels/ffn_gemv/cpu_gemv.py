"""GEMV on the host's cores: each thread has a part of the rows of W, and multiplies four of them at once.

bf16 weights are multiplied as they are where the processor can (AVX512-BF16), and those FLOPs are on the pipe of bf16.
Else 16- and 8-bit weights are widened to fp32 in registers. 4-bit codes are multiplied as they are, and each group's
sum is scaled once, in bf16 too where the processor can. All other FLOPs are fp32 on the ordinary arithmetic pipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit, kernel, on_fma, prange, threads
from kernels.common.cpu_lanes import lanes, multiplies_bf16
from kernels.common.cpu_loops import apart, convert
from kernels.common.cpu_products import ROWS, multiply_packed, multiply_rows
from kernels.common.integers import cdiv
from kernels.common.quantization import FORMATS
from kernels.common.random_inputs import torch_dtype
from kernels.ffn_gemv.op import GemvCase, work
from kernels.op import Inputs, Launch, Stage, Target

if TYPE_CHECKING:
    import torch

WHOLE = 1 << 40
"""More rows or columns than a matrix has: one scale for all of them."""


@jit
def store_rows(totals, first, N, tokens, y):
    for j in range(tokens):
        convert(totals, j * ROWS, min(ROWS, N - first), np.float32(1.0), y, j * N + first)


@jit
def multiply_run(run, runs, x, x_scale, w, scale, y, shape, scaling, xs, x_at, at, sums, totals):
    """One thread's rows. A slice of an array costs as much as some lines, so none is made for each tile."""
    apart()
    B, N, K = shape
    for b in range(B):
        convert(x, b * K, K, x_scale[b] if len(x_scale) else np.float32(1.0), xs, b * K)
    tiles = (N + ROWS - 1) // ROWS
    for tile in range(tiles * run // runs, tiles * (run + 1) // runs):
        first = tile * ROWS
        multiply_rows(w, first, N, K, scale, scaling, xs, x_at, B, at, sums, totals)
        store_rows(totals, first, N, B, y)


@kernel
def multiply(x, x_scale, w, scale, y, shape, scaling, xs, x_at, at, sums, totals):
    """Each run copies x for itself, widened to the type of `xs`, then multiplies its rows. `shape` is B, N, K."""
    runs = len(xs)
    for run in prange(runs):
        mine = (xs[run], x_at, at[run], sums[run], totals[run])
        multiply_run(np.int64(run), runs, x, x_scale, w, scale, y, shape, scaling, *mine)


@jit
def spread_columns(x, B, K, group, count, parts, xs, x_sums, row, spread):
    """Of each group the columns 0, `parts`, 2 `parts` and so on, then 1, ...; and sums of each group lane by lane."""
    groups = (K + group - 1) // group
    width = groups * group
    for b in range(B):
        convert(x, b * K, K, np.float32(1.0), row, 0)
        row[K:width] = 0.0
        for g in range(groups):
            for part in range(parts):
                for i in range(group // parts):
                    spread[part * (group // parts) + i] = row[g * group + parts * i + part]
            convert(spread, 0, group, np.float32(1.0), xs, b * width + g * group)
            lane = (b * groups + g) * count
            x_sums[lane : lane + count] = 0.0
            for i in range(group):
                x_sums[lane + i % count] += spread[i]


@jit
def multiply_4bit_run(run, runs, x, w, scale, zero, y, shape, xs, x_sums, row, spread, x_at, at, totals):
    """One thread's rows."""
    apart()
    B, N, K, group, count, parts = shape
    spread_columns(x, B, K, group, count, parts, xs, x_sums, row, spread)
    tiles = (N + ROWS - 1) // ROWS
    for tile in range(tiles * run // runs, tiles * (run + 1) // runs):
        first = tile * ROWS
        multiply_packed(w, first, N, K, scale, zero, group, xs, x_at, x_sums, B, at, totals)
        store_rows(totals, first, N, B, y)


@kernel
def multiply_4bit(x, w, scale, zero, y, shape, xs, x_sums, row, spread, x_at, at, totals):
    """`shape` is B, N, K, columns of a group, lanes of a vector, parts of a group."""
    runs = len(xs)
    for run in prange(runs):
        multiply_4bit_run(
            np.int64(run),
            runs,
            x,
            w,
            scale,
            zero,
            y,
            shape,
            xs[run],
            x_sums[run],
            row[run],
            spread[run],
            x_at,
            at[run],
            totals[run],
        )


def scaling(case: GemvCase) -> tuple[int, int, int]:
    """Rows and columns that share a scale, and the scales of a row."""
    kind = FORMATS.get(case.weights)
    if kind is None:
        return (WHOLE, WHOLE, 0)
    return (kind.group_n, kind.group_k or WHOLE, cdiv(case.K, kind.group_k) if kind.group_k else 1)


def prepare(case: GemvCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    runs, B, K = threads(target), case.B, case.K
    y = torch.empty(B, case.N, dtype=torch_dtype(case.dtype))
    at, totals = np.empty((runs, 3 * ROWS), dtype=np.int64), torch.empty(runs, B * ROWS).numpy()
    given = inputs["x"]
    rows = given if given.is_contiguous() else torch.empty(B, K, dtype=given.dtype)
    x, w = array(rows), array(inputs["w"])
    arguments: tuple
    if case.quantized and FORMATS[case.weights].bits == 4:
        function, group, count = multiply_4bit, FORMATS[case.weights].group_k, lanes()
        width = cdiv(K, group) * group
        zero = array(inputs["w_zero"]) if "w_zero" in inputs else np.empty(0, dtype=np.float32)
        paired = codes_in_pairs(case)
        xs = torch.empty(runs * B * width, dtype=torch.bfloat16 if paired else torch.float32)
        shape = (B, case.N, K, group, count, 4 if paired else 2)
        arguments = (
            *(x, w, array(inputs["w_scale"]), zero, array(y), shape),
            array(xs).reshape(runs, B * width),
            torch.empty(runs, B * width // group * count).numpy(),
            torch.empty(runs, width).numpy(),
            torch.empty(runs, group).numpy(),
            np.arange(B) * width,
            at,
            totals,
        )
    else:
        function = multiply
        xs = torch.empty(runs, B * K, dtype=torch.bfloat16 if in_pairs(case) else torch.float32)
        scale = array(inputs["w_scale"]) if case.quantized else np.empty(0, dtype=np.float32)
        arguments = (
            *(x, array(inputs["x_scale"]), w, scale, array(y), (B, case.N, K), scaling(case)),
            array(xs).reshape(runs, B * K),
            np.arange(B) * K,
            at,
            torch.empty(runs, B * ROWS).numpy(),
            totals,
        )

    def launch() -> torch.Tensor:
        if rows is not given:  # some columns of a wider product
            rows.copy_(given)
        function(*arguments)
        return y

    return launch


def in_pairs(case: GemvCase) -> bool:
    """Whether W and x are multiplied in bf16, by an instruction of its own."""
    return case.dtype == case.activations == "bf16" and not case.quantized and multiplies_bf16()


def codes_in_pairs(case: GemvCase) -> bool:
    """Whether codes of 4 bits are multiplied as bf16 numbers."""
    whole = case.K % FORMATS[case.weights].group_k == 0 and lanes() == 16
    return case.weights.startswith("int4") and case.dtype == "bf16" and whole and multiplies_bf16()


def stages(case: GemvCase, target: Target) -> tuple[Stage, ...]:
    paired = codes_in_pairs(case) if case.quantized and FORMATS[case.weights].bits == 4 else in_pairs(case)
    return (Stage(name="gemv", work=work(case) if paired else on_fma(work(case))),)


def supports(case: GemvCase, target: Target) -> str | None:
    none = case.weights in ("nvfp4", "mxfp8")
    return f"no kernel here multiplies {case.weights} on a host" if none else None


IMPLS = (cpu_impl(prepare=prepare, stages=stages, supports=supports),)
