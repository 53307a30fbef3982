"""Top-k on the host's cores: a thread goes through a part of a row once and keeps what may be among the k largest.

A score and its position are one number of 64 bits, in which a larger score is larger, then a lower position. Numbers
that exceed the k-th largest so far are collected; when there are twice as many as needed, half of them go. Of 16 scores
at once only the largest is looked at, so most of a row costs no more than to read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit, kernel, prange, threads
from kernels.common.cpu_loops import BLOCK, largest
from kernels.common.integers import cdiv
from kernels.op import Inputs, Launch, Stage, Target
from kernels.topk.op import TopkCase, lengths, work
from kernels.topk.peers import new_output

if TYPE_CHECKING:
    import torch

SHORTEST = 4096
"""Scores of a part at least."""


@jit
def key_of(bits):
    """A score's bits as fp32 -> an integer in the order of scores; -0 has the key of +0."""
    bits = np.int64(bits)
    if bits == -(1 << 31):
        bits = np.int64(0)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def kth_largest(numbers, k):
    """The k-th largest of numbers that all differ, which change their order (Hoare's selection)."""
    low, high, place = 0, len(numbers) - 1, k - 1
    while low < high:
        pivot = numbers[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while numbers[i] > pivot:
                i += 1
            while numbers[j] < pivot:
                j -= 1
            if i <= j:
                numbers[i], numbers[j] = numbers[j], numbers[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return numbers[place]


@jit
def best_of(found, count, k, room):
    """Keep the k largest of the first `count` numbers, in the order in which they stand; how many there are now."""
    if count <= k:
        return count
    room[:count] = found[:count]
    least = kth_largest(room[:count], k)
    kept = 0
    for i in range(count):
        if found[i] >= least:
            found[kept] = found[i]
            kept += 1
    return kept


@jit
def sort_down(numbers):
    """The largest first. Few numbers are sorted by value."""
    for i in range(1, len(numbers)):
        number, j = numbers[i], i
        while j > 0 and numbers[j - 1] < number:
            numbers[j] = numbers[j - 1]
            j -= 1
        numbers[j] = number


@jit
def pick(scores, bits, shift, row, first, last, k, found, room):
    """The k largest of the scores from `first` to `last` of the row that begins at `row`, in `found`; their number."""
    limit = np.empty(1, dtype=np.int32)
    count, floor, full = 0, np.int64(-(1 << 63)), False
    for start in range(first, last, BLOCK):
        end = min(start + BLOCK, last)
        if full and end - start == BLOCK and not largest(scores, row + start) > limit.view(np.float32)[0]:
            continue
        for i in range(start, end):
            number = (key_of(np.int64(bits[row + i]) << shift) << 32) | (0x7FFFFFFF - i)
            if number > floor:
                found[count] = number
                count += 1
                if count == len(found):
                    count = best_of(found, count, k, room)
                    floor, full = room[k - 1], True
                    key = floor >> 32
                    limit[0] = key ^ ((key >> 31) & 0x7FFFFFFF)
    return best_of(found, count, k, room)


@jit
def put(bits, shift, row, chosen, by_value, values, out):
    """Write the chosen numbers of a row to `out [1 or 2, k]`."""
    if by_value:
        sort_down(chosen)
    for i in range(out.shape[1]):
        position = 0x7FFFFFFF - (chosen[i] & 0xFFFFFFFF) if i < len(chosen) else -1
        out[0, i] = position
        if values:  # -inf where there is none
            out[1, i] = np.int64(bits[row + position]) << shift if position >= 0 else -(1 << 23)


@kernel
def topk(scores, bits, shift, ends, k, by_value, values, found, room, counts, out):
    """`found` and `room [B, parts, ..]` and `counts [B, parts]` are for what parts pick; out is [B, 1 or 2, k]."""
    B, parts = counts.shape
    N = len(scores) // B
    for task in prange(B * parts):
        b, part = np.int64(task) // parts, np.int64(task) % parts
        first, last = ends[b] * part // parts, ends[b] * (part + 1) // parts
        counts[b, part] = pick(scores, bits, shift, b * N, first, last, k, found[b, part], room[b, part])
    for b in range(B):
        all_parts, at = found[b].reshape(-1), 0
        for part in range(parts):
            for i in range(counts[b, part]):
                all_parts[at] = found[b, part, i]
                at += 1
        at = best_of(all_parts, at, k, room[b].reshape(-1))
        put(bits, shift, b * N, all_parts[:at], by_value, values, out[b])


def prepare(case: TopkCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    scores = inputs["scores"]
    out = new_output(case, scores)
    parts = min(cdiv(threads(target), case.B), max(1, case.N // SHORTEST))
    arguments = (
        array(scores),
        scores.view(torch.int32 if case.dtype == "fp32" else torch.int16).reshape(-1).numpy(),
        0 if case.dtype == "fp32" else 16,
        np.array(lengths(case), dtype=np.int64),
        case.k,
        case.order == "value",
        case.values,
        *(np.empty((case.B, parts, 2 * case.k + 256), dtype=np.int64) for _ in range(2)),
        np.empty((case.B, parts), dtype=np.int64),
        out.view(case.B, -1, case.k).numpy(),
    )

    def launch() -> torch.Tensor:
        topk(*arguments)
        return out

    return launch


def stages(case: TopkCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="topk", work=work(case)),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
