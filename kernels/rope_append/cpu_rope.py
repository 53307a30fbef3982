"""QK-norm, rotation and append on one core of the host: some KiB a sequence take less time than to wake another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit, spread
from kernels.common.cpu_loops import convert
from kernels.common.quantization import SCALE_GROUP
from kernels.common.random_inputs import LARGEST
from kernels.op import Inputs, Launch, Stage, Target
from kernels.rmsnorm.cpu_norm import store_codes
from kernels.rope_append.op import RopeCase, cache_of, q_of, work

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
    qkv,
    bias,
    q,
    cache,
    codes,
    k_scale,
    v_scale,
    q_weight,
    k_weight,
    rotations,
    table,
    lengths,
    shape,
    strides,
    limits,
    row,
    bits,
    weights,
):
    """`shape` is H_q, H_kv, D, R, tokens a page, columns of the table, groups of a page; `strides` those of half, page,
    slot and head of the cache, and of rows of qkv. `limits` is the epsilon, the largest code, and whether codes are in
    fp8. `bits` are those of `row`. One of cache and codes is None, and Numba leaves out what would store it."""
    H_q, H_kv, D, R, page, columns, groups = shape
    half, stride_page, stride_slot, stride_head, stride_qkv = strides
    epsilon, largest, to_fp8 = limits
    convert(q_weight, 0, len(q_weight), np.float32(1.0), weights[0], 0)
    convert(k_weight, 0, len(k_weight), np.float32(1.0), weights[1], 0)
    heads = H_q + 2 * H_kv
    for b in range(len(lengths)):
        t = np.int64(lengths[b])
        physical = np.int64(table[b * columns + t // page])
        slot = physical * stride_page + t % page * stride_slot
        for h in range(heads):
            convert(qkv, b * stride_qkv + h * D, D, np.float32(1.0), row, 0)
            if len(bias):
                convert(bias, h * D, D, np.float32(1.0), weights[2], 0)
                for d in range(D):
                    row[d] += weights[2, d]
            if h < H_q + H_kv:
                turn(row, D, R, weights[0 if h < H_q else 1][: len(q_weight)], epsilon, rotations, t)
            kv, head = (h - H_q) // H_kv, (h - H_q) % H_kv
            to = slot + kv * half + head * stride_head
            if h < H_q:
                convert(row, 0, D, np.float32(1.0), q, (b * H_q + h) * D)
                continue
            if cache is not None:
                convert(row, 0, D, np.float32(1.0), cache, to)
            if codes is not None:
                place = (physical * groups + t % page // SCALE_GROUP) * H_kv + head
                unit = v_scale[place] if kv else k_scale[place]
                for d in range(D):
                    row[d] = min(max(row[d], -largest * unit), largest * unit)
                store_codes(row, bits, D, unit, to_fp8, codes, to)


def prepare(case: RopeCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    memory = inputs["memory"]
    kv = cache_of(case, memory)
    kv = kv.view(torch.uint8) if case.kv == "fp8" else kv
    row = torch.empty(case.D).numpy()
    slot, head = (3, 2) if case.layout == "HND" else (2, 3)
    table = inputs["block_table"] if case.page else torch.arange(case.B, dtype=torch.int32)[:, None]
    arguments = (
        spread(inputs["qkv"]),
        *(array(each) for each in (inputs["bias"], q_of(case, memory))),
        *((None, array(kv)) if case.kv else (array(kv), None)),
        *(array(inputs[name]) if case.kv else None for name in ("k_scale", "v_scale")),
        *(array(inputs[name]) for name in ("q_weight", "k_weight", "rotations")),
        array(table),
        array(inputs["lengths"]),
        (case.H_q, case.H_kv, case.D, case.R, case.append.tokens_per_page, table.shape[1], case.scale_shape[1]),
        (kv.stride(0), kv.stride(1), kv.stride(slot), kv.stride(head), inputs["qkv"].stride(0)),
        (np.float32(case.epsilon), np.float32(LARGEST.get(case.kv, 0)), case.kv == "fp8"),
        row,
        row.view(np.int32),
        torch.empty(3, case.D).numpy(),
    )

    def launch() -> torch.Tensor:
        turn_and_append(*arguments)
        return memory

    return launch


def stages(case: RopeCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="rope", work=work(case)),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
