"""O = softmax((Q_latent C^T + Q_rope R^T) s) C: multi-head latent attention of a decode step, in its absorbed form.

DeepSeek-V2 and later models (arXiv 2405.04434) cache one latent and one rotary key per token, which all heads share.
The cache is [.., L + R]: its first L columns are C, key and value at once, and the others are R. The up-projections of
keys and values are absorbed into q_latent [B, q_len, H, L] and into what follows O [B, q_len, H, L]; q_rope is
[B, q_len, H, R]. A draft to verify (q_len 2 in DeepSeek's multi-token prediction) is the last q_len tokens.

A cache in fp8 (e4m3) has its latents scaled per token. The rotary key, which suffers most from rounding, stays in 16
bits: cache [.., L] fp8, rope [.., R], latent_scale [..] fp32. For DeepSeek's widths a token has 644 bytes instead of
1152. One scale per token, as in SnapMLA (arXiv 2602.10718), multiplies a score and a probability, and no element.
FlashMLA's layout of 656 bytes has a scale for every 128 latents, so that elements must be scaled one by one.

A cached token is read once, for 2 H (L + R) + 2 H L FLOP per query. With 128 heads these are 242 FLOP/B in bf16, near
the ridge of an H100; attention over separate heads' KV has 1 to 16. In fp8 it is 432, and with two queries 484, which
is beyond the ridge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import log
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from kernels.common import paging
from kernels.common.compare import rounded
from kernels.common.fields import TYPES, Count, Dtype, OneOf, cache_type
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
from kernels.models import MODELS
from kernels.op import Case, Inputs, Op, Tolerance, Work

if TYPE_CHECKING:
    import torch

DEEPSEEK = MODELS["deepseek-v3"]

ORDINARY = 0.12
"""Standard deviation of ordinary latents. With the marked one that each token has, the rms of latents is about 1."""

FP8_CODES = 16
"""Codes of an fp8 latent of 1. The largest marked latent, 226 ordinary ones for L = 512, is then a code of 434, as if
the scale of a token were made from its largest latent."""


@dataclass(frozen=True, kw_only=True)
class MlaCase(Case):
    """`H` heads share a latent of `L` and a rotary key of `R`. `T` is the longest sequence; `lengths` and `seed` draw
    the others.

    - `page`: tokens a page, 0 for a contiguous cache
    - `kv`: type of the cached latents: `fp8` with a scale per token, or `dtype`, which becomes `""`
    - `q_len`: query tokens a sequence. They are its last tokens, causal among themselves
    - `scale`: the factor of the scores, 0 for (128 + R)^-1/2
    - `context`: sparse attention: T tokens are read of so many that each sequence has. The block table is the list of
      them, in any order: of tokens with `page` 1, of blocks with larger pages. 0: all tokens are read
    - `grown`: tokens that every sequence has gained since its length was drawn, as after so many steps
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {"lengths": "uniform", "q_len": 1, "context": 0}

    B: int
    H: int
    T: int
    L: int = DEEPSEEK.kv_latent
    R: int = DEEPSEEK.rope_dim
    lengths: paging.Lengths = "uniform"
    seed: Count = 0
    page: Count = 0
    dtype: Dtype = "bf16"
    kv: Annotated[str, OneOf("", "fp8", *TYPES)] = ""
    q_len: int = 1
    scale: float = 0.0
    context: Count = 0
    grown: Count = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "kv", cache_type(self.kv, self.dtype))
        if reason := paging.wrong_context(self.context, self.T, self.page):
            raise ValueError(reason)
        if self.grown >= self.T:
            raise ValueError(f"grown {self.grown}: fewer tokens than the T = {self.T} of each")

    @property
    def id(self) -> str:
        parts = [f"B{self.B}", f"H{self.H}", f"L{self.L}+{self.R}", f"T{self.T}"]
        if self.lengths != "uniform":
            parts.append(self.lengths + (str(self.seed) if self.seed else ""))
        if self.q_len > 1:
            parts.append(f"q{self.q_len}")
        if self.page:
            parts.append(f"page{self.page}")
        if self.context:
            parts.append(f"of{self.context}")
        if self.scale:
            parts.append(f"scale{self.scale:.4g}")
        if self.grown:
            parts.append(f"grown{self.grown}")
        return "-".join([*parts, self.dtype] + ([f"kv{self.kv}"] if self.kv else []))

    @property
    def rows(self) -> int:
        """Query rows of one sequence; all of them share its tokens."""
        return self.q_len * self.H

    @property
    def softmax_scale(self) -> float:
        """The factor of the scores: `scale`, or (128 + R)^-1/2. A head is 128 + R wide before absorption."""
        return self.scale or (DEEPSEEK.head_dim + self.R) ** -0.5

    @property
    def token_bytes(self) -> int:
        scale = BYTES["fp32"] if self.kv else 0
        return self.L * BYTES[self.kv or self.dtype] + self.R * BYTES[self.dtype] + scale


