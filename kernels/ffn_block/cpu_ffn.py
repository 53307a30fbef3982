"""The gated FFN block on the host's cores: gate and up rows with the activation, then down rows, in one call.

Each thread has a part of the rows, and reads its rows once for all sequences. x and h are in fp32; in bf16, as torch
has them too, where the processor multiplies bf16 as it is (AVX512-BF16). Those FLOPs are on the pipe of bf16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_gated import activate
from kernels.common.cpu_jit import array, cpu_impl, kernel, on_fma, prange, threads
from kernels.common.cpu_lanes import multiplies_bf16
from kernels.common.cpu_loops import convert
from kernels.common.cpu_products import ROWS, UNSCALED, multiply_rows
from kernels.common.gated import ACTIVATIONS
from kernels.ffn_block.op import FfnCase, work
from kernels.op import Inputs, Launch, Stage, Target

if TYPE_CHECKING:
    import torch


@kernel
def feed_forward(x, w_gate, w_up, w_down, y, shape, xs, x_at, hidden, hidden_at, at, sums, found):
    """`shape` is B, H, F and the kind of activation. `found` has room for two tiles a thread."""
    B, H, F, kind = shape
    runs = len(at)
    none = np.empty(0, dtype=np.float32)
    for b in range(B):
        convert(x, b * H, H, np.float32(1.0), xs, b * H)
    tiles, down_tiles = (F + ROWS - 1) // ROWS, (H + ROWS - 1) // ROWS
    for run in prange(runs):
        gate, up = found[run, 0], found[run, 1]
        for tile in range(tiles * run // runs, tiles * (run + 1) // runs):
            row = tile * ROWS
            multiply_rows(w_gate, row, F, H, none, UNSCALED, xs, x_at, B, at[run], sums[run], gate)
            multiply_rows(w_up, row, F, H, none, UNSCALED, xs, x_at, B, at[run], sums[run], up)
            count = min(ROWS, F - row)
            for b in range(B):
                for i in range(b * ROWS, b * ROWS + count):
                    gate[i] = activate(kind, gate[i], up[i])
                convert(gate, b * ROWS, count, np.float32(1.0), hidden, hidden_at[b] + row)
    for run in prange(runs):
        down = found[run, 0]
        for tile in range(down_tiles * run // runs, down_tiles * (run + 1) // runs):
            row = tile * ROWS
            multiply_rows(w_down, row, H, F, none, UNSCALED, hidden, hidden_at, B, at[run], sums[run], down)
            for b in range(B):
                convert(down, b * ROWS, min(ROWS, H - row), np.float32(1.0), y, b * H + row)


def prepare(case: FfnCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    runs, B, H, F = threads(target), case.B, case.hidden, case.ffn
    y = torch.empty_like(inputs["x"])
    dtype = torch.bfloat16 if in_pairs(case) else torch.float32
    arguments = (
        *(array(inputs[name]) for name in ("x", "w_gate", "w_up", "w_down")),
        array(y),
        (B, H, F, ACTIVATIONS.index(case.activation)),
        array(torch.empty(B * H, dtype=dtype)),
        np.arange(B) * H,
        array(torch.empty(B * F, dtype=dtype)),
        np.arange(B) * F,
        np.empty((runs, 3 * ROWS), dtype=np.int64),
        torch.empty(runs, B * ROWS).numpy(),
        torch.empty(runs, 2, B * ROWS).numpy(),
    )

    def launch() -> torch.Tensor:
        feed_forward(*arguments)
        return y

    return launch


def in_pairs(case: FfnCase) -> bool:
    """Whether weights and x are multiplied in bf16, by an instruction of its own."""
    return case.dtype == "bf16" and multiplies_bf16()


def stages(case: FfnCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="ffn", work=work(case) if in_pairs(case) else on_fma(work(case))),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
