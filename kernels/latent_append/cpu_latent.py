"""Norm, rotation and append of latents on one core of the host: some KiB a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit, spread
from kernels.common.cpu_loops import convert
from kernels.latent_append.op import LatentCase, cache_of, work
from kernels.op import Inputs, Launch, Stage, Target
from kernels.rope_append.cpu_rope import turn

if TYPE_CHECKING:
    import torch


@jit
def append_latents(q, kv, memory, weight, rotations, table, lengths, shape, strides, epsilon, row, widened, none):
    """`shape` is H, D, L, R, tokens a page, columns of the table; `strides` are those of q, of kv, of a page, and where
    the cache begins."""
    H, D, L, R, page, columns = shape
    stride_q, stride_kv, stride_page, cache = strides
    convert(weight, 0, L, np.float32(1.0), widened, 0)
    for b in range(len(lengths)):
        t = np.int64(lengths[b])
        for h in range(H):
            convert(q, b * stride_q + h * (D + R) + D, R, np.float32(1.0), row, 0)
            turn(row, R, R, none, epsilon, rotations, t)
            convert(row, 0, R, np.float32(1.0), memory, (b * H + h) * R)
        to = cache + np.int64(table[b * columns + t // page]) * stride_page + t % page * (L + R)
        convert(kv, b * stride_kv + L, R, np.float32(1.0), row, 0)
        turn(row, R, R, none, epsilon, rotations, t)
        convert(row, 0, R, np.float32(1.0), memory, to + L)
        convert(kv, b * stride_kv, L, np.float32(1.0), row, 0)
        turn(row, L, 0, widened, epsilon, rotations, t)
        convert(row, 0, L, np.float32(1.0), memory, to)


def prepare(case: LatentCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    memory, kv = inputs["memory"], inputs["kv"]
    table = inputs["block_table"] if case.page else torch.arange(case.B, dtype=torch.int32)[:, None]
    arguments = (
        spread(inputs["q"]),
        spread(kv),
        *(array(each) for each in (memory, inputs["weight"], inputs["rotations"], table, inputs["lengths"])),
        (case.H, case.D, case.L, case.R, case.append.tokens_per_page, table.shape[1]),
        (inputs["q"].stride(0), kv.stride(0), cache_of(case, memory).stride(0), case.q_rows * case.R),
        np.float32(case.epsilon),
        *torch.empty(2, case.L).numpy(),
        np.empty(0, dtype=np.float32),
    )

    def launch() -> torch.Tensor:
        append_latents(*arguments)
        return memory

    return launch


def stages(case: LatentCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="latents", work=work(case)),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