YARN_SCALE = (DEEPSEEK.head_dim + DEEPSEEK.rope_dim) ** -0.5 * (0.1 * log(40) + 1) ** 2
"""What DeepSeek-V3 multiplies its scores by: 192^-1/2 times the square of YaRN's mscale, for the `factor` 40 and the
`mscale_all_dim` 1 of its config.json (`softmax_scale` in its modeling_deepseek.py)."""


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


def sparse(B: int, H: int, context: int, **more: Any) -> MlaCase:
    """DeepSeek-V3.2 reads the 2,048 tokens that its indexer picks (`index_topk` of its config.json)."""
    return MlaCase(model="deepseek-v3.2", B=B, H=H, T=2048, page=1, context=context, **more)


def smoke() -> Iterable[MlaCase]:
    """For a CPU: 75 MB of cache."""
    yield MlaCase(B=8, H=16, T=4096, dtype="fp32")


def quick() -> Iterable[MlaCase]:
    """DeepSeek-V3's heads on one GPU of eight and all of them; short and long, contiguous and paged."""
    for B, H, T in ((1, 128, 8192), (32, 16, 4096), (32, 128, 4096)):
        yield MlaCase(model="deepseek-v3", B=B, H=H, T=T)
    yield MlaCase(model="deepseek-v3", B=64, H=16, T=8192, page=64, lengths="ragged")
    yield MlaCase(model="deepseek-v3", B=32, H=128, T=4096, kv="fp8")
    yield sparse(32, 16, 32768, kv="fp8")


def full() -> Iterable[MlaCase]:
    """Heads from one GPU of eight to all; batches, contexts, lengths; contiguous and in pages of 64; fp8."""
    for H in (16, 32, 64, 128):
        yield MlaCase(model="deepseek-v3", B=32, H=H, T=8192)
        yield MlaCase(model="deepseek-v3", B=32, H=H, T=8192, page=64)
    for B in (1, 4, 16, 64, 128):
        yield MlaCase(model="deepseek-v3", B=B, H=128, T=4096, page=64)
    for T in (1024, 16384, 65536):
        yield MlaCase(model="deepseek-v3", B=8, H=128, T=T, page=64)
    for kind in ("ragged", "longtail"):
        yield MlaCase(model="deepseek-v3", B=64, H=16, T=16384, page=64, lengths=kind)
    for H in (16, 128):
        yield MlaCase(model="deepseek-v3", B=32, H=H, T=8192, kv="fp8")
        yield MlaCase(model="deepseek-v3", B=32, H=H, T=8192, page=64, kv="fp8")
    yield MlaCase(model="deepseek-v3", B=64, H=16, T=16384, page=64, lengths="ragged", kv="fp8")
    yield MlaCase(model="deepseek-v3", B=32, H=128, T=8192, page=64, scale=YARN_SCALE)
    yield from (sparse(B, 128, 131072, kv=kv) for B in (1, 8) for kv in ("", "fp8"))
    yield from (sparse(64, H, 32768, kv="fp8") for H in (16, 128))
    # more arithmetic over the same latents: twice and four times the queries
    for H, q_len in ((16, 4), (128, 2)):
        yield MlaCase(model="deepseek-v3", B=32, H=H, T=8192, page=64, q_len=q_len)


