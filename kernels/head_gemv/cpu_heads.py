"""Products by head on the host's cores: four rows of a head's matrix at once, each read once for all tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit, kernel, on_fma, prange, threads
from kernels.common.cpu_loops import apart, convert
from kernels.common.cpu_products import ROWS, UNSCALED, multiply_rows
from kernels.head_gemv.op import HeadCase, work
from kernels.op import Inputs, Launch, Stage, Target

if TYPE_CHECKING:
    import torch


@jit
def multiply_run(run, runs, w, y, shape, none, xs, x_at, at, sums, totals):
    """One thread's blocks of rows."""
    apart()
    B, H, N, K = shape
    tiles = (N + ROWS - 1) // ROWS
    for item in range(H * tiles * run // runs, H * tiles * (run + 1) // runs):
        h, first = item // tiles, item % tiles * ROWS
        mine = w[h * N * K : (h + 1) * N * K]
        multiply_rows(mine, first, N, K, none, UNSCALED, xs, x_at[h], B, at, sums, totals)
        for b in range(B):
            convert(totals, b * ROWS, min(ROWS, N - first), np.float32(1.0), y, (b * H + h) * N + first)


@kernel
def multiply(x, w, y, shape, strides, none, xs, x_at, at, sums, totals):
    """`shape` is B, H, N, K, and `strides` are those of x; `x_at` [H, B] are the places of the rows in `xs`."""
    B, H, _, K = shape
    for b in range(B):
        for h in range(H):
            convert(x, b * strides[0] + h * strides[1], K, np.float32(1.0), xs, x_at[h, b])
    for run in prange(len(at)):
        multiply_run(np.int64(run), len(at), w, y, shape, none, xs, x_at, at[run], sums[run], totals[run])


def prepare(case: HeadCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    x, runs, (B, H, N, K) = inputs["x"], threads(target), (case.B, case.H, case.N, case.K)
    strides = (x.stride(0), x.stride(1))
    whole = x.as_strided(((B - 1) * strides[0] + (H - 1) * strides[1] + K,), (1,))
    y = torch.empty(B, H, N, dtype=x.dtype)
    arguments = (
        *(array(whole), array(inputs["w"]), array(y), (B, H, N, K), strides, np.empty(0, dtype=np.float32)),
        torch.empty(B * H * K).numpy(),
        (np.arange(B)[None, :] * H + np.arange(H)[:, None]) * K,
        np.empty((runs, 3 * ROWS), dtype=np.int64),
        *torch.empty(2, runs, B * ROWS).numpy(),
    )

    def launch() -> torch.Tensor:
        multiply(*arguments)
        return y

    return launch


def stages(case: HeadCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="heads", work=on_fma(work(case))),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
