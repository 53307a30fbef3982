"""QK-norm, rotation and append on one core of the host: some KiB a sequence take less time than to wake another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit
from kernels.common.cpu_loops import convert
from kernels.op import Inputs, Launch, Stage, Target
from kernels.rope_append.op import RopeCase, cache_of, work

if TYPE_CHECKING:
    import torch


@jit
def turn(row, D, R, weight, epsilon, rotations, position):
    """Normalize a head, if there is a weight, and rotate its first R dims."""
    if len(weight):
        total = np.float32(0.0)
        for d in range(D):
            total += row[d] * row[d]
        factor = np.float32(1.0) / np.sqrt(total / np.float32(D) + epsilon)
        for d in range(D):
            row[d] = row[d] * factor * weight[d]
    half, at = R // 2, position * R
    for i in range(half):
        cos, sin = rotations[at + i], rotations[at + half + i]
        first, second = row[i], row[half + i]
        row[i], row[half + i] = first * cos - second * sin, second * cos + first * sin


@jit
def turn_and_append(
    qkv, bias, memory, q_weight, k_weight, rotations, table, lengths, shape, strides, epsilon, row, weights
):
    """`shape` is H_q, H_kv, D, R, tokens a page, columns of the table; `strides` those of half, page, slot and head,
    and where the cache begins."""
    H_q, H_kv, D, R, page, columns = shape
    half, stride_page, stride_slot, stride_head, cache = strides
    convert(q_weight, 0, len(q_weight), np.float32(1.0), weights[0], 0)
    convert(k_weight, 0, len(k_weight), np.float32(1.0), weights[1], 0)
    heads = H_q + 2 * H_kv
    for b in range(len(lengths)):
        t = np.int64(lengths[b])
        slot = cache + np.int64(table[b * columns + t // page]) * stride_page + t % page * stride_slot
        for h in range(heads):
            convert(qkv, (b * heads + h) * D, D, np.float32(1.0), row, 0)
            if len(bias):
                convert(bias, h * D, D, np.float32(1.0), weights[2], 0)
                for d in range(D):
                    row[d] += weights[2, d]
            if h < H_q + H_kv:
                turn(row, D, R, weights[0 if h < H_q else 1][: len(q_weight)], epsilon, rotations, t)
            kv, head = (h - H_q) // H_kv, (h - H_q) % H_kv
            to = (b * H_q + h) * D if h < H_q else slot + kv * half + head * stride_head
            convert(row, 0, D, np.float32(1.0), memory, to)


def prepare(case: RopeCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    memory = inputs["memory"]
    kv = cache_of(case, memory)
    slot, head = (3, 2) if case.layout == "HND" else (2, 3)
    table = inputs["block_table"] if case.page else torch.arange(case.B, dtype=torch.int32)[:, None]
    arguments = (
        *(array(inputs[name]) for name in ("qkv", "bias", "memory", "q_weight", "k_weight", "rotations")),
        array(table),
        array(inputs["lengths"]),
        (case.H_q, case.H_kv, case.D, case.R, case.append.tokens_per_page, table.shape[1]),
        (kv.stride(0), kv.stride(1), kv.stride(slot), kv.stride(head), case.q_rows * case.D),
        np.float32(case.epsilon),
        torch.empty(case.D).numpy(),
        torch.empty(3, case.D).numpy(),
    )

    def launch() -> torch.Tensor:
        turn_and_append(*arguments)
        return memory

    return launch


def stages(case: RopeCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="rope", work=work(case)),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