def test() -> Iterable[MlaCase]:
    """Small and edgy: one token, odd lengths, few heads, two tiles of heads, pages smaller and larger than a block.

    Some drafts are longer than their sequence, and in some the first query sees nothing of the last block.
    """

    def small(B: int, H: int, T: int, **more: Any) -> MlaCase:
        return MlaCase(B=B, H=H, T=T, L=64, R=16, dtype="fp16", **more)

    for kv in ("", "fp8"):
        yield small(1, 16, 1, kv=kv)
        yield small(2, 5, 70, lengths="ragged", kv=kv)
        yield small(1, 80, 70, kv=kv)
        yield small(3, 16, 100, page=64, lengths="holes", kv=kv)
        yield small(2, 32, 80, page=16, lengths="ragged", kv=kv)
        if not kv:
            yield small(1, 16, 150, page=128)
    yield small(2, 40, 65, page=64, q_len=2, lengths="holes")
    yield small(2, 16, 90, page=16, scale=0.2, lengths="ragged")
    yield small(3, 16, 66, q_len=4, lengths="holes")
    yield small(2, 16, 70, page=16, q_len=3, lengths="holes", kv="fp8")
    yield from (small(2, 16, 70, page=1, context=200, lengths="ragged", kv=kv) for kv in ("", "fp8"))


def cases(suite: str) -> list[MlaCase]:
    return list({"smoke": smoke, "quick": quick, "full": full, "test": test}[suite]())


def inputs(case: MlaCase, device: str, seed: int) -> Inputs:
    """Queries attend to marked tokens (see `kernels/common/marks.py`): their scores come from the rotary keys, so that
    a token without its rotary key shows, and their marks are latents.

    Everything that is not live is poisoned. `block_table` is `[B, 0]` for a contiguous cache `[B, T, L + R]`; `rope`
    and `latent_scale` are `[0]` unless the cache is fp8.
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
    if case.kv:
        cached = {
            "cache": draw.normal((*slots, case.L), case.kv, scale=FP8_CODES * ORDINARY),
            "rope": draw.normal((*slots, case.R), case.dtype),
            # kernels multiply probabilities with it and round the product: it must not err to one side
            "latent_scale": draw.scales(slots, 1 / FP8_CODES, step=1.25, one_sided=False),
        }
    else:
        cached = {
            "cache": draw.normal((*slots, case.L + case.R), case.dtype),
            "rope": draw.normal((0,), case.dtype),
            "latent_scale": draw.normal((0,), "fp32"),
        }
        cached["cache"][..., : case.L].mul_(ORDINARY)
    queries = {
        "q_latent": draw.normal((case.B, case.q_len, case.H, case.L), case.dtype, scale=width["q_latent"]),
        "q_rope": draw.normal((case.B, case.q_len, case.H, case.R), case.dtype, scale=width["q_rope"]),
    }
    if device != "meta":
        if case.kv and 1 in lengths(case):
            # all of the output is this one value: an exact scale, since one rounding of it would decide the slope
            alone = [b for b, length in enumerate(lengths(case)) if length == 1]
            cached["latent_scale"][paged.table[alone, 0].long() if case.page else alone, 0] = 1 / FP8_CODES
        raise_queries(marks, queries["q_rope"], unit=UNIT / (KEY_STEP * case.softmax_scale))
        mark(case, cached, marks, paged, draw)
        for tensor in cached.values():
            if tensor.numel():
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
    write_marks(
        marks,
        keys=Slots(stored=(cached["rope"] if case.kv else cache[..., case.L :])[:, :, None]),
        values=Slots(
            stored=cache[..., : case.L][:, :, None], scale=cached["latent_scale"][..., None] if case.kv else None
        ),
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
    first, *more = (paging.gather(inputs[name], row, 0, length, case.page or case.T).float() for name in names)
    if not case.kv:
        return first
    rope, scale = more
    return torch.cat([first * scale[:, None], rope], dim=-1)


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
    """Each live token, its scale and its table entry once; queries and O once. Exponentials are not counted."""
    tokens, size = sum(lengths(case)), BYTES[case.dtype]
    queries = size * case.B * case.rows * (case.L + case.R)
    return Work(
        flops={"fma_fp32" if case.dtype == "fp32" else "mma_bf16": 2 * case.H * (2 * case.L + case.R) * visible(case)},
        bytes_read=tokens * case.token_bytes + table_bytes(case) + 4 * case.B + queries,
        bytes_written=size * case.B * case.rows * case.L,
    )


def tolerance(case: MlaCase) -> Tolerance:
    """The rounding of fp8 latents is part of the inputs, not of the error.

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
)
