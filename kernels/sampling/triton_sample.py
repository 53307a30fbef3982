"""Up to three launches over all SMs, none of which sorts. Each ends in the CTA of a row that finishes last.

1. `largest`: the largest logit of each group of neighbours, the weight of all tokens. The last CTA knows the largest
   logit, which is enough for min_p, and a bound below which no logit can be kept: the k-th largest of the groups'
   maxima, or the largest t at which the maxima from t on have p of the weight already. (Where they never have it:
   the logit of (1 - p) / V of the weight, since all tokens below that have less than 1 - p together.)
2. `threshold`, with k or p: the logits from the bound on are listed. The last CTA finds the threshold by bisection.
3. `pick`: the weight of kept tokens in each part of a row. The last CTA finds the part in which u falls, and the token.

Greedy needs the first one alone. Keys are logits as integers of the same order; of bf16 only the upper 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.common.integers import cdiv, next_power_of_2
from kernels.common.random_inputs import BYTES
from kernels.common.triton_kv import LOG2_E
from kernels.common.workspace import passing
from kernels.launch import Built, KernelLaunch, registers, triton_impl
from kernels.op import Inputs, Stage, Target, Work
from kernels.sampling.op import SamplingCase, work
from kernels.topk.triton_pick import LEAST, key_of, kth_largest_of_tile, widened

MOST_GROUPS = 8192
"""Maxima that one CTA of 16 warps keeps in registers."""

PART = 4096
"""Logits that a CTA reads, 16 bytes or two times 16 in each of its threads."""

TILE = 4096
"""Listed logits that the last CTA keeps in registers with their weights. The rest of a list comes from the L2 again in
each step: with p = 0.9 a list has about 1/12 of 128K logits."""

STEPS = 16
"""Steps of a bisection between the bound and the largest logit, in keys of 16 bits about 10, of 32 bits 25."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Groups of `group` logits, `tile` of them a row, padded; `parts` CTAs a row."""

    group: int
    tile: int
    parts: int


