"""O = softmax(s Q K^T) V with s = 1 / sqrt(D), unless a model says otherwise: attention against a KV cache.

Each sequence has one query token, or the q_len tokens of a draft. q [B, q_len, H_q, D], k and v [B, T, H_kv, D]
contiguous or [pages, page, H_kv, D] paged, o [B, q_len, H_q, D].
Query head h reads KV head h // (H_q / H_kv). Every live token is read once, and each element of K or V takes part in
2 q_len H_q / H_kv FLOP. In bf16 this is 1 FLOP/B for MHA and H_q / H_kv for GQA, whatever the batch and the context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from statistics import geometric_mean
from typing import TYPE_CHECKING

from kernels.attention_decode.cases import SUITES, AttentionCase
from kernels.common import nvfp4_cache, paging
from kernels.common.compare import rounded
from kernels.common.integers import cdiv
from kernels.common.marks import (
    KEY_STEP,
    NOISE,
    SHORTEST_WITH_SINK,
    UNIT,
    Marks,
    Sink,
    Slots,
    draw_marks,
    raise_queries,
    write_marks,
)
from kernels.common.paging import Ranges
from kernels.common.quantization import SCALE_GROUP
from kernels.common.random_inputs import BYTES, LARGEST, RandomInputs
from kernels.common.smaller import fewer
from kernels.op import Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

CODES_PER_UNIT = {"fp8": 64, "int8": 32}
"""Codes of an 8-bit cache that stand for a key of 1, so that the largest key is 4 to 7."""

SCALE_STEP = 1.25
"""Scales of neighbouring groups differ by a quarter, give or take a tenth."""


@cache
def lengths(case: AttentionCase) -> tuple[int, ...]:
    """Tokens per sequence, the shared prefix included."""
    own = paging.random_lengths(case.lengths, case.B, case.T - case.prefix - case.grown, case.seed)
    return tuple(case.prefix + case.grown + n for n in own)


def live(case: AttentionCase, length: int) -> Ranges:
    """Tokens that some query of a sequence sees: all, or the sinks and the window of the earliest query."""
    start = max(0, length - case.q_len + 1 - case.window) if case.window else 0
    return ((0, length),) if start <= case.sinks else ((0, case.sinks), (start, length))


def visible(case: AttentionCase, length: int) -> int:
    """Pairs (query token, token) of one sequence that attention computes, per head."""
    pairs = 0
    for seen in range(max(1, length - case.q_len + 1), length + 1):
        pairs += min(seen, case.window + min(case.sinks, max(0, seen - case.window))) if case.window else seen
    return pairs


def touched(ranges: Ranges, index: Callable[[int], int]) -> int:
    """Distinct values of a non-decreasing `index(token)` over ascending ranges."""
    count, last = 0, -1
    for start, end in ranges:
        if end > start:
            first = max(index(start), last + 1)
            last = index(end - 1)
            count += last - first + 1
    return count


def scale_group(case: AttentionCase, t: int) -> int:
    """Which of its sequence's scales token t has. A group does not cross pages."""
    page = case.tokens_per_page
    return t // page * cdiv(page, SCALE_GROUP) + t % page // SCALE_GROUP


def kv_tokens_bytes(case: AttentionCase, ranges: Ranges) -> int:
    """Bytes of one sequence's tokens in K and V, with their scales."""
    tokens = sum(end - start for start, end in ranges)
    size = int(2 * tokens * case.H_kv * case.D * case.kv_bytes)
    if case.token_scales:
        size += 2 * touched(ranges, lambda t: scale_group(case, t)) * case.H_kv * BYTES["fp32"]
    return size


