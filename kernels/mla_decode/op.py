"""O = softmax((Q_latent C^T + Q_rope R^T) s) C: multi-head latent attention of a decode step, in its absorbed form.

DeepSeek-V2 and later models (arXiv 2405.04434) cache one latent and one rotary key per token, which all heads share.
The cache is [.., L + R]: its first L columns are C, key and value at once, and the others are R. The up-projections of
keys and values are absorbed into q_latent [B, q_len, H, L] and into what follows O [B, q_len, H, L]; q_rope is
[B, q_len, H, R]. A draft to verify (q_len 2 in DeepSeek's multi-token prediction) is the last q_len tokens.

A cache in fp8 (e4m3) has its latents scaled per token. The rotary key, which suffers most from rounding, stays in 16
bits: cache [.., L] fp8, rope [.., R], latent_scale [..] fp32. For DeepSeek's widths a token has 644 bytes instead of
1152. One scale per token, as in SnapMLA (arXiv 2602.10718), multiplies a score and a probability, and no element.
FlashMLA's layout of 656 bytes has a scale for every 128 latents, so that elements must be scaled one by one. In nvfp4
(`kernels/common/nvfp4_cache.py`) 16 latents share a scale, and a token has 416 bytes, its rotary key in 16 bits too.

A cached token is read once, for 2 H (L + R) + 2 H L FLOP per query. With 128 heads these are 242 FLOP/B in bf16, near
the ridge of an H100; attention over separate heads' KV has 1 to 16. In fp8 it is 432, and with two queries 484, which
is beyond the ridge.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

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
from kernels.common.random_inputs import BYTES, RandomInputs
from kernels.common.smaller import fewer
from kernels.mla_decode.cases import MlaCase, cases
from kernels.op import Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

ORDINARY = 0.12
"""Standard deviation of ordinary latents. With the marked one that each token has, the rms of latents is about 1."""

FP8_CODES = 16
"""Codes of an fp8 latent of 1. The largest marked latent, 226 ordinary ones for L = 512, is then a code of 434, as if
the scale of a token were made from its largest latent."""


@cache
def lengths(case: MlaCase) -> tuple[int, ...]:
    """Tokens per sequence."""
    return tuple(case.grown + n for n in paging.random_lengths(case.lengths, case.B, case.T - case.grown, case.seed))


def visible(case: MlaCase) -> int:
    """Pairs (query token, token) of all sequences that attention computes, per head."""
    return sum(max(0, n - i) for n in lengths(case) for i in range(case.q_len))


def table_bytes(case: MlaCase) -> int:
    """Bytes of the block-table entries that lead to live tokens."""
    return 4 * sum(cdiv(length, case.page) for length in lengths(case)) if case.page else 0


def inputs(case: MlaCase, device: str, seed: int) -> Inputs:
    """Queries attend to marked tokens (see `kernels/common/marks.py`): their scores come from the rotary keys, so that
    a token without its rotary key shows, and their marks are latents.

    Everything that is not live is poisoned. `block_table` is `[B, 0]` for a contiguous cache `[B, T, L + R]`; `rope`
    and `latent_scale` are `[0]` for a 16-bit cache, `latent_global` is `[0]` unless the cache is nvfp4.
    """
    import torch

    draw = RandomInputs(device, seed)
    page = case.page or case.T
    ranges = [((0, length),) for length in lengths(case)]
    columns = cdiv(case.T, page) + (1 if case.page else 0)
    scattered = bool(case.page)
    pool = case.B * cdiv(case.context, page)
    paged = paging.block_table(
        ranges, page=page, columns=columns, shuffled=scattered, spare=scattered, pool=pool, seed=seed
    )
    marks = marks_of(case, device, seed)
    # a score is a sum over L ordinary latents and a marked one, and over R rotary elements ~ N(0, 1)
    latents = ORDINARY * (case.L + marks.amplitude**2) ** 0.5
    width = {
        "q_latent": NOISE / (2**0.5 * latents * case.softmax_scale),
        "q_rope": NOISE / ((2 * case.R) ** 0.5 * case.softmax_scale),
    }
    slots = (paged.pages, page)
    if case.kv == "nvfp4":
        codes, scale, whole = nvfp4_cache.draw_cache(draw, (*slots, case.L), std=ORDINARY)
        cached = {
            "cache": codes,
            "rope": draw.normal((*slots, case.R), case.dtype),
            "latent_scale": scale,
            "latent_global": whole,
        }
    elif case.kv:
        cached = {
            "cache": draw.normal((*slots, case.L), case.kv, scale=FP8_CODES * ORDINARY),
            "rope": draw.normal((*slots, case.R), case.dtype),
            # kernels multiply probabilities with it and round the product: it must not err to one side
            "latent_scale": draw.scales(slots, 1 / FP8_CODES, step=1.25, one_sided=False),
            "latent_global": draw.normal((0,), "fp32"),
        }
    else:
        cached = {
            "cache": draw.normal((*slots, case.L + case.R), case.dtype),
            "rope": draw.normal((0,), case.dtype),
            "latent_scale": draw.normal((0,), "fp32"),
            "latent_global": draw.normal((0,), "fp32"),
        }
        cached["cache"][..., : case.L].mul_(ORDINARY)
    queries = {
        "q_latent": draw.normal((case.B, case.q_len, case.H, case.L), case.dtype, scale=width["q_latent"]),
        "q_rope": draw.normal((case.B, case.q_len, case.H, case.R), case.dtype, scale=width["q_rope"]),
    }
    if device != "meta":
        if case.kv == "fp8" and 1 in lengths(case):
            # all of the output is this one value: an exact scale, since one rounding of it would decide the slope
            alone = [b for b, length in enumerate(lengths(case)) if length == 1]
            cached["latent_scale"][paged.table[alone, 0].long() if case.page else alone, 0] = 1 / FP8_CODES
        raise_queries(marks, queries["q_rope"], unit=UNIT / (KEY_STEP * case.softmax_scale))
        mark(case, cached, marks, paged, draw)
        for name, tensor in cached.items():
            if tensor.numel() and name != "latent_global":
                paging.poison_dead(tensor, ranges, page=page, paged=paged)
    return {
        **queries,
        **cached,
        "block_table": (paged.table if case.page else torch.empty(case.B, 0, dtype=torch.int32)).to(device),
        "lengths": draw.table(lengths(case)),
    }


def marks_of(case: MlaCase, device: str, seed: int) -> Marks:
    """The marks that the inputs of this seed carry."""
    page = case.page or case.T
    return draw_marks(
        [((0, length),) for length in lengths(case)],
        cdiv(case.T, page) * page,
        heads=1,
        classes=max(1, min(16, case.H, case.R // 4)),
        dims=case.L,
        channel_dims=case.R,
        raised=-3,
        q_len=case.q_len,
        page=case.page,
        device=device,
        seed=seed,
    )


def mark(case: MlaCase, cached: Inputs, marks: Marks, paged: paging.Paged, draw: RandomInputs) -> None:
    """Rotary keys carry the scores of marked tokens, latents their values; the first token of a sequence is its
    sink."""
    import torch

    page, cache = case.page or case.T, cached["cache"]
    where = paging.first_tokens(paged, page).to(cache.device)[:, None] + torch.arange(page, device=cache.device)
    if case.kv == "nvfp4":
        blocks = cached["latent_scale"][:, :, None]
        latents: Slots = nvfp4_cache.Nvfp4Slots(stored=cache[:, :, None], blocks=blocks, whole=cached["latent_global"])
    else:
        scale = cached["latent_scale"][..., None] if case.kv else None
        latents = Slots(stored=cache[..., : case.L][:, :, None], scale=scale)
    write_marks(
        marks,
        keys=Slots(stored=(cached["rope"] if case.kv else cache[..., case.L :])[:, :, None]),
        values=latents,
        token=where,
        sinks=[
            Sink(page=int(paged.table[b, 0]) if case.page else b, slot=0, tokens=length)
            for b, length in enumerate(lengths(case))
            if length >= SHORTEST_WITH_SINK
        ],
        unit=ORDINARY,
        draw=draw,
    )


def tokens(case: MlaCase, inputs: Inputs, b: int, length: int) -> torch.Tensor:
    """The first `length` tokens of sequence b, `[length, L + R]` in fp32."""
    import torch

    row = inputs["block_table"][b] if case.page else torch.tensor([b], device=inputs["cache"].device)
    names = ("cache", "rope", "latent_scale") if case.kv else ("cache",)
    first, *more = (paging.gather(inputs[name], row, 0, length, case.page or case.T) for name in names)
    if not case.kv:
        return first.float()
    rope, scale = more
    if case.kv == "nvfp4":
        return torch.cat([nvfp4_cache.decoded(first, scale, inputs["latent_global"]), rope.float()], dim=-1)
    return torch.cat([first.float() * scale[:, None], rope.float()], dim=-1)


def reference(case: MlaCase, inputs: Inputs) -> torch.Tensor:
    """Computed in fp32, one sequence at a time. A query that sees nothing gives zeros."""
    import torch

    q = torch.cat([inputs["q_latent"], inputs["q_rope"]], dim=-1).float()
    o = torch.zeros(case.B, case.q_len, case.H, case.L, device=q.device)
    for b, length in enumerate(lengths(case)):
        if length:
            cached = tokens(case, inputs, b, length)
            last = torch.arange(length - case.q_len, length, device=q.device)[:, None, None]
            unseen = torch.arange(length, device=q.device) > last
            scores = (q[b] @ cached.T * case.softmax_scale).masked_fill(unseen, float("-inf"))
            o[b] = torch.softmax(scores, dim=-1).nan_to_num(0.0) @ cached[:, : case.L]
    return o


def work(case: MlaCase) -> Work:
    """Each live token, its scales and its table entry once; queries, nvfp4's scale of all and O once. Exponentials are
    not counted."""
    tokens, size = sum(lengths(case)), BYTES[case.dtype]
    queries = size * case.B * case.rows * (case.L + case.R)
    return Work(
        flops={"fma_fp32" if case.dtype == "fp32" else "mma_bf16": 2 * case.H * (2 * case.L + case.R) * visible(case)},
        bytes_read=tokens * case.token_bytes + table_bytes(case) + 4 * (case.B + (case.kv == "nvfp4")) + queries,
        bytes_written=size * case.B * case.rows * case.L,
    )


def tolerance(case: MlaCase) -> Tolerance:
    """The rounding of latents to 8 or 4 bits is part of the inputs, not of the error.

    Probabilities that meet them may be rounded to bf16, which keeps the small ones, whatever type q has. Scores may be
    rounded to fp16, which moves probabilities by several units of fp16, so its noise is not judged; in bf16 this would
    be more than is allowed.
    """
    why = "probabilities and O are each rounded to the type once, in fp16 scores too"
    rounds_to = "bf16" if case.kv and case.dtype == "fp16" else case.dtype
    roundings = None if rounds_to == "fp16" else 2
    return rounded(
        rounds_to, terms="T terms", max_units=8, rms_units=2, roundings=roundings, each_sequence=True, why=why
    )


OP = Op(
    name="mla_decode",
    title="MLA",
    role="decode",
    about="multi-head latent attention (DeepSeek) of a decode step, absorbed form, contiguous or paged",
    formula="O = softmax((Q_latent C^T + Q_rope R^T) s) C",
    case_type=MlaCase,
    cases=cases,
    inputs=inputs,
    reference=reference,
    work=work,
    tolerance=tolerance,
    volatile=("q_latent", "q_rope", "cache", "rope", "latent_scale", "block_table"),
    smaller=lambda case, n: fewer(case, n, B=1, T=64),
)