def plan(case: SamplingCase, target: Target) -> Plan:
    group = max(4, next_power_of_2(cdiv(case.V, MOST_GROUPS)))
    tile = next_power_of_2(cdiv(case.V, group))
    return Plan(group=group, tile=max(tile, PART // group), parts=cdiv(case.V, PART))


@triton.jit
def number_of(key):
    """The logit of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def weight_of(x, largest, factor):
    """`factor` is log2(e) / temperature."""
    return tl.exp2((x - largest) * factor)


@triton.jit
def part_of(logits, b, part, V, stride_b, PART: tl.constexpr):
    """A part of a row in fp32, with -inf behind the end, and where it begins."""
    first = part * PART
    offs = first + tl.arange(0, PART)
    x = tl.load(logits + b * stride_b + offs, mask=offs < V, other=float("-inf"))
    return widened(x), offs


@triton.jit
def mass_bound(keys, largest, least, factor, wanted, SHIFT: tl.constexpr):
    """The largest key at which the keys from it on have the `wanted` weight; `least` if they never have."""
    weights = tl.where(keys == LEAST, 0.0, weight_of(number_of(keys), largest, factor))
    low = (least >> SHIFT).to(tl.int64)
    high = (tl.max(keys) >> SHIFT).to(tl.int64) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        enough = tl.sum(tl.where(keys >= (middle << SHIFT).to(tl.int32), weights, 0.0)) >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return (low << SHIFT).to(tl.int32)


@triton.jit
def largest_kernel(
    logits,  # [B, V]
    p,  # [B] fp32
    min_p,
    maxima,  # [B, TILE] int32, keys
    sums,  # [B, PARTS, 2] fp32: largest logit, weight relative to it
    bounds,  # [B, 2] int32: keys of the bound and of the threshold
    largest,  # [B, 2] fp32: largest logit, weight of all tokens
    arrived,  # [B] int32, zeros
    token,  # [B] int32
    V,
    k,
    factor,
    stride_b,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    GREEDY: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    MIN_P: tl.constexpr,
    SHIFT: tl.constexpr,
):
    part = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    x, _ = part_of(logits, b, part, V, stride_b, PART)
    of_group = tl.max(tl.reshape(x, [PART // GROUP, GROUP]), axis=1)
    tl.store(maxima + b * TILE + part * (PART // GROUP) + tl.arange(0, PART // GROUP), key_of(of_group))
    if P and not K:
        of_part = tl.max(of_group)
        tl.store(sums + 2 * (b * PARTS + part), of_part)
        tl.store(sums + 2 * (b * PARTS + part) + 1, tl.sum(weight_of(x, of_part, factor)))
    tl.debug_barrier()
    if tl.atomic_add(arrived + b, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(arrived + b, 0)
        offs_g = tl.arange(0, TILE)
        mask = offs_g * GROUP < V
        keys = tl.load(maxima + b * TILE + offs_g, mask=mask, other=LEAST, cache_modifier=".cg")
        best = tl.max(keys)
        if GREEDY:
            group = tl.min(tl.where(keys == best, offs_g, TILE))
            offs_e = tl.arange(0, GROUP)
            inside = group * GROUP + offs_e < V
            near = tl.load(logits + b * stride_b + group * GROUP + offs_e, mask=inside, other=float("-inf"))
            tl.store(token + b, group * GROUP + tl.min(tl.where(key_of(near) == best, offs_e, GROUP)))
        else:
            top = number_of(best)
            threshold = LEAST + 1
            if MIN_P:
                threshold = key_of(top + tl.log2(tl.load(min_p + b)) / factor)
            bound = LEAST + 1
            total = 0.0
            if K:
                bound = kth_largest_of_tile(keys, tl.sum(mask.to(tl.int32)), k, TILE)
            elif P:
                offs_p = tl.arange(0, PARTS)
                there = offs_p < tl.num_programs(0)
                m = tl.load(sums + 2 * (b * PARTS + offs_p), mask=there, other=float("-inf"), cache_modifier=".cg")
                s = tl.load(sums + 2 * (b * PARTS + offs_p) + 1, mask=there, other=0.0, cache_modifier=".cg")
                total = tl.sum(s * weight_of(m, top, factor))
                share = tl.load(p + b)
                # half of what may be left out, so that rounding does not matter
                least = key_of(top + tl.log2(0.5 * (1.0 - share) * total / V) / factor)
                bound = mass_bound(keys, top, least, factor, share * total, SHIFT)
            tl.store(bounds + 2 * b, bound)
            tl.store(bounds + 2 * b + 1, threshold)
            tl.store(largest + 2 * b, top)
            tl.store(largest + 2 * b + 1, total)


@triton.jit
def listed_mass(near, values, keys, bound, count, top, factor, TILE: tl.constexpr, COUNT: tl.constexpr):
    """The weight, or with COUNT the number, of the listed keys from a bound on. The first tile of them is `near`, with
    its `values`."""
    found = tl.sum(tl.where(near >= bound, values, 0.0))
    for start in range(TILE, count, TILE):
        offs = start + tl.arange(0, TILE)
        key = tl.load(keys + offs, mask=offs < count, other=LEAST, cache_modifier=".cg")
        value = 1.0 if COUNT else weight_of(number_of(key), top, factor)
        found += tl.sum(tl.where(key >= bound, value, 0.0))
    return found


@triton.jit
def largest_with(
    near,
    values,
    keys,
    least,
    count,
    wanted,
    top,
    factor,
    TILE: tl.constexpr,
    COUNT: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """The largest key at which the listed keys from it on have the `wanted` weight or number; at least `least`."""
    low = (least >> SHIFT).to(tl.int64)
    high = (key_of(top) >> SHIFT).to(tl.int64) + 1
    while high - low > 1:
        middle = (low + high) >> 1
        bound = (middle << SHIFT).to(tl.int32)
        enough = listed_mass(near, values, keys, bound, count, top, factor, TILE, COUNT) >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return (low << SHIFT).to(tl.int32)


@triton.jit
def threshold_kernel(
    logits,
    p,
    bounds,
    largest,
    listed,  # [B, V] int32, keys
    counts,  # [B] int32, zeros
    arrived,
    V,
    k,
    factor,
    stride_b,
    PART: tl.constexpr,
    TILE: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    SHIFT: tl.constexpr,
):
    part = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    bound = tl.load(bounds + 2 * b)
    x, offs = part_of(logits, b, part, V, stride_b, PART)
    key = key_of(x)
    keep = ((key >= bound) & (offs < V)).to(tl.int32)
    # keys are only counted and added up, so their order does not matter
    first = tl.atomic_add(counts + b, tl.sum(keep), sem="relaxed")
    tl.store(listed + b * V + first + tl.cumsum(keep, 0) - 1, key, mask=keep > 0)
    tl.debug_barrier()
    if tl.atomic_add(arrived + b, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(arrived + b, 0)
        count = tl.load(counts + b, cache_modifier=".cg")
        tl.debug_barrier()  # all threads have it before it is zero again
        tl.store(counts + b, 0)
        top = tl.load(largest + 2 * b)
        total = tl.load(largest + 2 * b + 1)
        keys = listed + b * V
        offs_n = tl.arange(0, TILE)
        near = tl.load(keys + offs_n, mask=offs_n < count, other=LEAST, cache_modifier=".cg")
        weights = tl.where(offs_n < count, weight_of(number_of(near), top, factor), 0.0)
        threshold = bound
        if K:
            ones = tl.full([TILE], 1.0, tl.float32)
            threshold = largest_with(near, ones, keys, bound, count, k, top, factor, TILE, True, SHIFT)
            total = listed_mass(near, weights, keys, threshold, count, top, factor, TILE, False)
        if P:
            wanted = tl.load(p + b) * total
            threshold = largest_with(near, weights, keys, threshold, count, wanted, top, factor, TILE, False, SHIFT)
        tl.store(bounds + 2 * b + 1, tl.maximum(threshold, tl.load(bounds + 2 * b + 1)))


@triton.jit
def pick_kernel(
    logits,
    u,
    bounds,
    largest,
    sums,  # [B, PARTS] fp32
    arrived,
    token,
    V,
    factor,
    stride_b,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
):
    part = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    threshold = tl.load(bounds + 2 * b + 1)
    top = tl.load(largest + 2 * b)
    x, _ = part_of(logits, b, part, V, stride_b, PART)
    weight = tl.where(key_of(x) >= threshold, weight_of(x, top, factor), 0.0)
    tl.store(sums + b * PARTS + part, tl.sum(weight))
    tl.debug_barrier()
    if tl.atomic_add(arrived + b, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(arrived + b, 0)
        offs_p = tl.arange(0, PARTS)
        mask = offs_p < tl.num_programs(0)
        s = tl.load(sums + b * PARTS + offs_p, mask=mask, other=0.0, cache_modifier=".cg")
        ends = tl.cumsum(s, 0)
        wanted = tl.load(u + b) * tl.sum(s)
        chosen = tl.minimum(tl.sum(((ends <= wanted) & mask).to(tl.int32)), tl.num_programs(0) - 1)
        before = tl.sum(tl.where(offs_p < chosen, s, 0.0))
        x, _ = part_of(logits, b, chosen, V, stride_b, PART)
        weight = tl.where(key_of(x) >= threshold, weight_of(x, top, factor), 0.0)
        place = tl.sum((before + tl.cumsum(weight, 0) <= wanted).to(tl.int32))
        tl.store(token + b, tl.minimum(chosen * PART + place, V - 1))


def build(case: SamplingCase, inputs: Inputs, target: Target) -> Built:
    logits, p = inputs["logits"], plan(case, target)
    if logits.stride(1) != 1:
        raise ValueError(f"logits: the last dimension has stride {logits.stride(1)}, expected 1")

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    def zeros() -> torch.Tensor:
        return torch.zeros(case.B, dtype=torch.int32, device=logits.device)

    def launch(kernel: Any, args: dict[str, Any], constexprs: dict[str, Any]) -> KernelLaunch:
        return KernelLaunch(
            kernel=kernel,
            grid=(p.parts, case.B),
            args={"logits": logits, **args},
            constexprs={"PART": PART, **constexprs},
            num_warps=16,
            num_stages=1,
            max_registers=registers(32),
            streams=("logits",),
            why_narrow="the group of the largest logit is read again" if not case.temperature else "",
            why_few_in_flight="a step reads some MB, most of them at once: chains of launches decide, not the memory",
        )

    token, parts = empty(case.B), next_power_of_2(p.parts)
    shared = {"bounds": empty(case.B, 2), "largest": empty(case.B, 2, dtype=torch.float32)}
    sizes = {"factor": LOG2_E.value / (case.temperature or 1.0), "stride_b": logits.stride(0)}
    flags = {"K": case.k > 0, "P": case.p > 0, "SHIFT": 16 if case.dtype == "bf16" else 0}
    found = {
        "p": inputs["p"],
        "min_p": inputs["min_p"],
        "maxima": empty(case.B, p.tile),
        "sums": empty(case.B, parts, 2, dtype=torch.float32),
        **shared,
        "arrived": zeros(),
        "token": token,
        "V": case.V,
        "k": case.k,
        **sizes,
    }
    options = {"PARTS": parts, "GROUP": p.group, "TILE": p.tile, "GREEDY": not case.temperature, **flags}
    launches = [launch(largest_kernel, found, {**options, "MIN_P": case.min_p > 0})]
    if case.k or case.p:
        lists = {"listed": empty(case.B, case.V), "counts": zeros(), "arrived": zeros(), "V": case.V, "k": case.k}
        launches.append(
            launch(threshold_kernel, {"p": inputs["p"], **shared, **lists, **sizes}, {"TILE": TILE, **flags})
        )
    if case.temperature:
        sums = {"sums": empty(case.B, parts, dtype=torch.float32), "arrived": zeros(), "token": token, "V": case.V}
        launches.append(launch(pick_kernel, {"u": inputs["u"], **shared, **sums, **sizes}, {"PARTS": parts}))
    return Built(launches=tuple(launches), output=token)


def stages(case: SamplingCase, target: Target) -> tuple[Stage, ...]:
    """The first launch reads the logits from DRAM, the others from the L2 where it holds them. A step of a bisection
    takes as long as a load from the L2."""
    p, least = plan(case, target), work(case)
    steps = STEPS if case.k or case.p else 0
    # behind the tile in registers a nucleus of all tokens has some more in the L2
    each = (1 if case.k else 0) + (1 if case.p else 0) + (1 if case.p and not case.k else 0)
    again = 4 * case.B * steps * max(0, case.V // 12 - TILE) if case.p and not case.k else 0
    greedy = not case.temperature
    size, written = BYTES[case.dtype] * case.B * case.V, Work(bytes_written=least.bytes_written)

    def stage(name: str, work: Work, after: int, before: int = 0, l2_bytes: int = 0) -> Stage:
        return Stage(
            name=name,
            work=work,
            l2_bytes=l2_bytes,
            ctas=p.parts * case.B,
            ctas_per_sm=2,
            loads_before={"l2": before} if before else {},
            loads_after={"l2": after},
        )

    first = Work(flops=least.flops, bytes_read=least.bytes_read, bytes_written=least.bytes_written if greedy else 0)
    maxima = 8 * case.B * (cdiv(case.V, p.group) + p.parts)
    found = [stage("largest", first, 4 + steps, l2_bytes=maxima)]
    if steps:
        found.append(
            passing(stage("threshold", Work(), 5 + steps * each, before=1, l2_bytes=again), target, size, read=size)
        )
    if not greedy:
        found.append(passing(stage("pick", written, 5, before=1), target, size, read=size))
    return tuple(found)


def supports(case: SamplingCase, target: Target) -> str | None:
    if case.k > MOST_GROUPS // 4:
        return f"bounds the k-th largest logit by {MOST_GROUPS} groups, so k is at most {MOST_GROUPS // 4}"
    return None


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