def table_bytes(case: AttentionCase, ranges: Ranges) -> int:
    """Bytes of the block-table entries for one sequence's tokens."""
    return 4 * touched(ranges, lambda t: t // case.page) if case.page else 0


def work(case: AttentionCase) -> Work:
    """Each live KV token, its table entry and its scales once; a shared prefix once for all; q, the logits of sinks,
    the scales of whole caches and o once.

    Each head and visible (query, token) pair takes 4 D FLOP. The exponentials, 1 per 4 D FLOP, are not counted.
    """
    size = BYTES[case.dtype] * case.B * case.q_len * case.H_q * case.D
    shared = ((0, case.prefix),)
    read = (
        size
        + 4 * case.B
        + (4 * case.H_q if case.sink_logits else 0)
        + (8 if case.kv == "nvfp4" else 0)
        + kv_tokens_bytes(case, shared)
        + table_bytes(case, shared)
    )
    for length in lengths(case):
        own = ((case.prefix, length),) if case.prefix else live(case, length)
        read += kv_tokens_bytes(case, own) + table_bytes(case, own)
    pairs = sum(visible(case, length) for length in lengths(case))
    pipe = "fma_fp32" if case.dtype == "fp32" else "mma_bf16"
    return Work(flops={pipe: 4 * case.D * case.H_q * pairs}, bytes_read=read, bytes_written=size)


def marks_of(case: AttentionCase, device: str, seed: int) -> Marks:
    """The marks that the inputs of this seed carry."""
    page = case.tokens_per_page
    return draw_marks(
        [live(case, length) for length in lengths(case)],
        cdiv(case.T, page) * page,
        heads=case.H_kv,
        classes=max(1, min(4, case.group, case.D // 8)),
        dims=case.D,
        channel_dims=case.D,
        raised=4,
        q_len=case.q_len,
        page=case.page,
        device=device,
        seed=seed,
    )


def value_codes(case: AttentionCase, marks: Marks) -> float:
    """Codes of an 8-bit cache that stand for an ordinary value, a power of two. The largest marked value fills the
    type, as if scales were made from the largest value of a group, and may lose a tenth."""
    return 2.0 ** math.floor(math.log2(1.1 * LARGEST[case.kv] / (marks.amplitude * marks.emphasis)))


def first_pages(case: AttentionCase, table: torch.Tensor, length: int) -> list[int]:
    """The first page of each sequence of this length."""
    return [int(table[b, 0]) if case.page else b for b, n in enumerate(lengths(case)) if n == length]


def sinks(case: AttentionCase, table: torch.Tensor) -> list[Sink]:
    """The first token that every query sees, in each sequence that is long enough to have a sink."""
    found = []
    for b, length in enumerate(lengths(case)):
        seen = min(length, case.window + case.sinks) if case.window else length
        if seen >= SHORTEST_WITH_SINK:
            first = max(0, length - case.window) if case.window and not case.sinks else 0
            page = int(table[b, first // case.page]) if case.page else b
            # a sink in the shared prefix is one token for all sequences
            tokens = case.T if case.prefix else seen
            found.append(Sink(page=page, slot=first % case.tokens_per_page, tokens=tokens))
    return found


def inputs(case: AttentionCase, device: str, seed: int) -> Inputs:
    """k ~ N(0, 1), v with outliers, and queries that attend to marked tokens: see `kernels/common/marks.py`.

    Everything that is not live is poisoned. An int8 token that is not live has a NaN scale if its group has no live
    token; in a live group it scores more than every live token, and its value is -128, so that it shows if it counts.

    `block_table` is one page wider than the longest sequence, and `[B, 0]` for a contiguous cache. `k_scale` and
    `v_scale` are fp32 `[pages, groups, H_kv]` for an 8-bit cache, and `[0]` for a 16-bit cache. For nvfp4 they are
    e4m3 in the cache's layout, and `k_global` and `v_global` are fp32 `[1]`, else `[0]`. `sink_logits` is fp32 `[H_q]`,
    or `[0]`.
    """
    import torch

    draw = RandomInputs(device, seed)
    page = case.tokens_per_page
    ranges = [live(case, length) for length in lengths(case)]
    paged = paging.block_table(
        ranges,
        page=page,
        columns=cdiv(case.T, page) + (1 if case.page else 0),
        shared=case.prefix // page,
        shuffled=bool(case.page) and case.order == "shuffled",
        spare=bool(case.page),
        pool=case.B * cdiv(case.context, page),
        seed=seed,
    )
    marks = marks_of(case, device, seed)
    slots = (paged.pages, case.H_kv, page) if case.layout == "HND" else (paged.pages, page, case.H_kv)
    sigma = NOISE / (case.softmax_scale * case.D**0.5)
    made: Inputs = {"q": draw.normal((case.B, case.q_len, case.H_q, case.D), case.dtype, scale=sigma)}
    codes = {"k": CODES_PER_UNIT[case.kv], "v": value_codes(case, marks)} if case.token_scales else {"k": 1, "v": 1}
    for name in ("k", "v"):
        if case.kv == "nvfp4":
            cache = nvfp4_cache.draw_cache(draw, (*slots, case.D), std=1.0)
            made[name], made[f"{name}_scale"], made[f"{name}_global"] = cache
            continue
        made[name] = draw.normal((*slots, case.D), case.kv or case.dtype, scale=codes[name])
        made[f"{name}_global"] = draw.normal((0,), "fp32")
        scales = (paged.pages, cdiv(page, SCALE_GROUP), case.H_kv) if case.kv else (0,)
        # kernels multiply probabilities with the scale of v and round the product: it must not err to one side
        made[f"{name}_scale"] = draw.scales(scales, 1 / codes[name], SCALE_STEP, one_sided=name == "k")
    if device != "meta":
        if case.token_scales and 1 in lengths(case):
            # all of the output is this one value: an exact scale, since one rounding of it would decide the slope
            made["v_scale"][first_pages(case, paged.table, 1), 0] = 1 / codes["v"]
        mark(case, made, marks, paged, draw)
        poison(case, made, paged, ranges)
    made["block_table"] = (paged.table if case.page else torch.empty(case.B, 0, dtype=torch.int32)).to(device)
    made["lengths"] = draw.table(lengths(case))
    made["sink_logits"] = draw.normal((case.H_q if case.sink_logits else 0,), "fp32").add_(typical_logit(case, marks))
    return made


def mark(case: AttentionCase, made: Inputs, marks: Marks, paged: paging.Paged, draw: RandomInputs) -> None:
    """Queries attend to the marks of their class, and keys and values carry them."""
    import torch

    page, device = case.tokens_per_page, made["q"].device
    raise_queries(marks, made["q"], unit=UNIT / (KEY_STEP * case.softmax_scale))
    where = paging.first_tokens(paged, page).to(device)[:, None] + torch.arange(page, device=device)
    caches: dict[str, Slots] = {}
    for name in ("k", "v"):
        if case.kv == "nvfp4":
            codes, blocks = (paging.nhd(made[part], case.layout) for part in (name, f"{name}_scale"))
            caches[name] = nvfp4_cache.Nvfp4Slots(stored=codes, blocks=blocks, whole=made[f"{name}_global"])
            continue
        scale = made[f"{name}_scale"].repeat_interleave(SCALE_GROUP, dim=1)[:, :page] if case.kv else None
        caches[name] = Slots(stored=paging.nhd(made[name], case.layout), scale=scale)
    write_marks(
        marks, keys=caches["k"], values=caches["v"], token=where, sinks=sinks(case, paged.table), unit=1.0, draw=draw
    )


def poison(case: AttentionCase, made: Inputs, paged: paging.Paged, ranges: Sequence[Ranges]) -> None:
    """Poison tokens that are not live, and the scales of groups without a live token."""
    page = case.tokens_per_page
    groups = [[(scale_group(case, a), scale_group(case, z - 1) + 1) for a, z in r if z > a] for r in ranges]
    for name in ("k", "v"):
        paging.poison_dead(paging.nhd(made[name], case.layout), ranges, page=page, paged=paged)
        if case.kv == "nvfp4":
            paging.poison_dead(paging.nhd(made[f"{name}_scale"], case.layout), ranges, page=page, paged=paged)
        elif case.kv:
            paging.poison_dead(made[f"{name}_scale"], groups, page=cdiv(page, SCALE_GROUP), paged=paged)


def typical_logit(case: AttentionCase, marks: Marks) -> float:
    """The score of the sink token of a typical sequence in nats; a learned sink with this logit takes as much as it.

    Typical is the geometric mean of lengths. Beside a sink for the longest sequence, fp16 would lose what a sequence of
    one token gives.
    """
    seen = [sum(end - start for start, end in live(case, length)) for length in lengths(case) if length]
    return UNIT * marks.sink_scores(round(geometric_mean(seen or [1])))[-1]


def tokens(case: AttentionCase, inputs: Inputs, name: str, b: int, ranges: Ranges) -> torch.Tensor:
    """Tokens `[n, H_kv, D]` of sequence b in fp32, from the cache `name` in any of its forms."""
    import torch

    page = case.tokens_per_page
    row = inputs["block_table"][b] if case.page else torch.tensor([b], device=inputs["q"].device)
    stored = paging.nhd(inputs[name], case.layout)
    parts = [paging.gather(stored, row, start, end, page) for start, end in ranges]
    if case.kv == "nvfp4":
        scale = paging.nhd(inputs[f"{name}_scale"], case.layout)
        scales = [paging.gather(scale, row, start, end, page) for start, end in ranges]
        return nvfp4_cache.decoded(torch.cat(parts), torch.cat(scales), inputs[f"{name}_global"])
    parts = [part.float() for part in parts]
    if case.kv:
        for part, (start, end) in zip(parts, ranges, strict=True):
            pages = row[torch.arange(start, end, device=row.device) // page].long()
            groups = torch.arange(start, end, device=row.device) % page // SCALE_GROUP
            part *= inputs[f"{name}_scale"][pages, groups, :, None]
    return torch.cat(parts)


def reference(case: AttentionCase, inputs: Inputs) -> torch.Tensor:
    """Computed in fp32, one sequence at a time. A query that sees nothing gives zeros."""
    import torch

    q = inputs["q"].float().view(case.B, case.q_len, case.H_kv, case.group, case.D)
    o = torch.zeros_like(q)
    for b, length in enumerate(lengths(case)):
        if not length:
            continue
        ranges = live(case, length)
        k, v = (tokens(case, inputs, name, b, ranges) for name in ("k", "v"))
        s = torch.einsum("ihgd,thd->ihgt", q[b], k) * case.softmax_scale
        if case.softcap:
            s = case.softcap * torch.tanh(s / case.softcap)
        t = torch.cat([torch.arange(start, end, device=s.device) for start, end in ranges])
        last = torch.arange(length - case.q_len, length, device=s.device)[:, None]
        seen = t <= last
        if case.window:
            seen &= (t > last - case.window) | (t < case.sinks)
        s = s.masked_fill(~seen[:, None, None, :], float("-inf"))
        if case.sink_logits:
            sink = inputs["sink_logits"].view(case.H_kv, case.group, 1).expand(*s.shape[:-1], 1)
            s = torch.cat([s, sink], dim=-1)
        p = torch.softmax(s, dim=-1).nan_to_num(0.0)[..., : len(t)]
        o[b] = torch.einsum("ihgt,thd->ihgd", p, v)
    return o.view(case.B, case.q_len, case.H_q, case.D)


def tolerance(case: AttentionCase) -> Tolerance:
    """The rounding of a cache of 8 or 4 bits is part of the inputs, not of the error: in fp32 its values are exact.

    Probabilities that meet an 8-bit cache may be rounded to bf16, which keeps the small ones, whatever type q has.
    """
    why = "probabilities and o are each rounded to its type once"
    rounds_to = "bf16" if case.kv and case.dtype == "fp16" else case.dtype
    roundings = 2 if rounds_to == case.dtype else None
    return rounded(
        rounds_to, terms="T terms", max_units=8, rms_units=1, roundings=roundings, each_sequence=True, why=why
    )


def cases(suite: str) -> list[AttentionCase]:
    return list(SUITES[suite]())


def smaller(case: AttentionCase, n: int) -> AttentionCase:
    """Fewer sequences, then fewer tokens, then fewer KV heads with their query heads."""
    few = fewer(case, n, B=1, T=64)
    heads = max(1, case.H_kv * case.T * case.B // (n * few.T * few.B))
    return few if heads >= case.H_kv else replace(few, H_kv=heads, H_q=case.H_q // case.H_kv * heads)


OP = Op(
    name="attention_decode",
    title="attention",
    role="decode",
    about="attention of a decode step over a contiguous or paged KV cache",
    formula="O = softmax(s Q K^T) V, s = 1 / sqrt(D)",
    case_type=AttentionCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("q", "k", "v", "k_scale", "v_scale", "k_global", "v_global", "block_table"),
    smaller=smaller,
)
