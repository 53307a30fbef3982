"""Routing on one core of the host: some thousand logits take less time than to wake another thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.common.cpu_jit import array, cpu_impl, jit, spread
from kernels.common.cpu_loops import convert
from kernels.op import Inputs, Launch, Stage, Target
from kernels.router.op import RouterCase, output, work

if TYPE_CHECKING:
    import torch


@jit
def score_row(row, E, bias, sigmoid, scores, chosen_by):
    """Scores by a softmax, not divided by their sum, which is returned; or by a sigmoid."""
    if sigmoid:
        for e in range(E):
            scores[e] = np.float32(1.0) / (np.float32(1.0) + np.exp(-row[e]))
            chosen_by[e] = scores[e] + bias[e]
        return np.float32(1.0)
    for e in range(len(bias)):
        row[e] += bias[e]
    largest, total = row[:E].max(), np.float32(0.0)
    for e in range(E):
        scores[e] = chosen_by[e] = np.exp(row[e] - largest)
        total += scores[e]
    return total


@jit
def keep_groups(chosen_by, E, groups, top_groups, sums):
    """-inf for the experts of all but the best groups."""
    each = E // groups
    for g in range(groups):
        first = second = np.float32(-np.inf)
        for value in chosen_by[g * each : (g + 1) * each]:
            if value > first:
                first, second = value, first
            elif value > second:
                second = value
        sums[g] = first + second
    for _ in range(top_groups):
        sums[np.argmax(sums[:groups])] = -np.inf
    for g in range(groups):
        if sums[g] != -np.inf:
            chosen_by[g * each : (g + 1) * each] = -np.inf


@jit
def route(logits, bias, ids, weights, shape, flags, row, scores, chosen_by):
    """`shape` is B, E, k, groups, top_groups, and the stride of rows of logits; `flags` whether scores are sigmoids,
    whether weights are renormalized, and what they are scaled by. `bias` is in fp32."""
    B, E, k, groups, top_groups, stride = shape
    sigmoid, renormalize, scaling = flags
    for b in range(B):
        convert(logits, b * stride, E, np.float32(1.0), row, 0)
        total = score_row(row, E, bias, sigmoid, scores, chosen_by)
        if groups:
            keep_groups(chosen_by, E, groups, top_groups, row)
        taken = np.float32(0.0)
        for j in range(k):
            best = np.argmax(chosen_by)
            ids[b * k + j], weights[b * k + j] = best, scores[best]
            taken += scores[best]
            chosen_by[best] = -np.inf
        for j in range(k):
            weights[b * k + j] *= scaling / (taken if renormalize else total)


def prepare(case: RouterCase, inputs: Inputs, target: Target) -> Launch:
    import torch

    logits = inputs["logits"]
    whole, ids, weights = output(case, logits.device)
    arguments = (
        spread(logits),
        *(array(each) for each in (inputs["bias"].float(), ids, weights)),
        (case.B, case.E, case.k, case.groups, case.top_groups, logits.stride(0)),
        (case.score == "sigmoid", case.renormalize, np.float32(case.scaling)),
        *torch.empty(3, case.E).numpy(),
    )

    def launch() -> torch.Tensor:
        route(*arguments)
        return whole

    return launch


def stages(case: RouterCase, target: Target) -> tuple[Stage, ...]:
    return (Stage(name="router", work=work(case)),)


IMPLS = (cpu_impl(prepare=prepare, stages=stages),)
