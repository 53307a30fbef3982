"""Paged KV caches: ragged lengths, block tables, and poison wherever a kernel must not look.

A cache is `[pages, page, H_kv, D]` ("NHD") or `[pages, H_kv, page, D]` ("HND"); sequence b keeps token t in physical
page `block_table[b, t // page]`, slot `t % page`. A contiguous cache `[B, T, H_kv, D]` is the same thing with one page
of T tokens per sequence and no table. Everything that is not a live token is poisoned: physical pages that nobody
owns, slots outside the live ranges, and table entries that lead to no live token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from kernels.common.fields import OneOf
from kernels.common.integers import cdiv

if TYPE_CHECKING:
    import torch

Ranges = Sequence[tuple[int, int]]
"""Live tokens of one sequence: ascending, disjoint half-open ranges."""

GARBAGE = (-1, 2**31 - 1)
"""Dead table entries alternate between these two. A kernel that follows either faults."""

LENGTHS = ("uniform", "ragged", "longtail", "holes")

Lengths = Annotated[str, OneOf(*LENGTHS)]
Layout = Annotated[str, OneOf("NHD", "HND")]
Order = Annotated[str, OneOf("shuffled", "ordered")]


def random_lengths(kind: str, B: int, T: int, seed: int) -> tuple[int, ...]:
    """Tokens per sequence, in pure Python, so that a `plan` sees them. The longest has T, unless B is too small.

    `uniform`: T each. `ragged`: uniform in [1, T]. `longtail`: log-normal with median T / 16 and sigma 1, cut at T, so
    that a few sequences hold most of the tokens. `holes`: ragged, with an empty sequence and one of a single token.
    """
    rng = random.Random(seed)
    if kind == "uniform":
        return (T,) * B
    if kind == "longtail":
        drawn = [min(T, max(1, round(T / 16 * rng.lognormvariate(0.0, 1.0)))) for _ in range(B)]
    elif kind in ("ragged", "holes"):
        drawn = [rng.randint(1, T) for _ in range(B)]
    else:
        raise ValueError(f"lengths {kind!r}: expected one of {', '.join(LENGTHS)}")
    drawn_only = list(range(B))
    if kind == "holes":
        drawn[-1], drawn[B // 2] = 1, 0
        drawn_only = [b for b in range(B) if b not in (B // 2, B - 1)]
    if drawn_only:
        drawn[max(drawn_only, key=drawn.__getitem__)] = T
    return tuple(drawn)


def live_pages(ranges: Ranges, page: int) -> list[int]:
    """Logical pages that hold a live token, ascending."""
    return sorted({i for start, end in ranges if end > start for i in range(start // page, cdiv(end, page))})


@dataclass(frozen=True, kw_only=True)
class Paged:
    """`table [B, columns]` int32 and `unowned`, the physical pages of nobody (int64), on the host; `pages` in all."""

    table: torch.Tensor
    unowned: torch.Tensor
    pages: int


def block_table(
    ranges: Sequence[Ranges],
    *,
    page: int,
    columns: int,
    shared: int = 0,
    shuffled: bool = True,
    spare: bool = True,
    pool: int = 0,
    seed: int = 0,
) -> Paged:
    """Physical pages for every logical page that holds a live token.

    The first `shared` logical pages are the same physical pages for every sequence. With `spare`, a sixteenth more
    pages (at least one) belong to nobody; there are at least `pool` pages in all. A contiguous cache is `page=T,
    columns=1, shuffled=False, spare=False`; there an empty sequence has its page too.
    """
    import torch

    owned = [[i for i in live_pages(r, page) if i >= shared] if spare else [0] for r in ranges]
    live = shared + sum(map(len, owned))
    pages = max(pool, live + (max(1, live // 16) if spare else 0))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(pages, generator=generator) if shuffled else torch.arange(pages)
    table = torch.tensor(GARBAGE, dtype=torch.int32).repeat(cdiv(columns, 2))[:columns].repeat(len(ranges), 1)
    table[:, :shared] = order[:shared].int()
    used = shared
    for b, logical in enumerate(owned):
        table[b, logical] = order[used : used + len(logical)].int()
        used += len(logical)
    return Paged(table=table, unowned=order[live:], pages=pages)


def first_tokens(paged: Paged, page: int) -> torch.Tensor:
    """`[pages]` int64 on the host: the number of the first token of each physical page in its sequence; 0 if nobody
    owns it."""
    import torch

    owned = (paged.table >= 0) & (paged.table < paged.pages)
    first = torch.zeros(paged.pages, dtype=torch.int64)
    first[paged.table[owned].long()] = (torch.arange(paged.table.shape[1]) * page).expand_as(paged.table)[owned]
    return first


def nhd(cache: torch.Tensor, layout: str) -> torch.Tensor:
    """A view `[pages, page, H_kv, D]` of a cache kept in either layout."""
    return cache.transpose(1, 2) if layout == "HND" else cache


def poisonable(tokens: torch.Tensor) -> tuple[torch.Tensor, float]:
    """A view to write poison through, and the poison: NaN, or the largest code of integers, whose scales carry the
    NaN: -128 for int8, two negative codes for bytes of e2m1."""
    import torch

    if tokens.dtype == torch.uint8:
        return tokens, 0xFF
    if tokens.dtype == torch.int8:
        return tokens, -128
    if tokens.dtype == torch.float8_e4m3fn:
        return tokens.view(torch.uint8), 0x7F
    return tokens, float("nan")


def poison_dead(cache: torch.Tensor, ranges: Sequence[Ranges], *, page: int, paged: Paged) -> None:
    """Poison every slot of `cache [pages, page, ...]` that holds no live token of any sequence."""
    slots, poison = poisonable(cache)
    slots.index_fill_(0, paged.unowned.to(cache.device), poison)
    for ranges_b, row in zip(ranges, paged.table.tolist(), strict=True):
        live = [r for r in ranges_b if r[1] > r[0]]
        for i in {t // page for r in live for t in r if t % page}:
            edges = [0, *(min(max(t - i * page, 0), page) for r in live for t in r), page]
            for start, end in zip(edges[::2], edges[1::2], strict=True):
                slots[row[i], start:end].fill_(poison)


def gather(cache: torch.Tensor, table_row: torch.Tensor, start: int, end: int, page: int) -> torch.Tensor:
    """Tokens `[start, end)` of one sequence as `[end - start, ...]`, read from `cache [pages, page, ...]`."""
    first = start // page
    pages = table_row[first : cdiv(end, page)].long()
    slots, _ = poisonable(cache)  # fp8 as bytes, which torch indexes on every device
    return slots[pages].view(cache.dtype).flatten(0, 1)[start - first * page : end - first * page]


def wrong_context(context: int, T: int, page: int) -> str:
    """What is wrong with a case that reads T tokens of a sequence of `context`; empty if nothing is."""
    if context and (context < T or not page):
        return f"context {context}: at least T = {T} tokens, in pages (here of {page}), which the block table picks"
    return ""
