"""Sampling on the host's cores, a row for each thread: the weights once, then a bisection over logits as integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import cpu_impl, jit, kernel, prange, threads
from kernels.op import Inputs, Launch, Stage, Target
from kernels.sampling.op import SamplingCase, work
from kernels.topk.cpu_topk import key_of

if TYPE_CHECKING:
    import torch


@jit
def mass_from(keys, weights, least):
    """The weight of tokens whose key is at least `least`."""
    total = np.float64(0.0)
    for i in range(len(keys)):
        total += weights[i] if keys[i] >= least else np.float32(0.0)
    return total


@jit
def number_from(keys, least):
    count = 0
    for i in range(len(keys)):
        count += keys[i] >= least
    return count


@jit
def threshold(keys, weights, least, top, k, wanted):
    """The largest key from which on there are k tokens, or with k = 0 the `wanted` weight; at least `least`."""
    low, high = np.int64(least), np.int64(top) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        if k > 0:
            enough = number_from(keys, np.int32(middle)) >= k
        else:
            enough = mass_from(keys, weights, np.int32(middle)) >= wanted
        if enough:
            low = middle
        else:
            high = middle
    return low


@jit
def draw(bits, shift, scale, k, p, min_p, u, keys, numbers, weights):
    """The token of one row. `scale` is 1 / temperature, 0 for greedy; `numbers` is the memory of `keys` as fp32."""
    V = len(bits)
    top, best = np.int32(-(2**31)), 0
    for i in range(V):
        key = np.int32(key_of(np.int64(bits[i]) << shift))
        keys[i] = key
        if key > top:
            top, best = key, i
    if scale == 0:
        return best
    for i in range(V):  # a logit's bits, in the place of its key
        keys[i] ^= (keys[i] >> 31) & 0x7FFFFFFF
    largest = numbers[best]
    for i in range(V):
        weights[i] = np.exp((numbers[i] - largest) * scale)
    for i in range(V):
        keys[i] ^= (keys[i] >> 31) & 0x7FFFFFFF
    least = np.int64(-(2**31))
    if k > 0:
        least = threshold(keys, weights, least, top, k, 0.0)
    if p > 0:
        least = threshold(keys, weights, least, top, 0, p * mass_from(keys, weights, np.int32(least)))
    total = 0.0
    for i in range(V):
        if keys[i] < least or weights[i] < min_p:
            weights[i] = 0.0
        total += weights[i]
    wanted, passed = u * total, 0.0
    for i in range(V):
        passed += weights[i]
        if passed > wanted:
            return i
    return V - 1


@kernel
def sample(bits, shift, scale, k, p, min_p, u, filters, starts, keys, numbers, weights, token):
    """Thread i has the rows from starts[i] to starts[i + 1]; `filters` are 1 where p and min_p count, else 0."""
    V = keys.shape[1]
    for run in prange(len(starts) - 1):
        for b in range(starts[run], starts[run + 1]):
            share, height = p[b] * filters[0], min_p[b] * filters[1]
            row = bits[b * V : (b + 1) * V]
            token[b] = draw(row, shift, scale, k, share, height, u[b], keys[run], numbers[run], weights[run])


def prepare(case: SamplingCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    logits, runs = inputs["logits"], min(case.B, threads(target))
    bits = logits.contiguous().view(torch.int32 if case.dtype == "fp32" else torch.int16)
    token = torch.empty(case.B, dtype=torch.int32)
    keys = torch.empty(runs, case.V, dtype=torch.int32)
    arguments = (
        bits.view(-1).numpy(),
        0 if case.dtype == "fp32" else 16,
        np.float32(1 / case.temperature if case.temperature else 0.0),
        case.k,
        *(inputs[name].numpy() for name in ("p", "min_p", "u")),
        np.array([case.p > 0, case.min_p > 0], dtype=np.float32),
        np.array([case.B * run // runs for run in range(runs + 1)], dtype=np.int64),
        keys.numpy(),
        keys.view(torch.float32).numpy(),
        torch.empty(runs, case.V).numpy(),
        token.numpy(),
    )

    def launch() -> torch.Tensor:
        sample(*arguments)
        return token

    return launch


def stages(case: SamplingCase, target: Target) -> tuple[Stage, ...]:
    """Keys and weights of a row stay in the caches of its core."""
    return (Stage(name="sample", work=work(case)),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
