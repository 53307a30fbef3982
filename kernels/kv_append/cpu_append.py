"""Cache writes on one core of the host: some KiB a sequence take less time than to wake another thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit
from kernels.kv_append.op import AppendCase, work
from kernels.op import Inputs, Launch, Stage, Target

if TYPE_CHECKING:
    import torch


@jit
def append(k, v, kv, table, lengths, shape, strides):
    """`shape` is H_kv, D, tokens a page, columns of the table; `strides` those of half, page, slot and head."""
    H_kv, D, page, columns = shape
    half, stride_page, stride_slot, stride_head = strides
    for b in range(len(lengths)):
        t = np.int64(lengths[b])
        if t < 0:
            continue
        at = np.int64(table[b * columns + t // page]) * stride_page + t % page * stride_slot
        for h in range(H_kv):
            first, to = (b * H_kv + h) * D, at + h * stride_head
            for d in range(D):
                kv[to + d] = k[first + d]
                kv[half + to + d] = v[first + d]


def prepare(case: AppendCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    kv = inputs["kv"]
    slot, head = (3, 2) if case.layout == "HND" else (2, 3)
    table = inputs["block_table"] if case.page else torch.arange(case.B, dtype=torch.int32)[:, None]
    arguments = (
        *(array(inputs[name]) for name in ("k", "v", "kv")),
        array(table),
        array(inputs["lengths"]),
        (case.H_kv, case.D, case.tokens_per_page, table.shape[1]),
        (kv.stride(0), kv.stride(1), kv.stride(slot), kv.stride(head)),
    )

    def launch() -> torch.Tensor:
        append(*arguments)
        return kv

    return launch


def stages(case: AppendCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="append", work=work(case)),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
