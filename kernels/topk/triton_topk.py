"""Two launches over all SMs. No pass but the first reads all scores, and what the second reads is known to be enough.

Scores lie in groups of 4 to 1024 neighbours. The first kernel takes the largest score of each group, which costs an
instruction or two for a score. The CTA of a row that finishes last finds a bound: the k-th largest of these maxima.
At least k scores reach the bound, so none below it is among the k largest, and only the k groups whose maximum reaches
it (`hits`) hold any that are. Of groups whose maximum equals the bound the first are enough: each has a score that is
equal to it, at a lower position than those of later groups. A short row of fewer groups than k has no such bound: all
of its scores are listed.

The second kernel reads the hits, at most a quarter of a row for k up to 2048, mostly from the L2. It lists the scores
that reach the bound, about 1.2 k of them, in the order of their positions. The CTA that finishes last finds the k-th
largest score in the list. Both times the k-th largest is found by bisection: a step counts the keys that reach the
middle of a range. It ends when exactly k do, or with the k-th largest key itself; then the first ones of those equal to
it are taken.

Rows of up to `DIRECT` scores go through one CTA in one launch. Scores that are sorted are the worst case: all scores of
the hits reach the bound, so the last CTA counts k groups instead of 1.2 k scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.common.integers import cdiv, next_power_of_2
from kernels.common.random_inputs import BYTES
from kernels.common.workspace import passing
from kernels.launch import Built, KernelLaunch, registers, triton_impl
from kernels.op import Inputs, Stage, Target, Work
from kernels.topk.op import TopkCase, lengths, work
from kernels.topk.triton_pick import (
    LEAST,
    arrange,
    key_of,
    kth_largest,
    kth_largest_of_tile,
    listed_keys,
    reaching,
    segment_of,
    take,
    widened,
)

DIRECT = 16384
"""Scores that one CTA of 16 warps keeps in registers, 32 in each thread."""

MOST_GROUPS = 8192
"""Maxima that one CTA of 16 warps keeps in registers, 16 in each thread."""

LISTED = 128
"""Scores of the hits that a warp reads at once, 16 bytes in each thread."""

STRIP = 1024
"""Keys that are picked at once, in the order of their positions."""

LISTED_FOR_EACH = 1.2
"""Scores that reach the bound for each of the k, if scores are in random order and there are 4 k groups."""

STEPS = 16
"""Steps of a bisection over values that differ: some bits of a first guess, and log2 of some thousand keys."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`group` scores a group, `tile` groups a row, padded; a CTA takes `groups` groups, then `hits` hits.

    `group` 0: one launch.
    """

    group: int = 0
    tile: int
    groups: int = 0
    hits: int = 0
    segments: int = 0
    num_warps: int = 8


def plan(case: TopkCase, target: Target) -> Plan:
    """Parts of 2,048 to 8,192 scores, so that two CTAs an SM have work where there is enough."""
    if case.N <= DIRECT:
        tile = max(64, next_power_of_2(case.N))
        return Plan(tile=tile, num_warps=min(16, max(1, tile // 256)))
    most = min(MOST_GROUPS, max(1024, 4 * next_power_of_2(case.k)))
    group = next_power_of_2(cdiv(case.N, most))
    tile = next_power_of_2(cdiv(case.N, group))
    warps = 16 if tile >= 8192 else 8
    share = next_power_of_2(cdiv(case.B * case.N, 2 * target.sm_count))
    part = max(group, min(8192, max(2048, share)))
    hits = max(1, LISTED * warps // group)
    return Plan(
        group=group,
        tile=tile,
        groups=min(tile, part // group),
        hits=hits,
        segments=cdiv(case.k, hits),
        num_warps=warps,
    )


@triton.jit
def bound_kernel(
    scores,  # [B, N]
    lengths,  # [B] int32
    maxima,  # [B, TILE] int32, keys
    hits,  # [B, k] int32, groups
    found,  # [B, 2] int32: hits, bound
    arrived,  # [B] int32, zeros
    N,
    k,
    stride_b,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    TILE: tl.constexpr,
    STRIP: tl.constexpr,
):
    part = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + b)
    first = part * (GROUP * GROUPS)
    offs = first + tl.arange(0, GROUP * GROUPS)
    # what lies behind a row's scores is loaded with them and left out: a mask by the length would make loads narrow
    x = tl.load(scores + b * stride_b + offs, mask=offs < tl.where(first < length, N, 0), other=0.0)
    x = tl.where(offs < length, widened(x), float("-inf"))
    largest = tl.max(tl.reshape(x, [GROUPS, GROUP]), axis=1)
    tl.store(maxima + b * TILE + part * GROUPS + tl.arange(0, GROUPS), key_of(largest))
    tl.debug_barrier()  # all threads must have stored before one of them releases
    if tl.atomic_add(arrived + b, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(arrived + b, 0)
        offs_g = tl.arange(0, TILE)
        mask = offs_g * GROUP < length
        keys = tl.load(maxima + b * TILE + offs_g, mask=mask, other=LEAST, cache_modifier=".cg")
        count = tl.sum(mask.to(tl.int32))
        # fewer groups than k say nothing of the k-th largest score: all scores of the row reach this bound
        bound = tl.where(count < k, LEAST + 1, kth_largest_of_tile(keys, count, k, TILE))
        need = k - tl.sum((keys > bound).to(tl.int32))
        above = 0
        ties = 0
        for start in range(0, TILE, STRIP):
            group = start + tl.arange(0, STRIP)
            key = tl.load(maxima + b * TILE + group, mask=group * GROUP < length, other=LEAST, cache_modifier=".cg")
            above, ties = take(key, group, bound, need, above, ties, hits + b * k)
        tl.store(found + 2 * b, tl.minimum(count, k))
        tl.store(found + 2 * b + 1, bound)


@triton.jit
def select_kernel(
    scores,
    lengths,
    hits,
    found,
    listed,  # [B, programs, 2, HITS GROUP] int32: keys, positions
    ends,  # [B, SEGMENTS] int32: how many each program has listed
    arrived,
    picked,  # [B, k] int32
    out,
    N,
    k,
    stride_b,
    GROUP: tl.constexpr,
    HITS: tl.constexpr,
    SEGMENTS: tl.constexpr,
    TILE: tl.constexpr,
    STRIP: tl.constexpr,
    K: tl.constexpr,
    VALUES: tl.constexpr,
    BY_VALUE: tl.constexpr,
):
    EACH: tl.constexpr = HITS * GROUP
    part = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    row = scores + b * stride_b
    length = tl.load(lengths + b)
    many = tl.load(found + 2 * b)
    bound = tl.load(found + 2 * b + 1)
    offs_h = part * HITS + tl.arange(0, HITS)
    hit = tl.load(hits + b * k + offs_h, mask=offs_h < many, other=0)
    position = hit[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(row + position, mask=(offs_h < many)[:, None] & (position < N), other=0.0)
    key = key_of(x)
    keep = tl.reshape((offs_h < many)[:, None] & (position < length) & (key >= bound), [EACH]).to(tl.int32)
    place = tl.cumsum(keep, 0) - 1
    own = listed + (b * tl.num_programs(0) + part) * (2 * EACH)
    tl.store(own + place, tl.reshape(key, [EACH]), mask=keep > 0)
    tl.store(own + EACH + place, tl.reshape(position, [EACH]), mask=keep > 0)
    tl.store(ends + b * SEGMENTS + part, tl.sum(keep))
    tl.debug_barrier()
    if tl.atomic_add(arrived + b, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(arrived + b, 0)
        offs_s = tl.arange(0, SEGMENTS)
        filled = offs_s < tl.num_programs(0)
        counts = tl.load(ends + b * SEGMENTS + offs_s, mask=filled, other=0, cache_modifier=".cg")
        total = tl.sum(counts)
        end = tl.cumsum(counts, 0)
        first = listed + b * tl.num_programs(0) * (2 * EACH)
        keys = listed_keys(first, end, 0, total, TILE, SEGMENTS, EACH)
        largest = tl.max(keys)
        for start in range(TILE, total, TILE):
            largest = tl.maximum(largest, tl.max(listed_keys(first, end, start, total, TILE, SEGMENTS, EACH)))
        last = kth_largest(keys, bound, largest, total, k, first, end, TILE, SEGMENTS, EACH)
        need = k - reaching(last + 1, keys, total, first, end, TILE, SEGMENTS, EACH)
        above = 0
        ties = 0
        for start in range(0, total, STRIP):
            at = segment_of(end, start + tl.arange(0, STRIP), SEGMENTS, EACH)
            inside = start + tl.arange(0, STRIP) < total
            strip = tl.load(first + at, mask=inside, other=LEAST, cache_modifier=".cg")
            its = tl.load(first + EACH + at, mask=inside, other=0, cache_modifier=".cg")
            above, ties = take(strip, its, last, need, above, ties, picked + b * k)
        arrange(row, picked + b * k, out, b, tl.minimum(total, k), k, K, VALUES, BY_VALUE)


@triton.jit
def direct_kernel(
    scores,
    lengths,
    picked,
    out,
    N,
    k,
    stride_b,
    TILE: tl.constexpr,
    STRIP: tl.constexpr,
    K: tl.constexpr,
    VALUES: tl.constexpr,
    BY_VALUE: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    row = scores + b * stride_b
    length = tl.load(lengths + b)
    offs = tl.arange(0, TILE)
    x = tl.load(row + offs, mask=offs < N, other=0.0)
    keys = tl.where(offs < length, key_of(x), LEAST)
    last = kth_largest_of_tile(keys, length, k, TILE)
    need = k - tl.sum((keys > last).to(tl.int32))
    above = 0
    ties = 0
    for start in range(0, TILE, STRIP):
        position = start + tl.arange(0, STRIP)
        key = key_of(tl.load(row + position, mask=position < N, other=0.0))
        key = tl.where(position < length, key, LEAST)
        above, ties = take(key, position, last, need, above, ties, picked + b * k)
    arrange(row, picked + b * k, out, b, tl.minimum(length, k), k, K, VALUES, BY_VALUE)


def build(case: TopkCase, inputs: Inputs, target: Target) -> Built:
    scores, p = inputs["scores"], plan(case, target)
    if scores.stride(1) != 1:
        raise ValueError(f"scores: the last dimension has stride {scores.stride(1)}, expected 1")

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=scores.device)

    out = empty(case.B, 2, case.k) if case.values else empty(case.B, case.k)
    picked = empty(case.B, case.k)
    given = {"scores": scores, "lengths": inputs["lengths"]}
    result = {"picked": picked, "out": out, "N": case.N, "k": case.k, "stride_b": scores.stride(0)}
    form = {"K": next_power_of_2(case.k), "VALUES": case.values, "BY_VALUE": case.order == "value"}
    if not p.group:
        direct = KernelLaunch(
            kernel=direct_kernel,
            grid=(case.B,),
            args={**given, **result},
            constexprs={"TILE": p.tile, "STRIP": min(p.tile, 256 * p.num_warps), **form},
            num_warps=p.num_warps,
            num_stages=1,
            streams=("scores",),
            why_narrow="rows of up to 256 scores give a thread a few",
            why_few_in_flight="a row is read at once: steps of the bisection decide, not the memory",
        )
        return Built(launches=(direct,), output=out)
    each = p.hits * p.group
    small = case.B * case.N * BYTES[case.dtype] < 64 * 1024 * target.sm_count
    few = "all scores are under way at once: there are no more" if small else ""
    shared = {
        "hits": empty(case.B, case.k),
        "found": empty(case.B, 2),
    }
    first = KernelLaunch(
        kernel=bound_kernel,
        grid=(cdiv(cdiv(case.N, p.group), p.groups), case.B),
        args={
            **given,
            "maxima": empty(case.B, p.tile),
            **shared,
            "arrived": torch.zeros(case.B, dtype=torch.int32, device=scores.device),
            "N": case.N,
            "k": case.k,
            "stride_b": scores.stride(0),
        },
        constexprs={"GROUP": p.group, "GROUPS": p.groups, "TILE": p.tile, "STRIP": STRIP},
        num_warps=p.num_warps,
        num_stages=1,
        max_registers=registers(32),
        streams=("scores",),
        why_few_in_flight=few,
    )
    second = KernelLaunch(
        kernel=select_kernel,
        grid=(p.segments, case.B),
        args={
            **given,
            **shared,
            "listed": empty(case.B, p.segments, 2, each),
            "ends": empty(case.B, next_power_of_2(p.segments)),
            "arrived": torch.zeros(case.B, dtype=torch.int32, device=scores.device),
            **result,
        },
        constexprs={
            "GROUP": p.group,
            "HITS": p.hits,
            "SEGMENTS": next_power_of_2(p.segments),
            "TILE": max(1024, 2 * next_power_of_2(case.k)),
            "STRIP": STRIP,
            **form,
        },
        num_warps=p.num_warps,
        num_stages=1,
        max_registers=registers(32),
        streams=("scores",),
        why_narrow="values are gathered one by one" if case.values or case.order == "value" else "",
        why_few_in_flight="a CTA reads its hits at once, and a row has few",
    )
    return Built(launches=(first, second), output=out)


def stages(case: TopkCase, target: Target) -> tuple[Stage, ...]:
    """The scores once from DRAM; the hits again, from the L2 where it holds all scores. Lists stay in the L2.

    Each step of a bisection takes as long as a load from the L2: its CTA counts and adds up over its warps.
    """
    p, least = plan(case, target), work(case)
    result = Work(bytes_written=least.bytes_written)
    arranging = 1 + (1 if case.values else 0) + (1 if case.order == "value" else 0)
    if not p.group:
        one = Stage(
            name="topk",
            work=least,
            l2_bytes=8 * case.B * case.k,
            ctas=case.B,
            ctas_per_sm=32 // p.num_warps,
            loads_before={"dram": 1},
            loads_after={"l2": STEPS + cdiv(p.tile, 256 * p.num_warps) + arranging},
        )
        return (one,)
    groups = sum(cdiv(length, p.group) for length in lengths(case))
    hits = sum(min(case.k, cdiv(length, p.group)) for length in lengths(case))
    ctas_per_sm = 32 // p.num_warps
    bound = Stage(
        name="bound",
        work=Work(flops=least.flops, bytes_read=least.bytes_read),
        l2_bytes=12 * groups + 4 * hits,
        ctas=cdiv(cdiv(case.N, p.group), p.groups) * case.B,
        ctas_per_sm=ctas_per_sm,
        loads_before={"dram": 1},
        loads_after={"l2": 3 + STEPS + p.tile // STRIP},
    )
    listed = round(LISTED_FOR_EACH * case.k * case.B)
    select = Stage(
        name="select",
        work=result,
        l2_bytes=4 * hits + 20 * listed + 8 * case.B * case.k,
        ctas=p.segments * case.B,
        ctas_per_sm=ctas_per_sm,
        loads_before={"l2": 2},
        loads_after={"l2": 4 + STEPS + cdiv(listed, STRIP * case.B) + arranging},
    )
    size = BYTES[case.dtype]
    return bound, passing(select, target, size * case.B * case.N, read=size * hits * p.group)


def supports(case: TopkCase, target: Target) -> str | None:
    if 2 * case.k > MOST_GROUPS and case.N > DIRECT:
        return f"keeps the maxima of {MOST_GROUPS} groups at most, so it picks up to {MOST_GROUPS // 2}, not {case.k}"
    if case.order == "value" and case.k > 1024:
        return f"sorts at most 1024 scores by value, not {case.k}"
    return None


IMPLS = (triton_impl(name="triton", build=build, stages=stages, supports=supports),)
