"""Paged caches: every live token is where its table says, and everything else is poison."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from kernels.common import paging
from tests.support.properties import given, settings, st


def cache_of(lengths: list[int], page: int, **more: object) -> tuple[torch.Tensor, paging.Paged]:
    """A cache with numbered slots, poisoned where they are dead."""
    ranges = [((0, n),) for n in lengths]
    columns = paging.cdiv(max(lengths), page) + 1
    paged = paging.block_table(ranges, page=page, columns=columns, **more)  # type: ignore[arg-type]
    cache = torch.arange(paged.pages * page, dtype=torch.float32).view(paged.pages, page, 1, 1)
    paging.poison_dead(cache, ranges, page=page, paged=paged)
    return cache, paged


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any),
    page=st.integers(1, 17),
    shuffled=st.booleans(),
    seed=st.integers(0, 9),
)
def test_each_live_token_has_a_slot_of_its_own_and_the_rest_is_nan(
    lengths: list[int], page: int, shuffled: bool, seed: int
) -> None:
    cache, paged = cache_of(lengths, page, shuffled=shuffled, seed=seed)
    tokens = torch.cat([paging.gather(cache, paged.table[b], 0, n, page) for b, n in enumerate(lengths)]).flatten()
    assert not tokens.isnan().any()
    assert tokens.unique().numel() == sum(lengths)
    assert int((~cache.isnan()).sum()) == sum(lengths)
    for b, n in enumerate(lengths):
        dead = paged.table[b, paging.cdiv(n, page) :]
        assert dead.numel()
        assert all(entry in paging.GARBAGE for entry in dead.tolist())


@settings(deadline=None)
@given(start=st.integers(0, 39), length=st.integers(1, 40), page=st.integers(1, 17))
def test_tokens_are_gathered_from_anywhere(start: int, length: int, page: int) -> None:
    cache, paged = cache_of([80, 3], page, seed=1)
    row = paged.table[0]
    by_hand = [cache[row[t // page], t % page].item() for t in range(start, start + length)]
    assert paging.gather(cache, row, start, start + length, page).flatten().tolist() == by_hand


@pytest.mark.parametrize(("length", "spare"), [(4, 1), (124, 1), (128, 2), (400, 6)])
def test_a_sixteenth_more_pages_belong_to_nobody(length: int, spare: int) -> None:
    assert cache_of([length], 4)[1].unowned.numel() == spare


def test_unowned_pages_exist_and_are_poisoned() -> None:
    cache, paged = cache_of([32, 5], 4, seed=3)
    assert paged.unowned.numel() >= 1
    assert paged.pages == 8 + 2 + paged.unowned.numel()
    assert cache[paged.unowned].isnan().all()


def test_pages_in_order_and_shuffled() -> None:
    ordered = cache_of([64], 2, shuffled=False)[1].table[0, :32]
    assert ordered.tolist() == list(range(32))
    shuffled = cache_of([64], 2, seed=1)[1].table[0, :32]
    assert shuffled.tolist() != sorted(shuffled.tolist())
    assert not torch.equal(shuffled, cache_of([64], 2, seed=2)[1].table[0, :32])


def test_a_range_in_the_middle_leaves_both_sides_dead() -> None:
    ranges = [((0, 3), (9, 14))]
    paged = paging.block_table(ranges, page=4, columns=5, seed=0)
    cache = torch.zeros(paged.pages, 4, 1, 1)
    paging.poison_dead(cache, ranges, page=4, paged=paged)
    row = paged.table[0].tolist()
    assert [entry in paging.GARBAGE for entry in row] == [False, True, False, False, True]
    assert cache[row[0]].isnan().flatten().tolist() == [False, False, False, True]
    assert cache[row[2]].isnan().flatten().tolist() == [True, False, False, False]
    assert cache[row[3]].isnan().flatten().tolist() == [False, False, True, True]


def test_shared_pages_are_the_same_for_all() -> None:
    ranges = [((0, n),) for n in (10, 9, 17)]
    paged = paging.block_table(ranges, page=4, columns=6, shared=2, seed=0)
    assert (paged.table[:, :2] == paged.table[0, :2]).all()
    own = [entry for row in paged.table[:, 2:].tolist() for entry in row if entry not in paging.GARBAGE]
    assert len(own) == len(set(own)) == 1 + 1 + 3
    assert not set(own) & set(paged.table[0, :2].tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_poison_is_nan_in_every_float_type(dtype: torch.dtype) -> None:
    tokens = torch.ones(3, 2).to(dtype)
    view, poison = paging.poisonable(tokens)
    view[1].fill_(poison)
    assert tokens.float().isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]


def test_poison_of_int8_is_its_least() -> None:
    tokens = torch.ones(3, dtype=torch.int8)
    view, poison = paging.poisonable(tokens)
    view[1].fill_(poison)
    assert tokens.tolist() == [1, -128, 1]


def test_layouts_are_views_of_the_same_tokens() -> None:
    stored = torch.randn(3, 2, 5, 4)  # HND: [pages, H_kv, page, D]
    assert torch.equal(paging.nhd(stored, "HND")[1, 4, 0], stored[1, 0, 4])
    assert paging.nhd(stored, "NHD") is stored


@pytest.mark.parametrize("kind", paging.LENGTHS)
def test_lengths_are_reproducible_and_within_bounds(kind: str) -> None:
    drawn = paging.random_lengths(kind, 64, 1000, 7)
    assert drawn == paging.random_lengths(kind, 64, 1000, 7)
    assert max(drawn) == 1000
    assert min(drawn) >= (0 if kind == "holes" else 1)
    if kind != "uniform":
        assert drawn != paging.random_lengths(kind, 64, 1000, 8)


def test_longtail_is_mostly_short_and_holes_hold_an_empty_sequence() -> None:
    drawn = sorted(paging.random_lengths("longtail", 4096, 1 << 20, 0))
    logs = [math.log(n / (1 << 16)) for n in drawn]
    assert statistics.median(logs) == pytest.approx(0, abs=0.06), "the median is T / 16"
    assert logs[round(0.841 * 4096)] == pytest.approx(1, abs=0.1), "and sigma 1"
    assert sum(drawn[-512:]) > 0.3 * sum(drawn)
    for B in range(3, 9):
        assert all({0, 1, 100} <= set(paging.random_lengths("holes", B, 100, seed)) for seed in range(20))
    assert paging.random_lengths("holes", 2, 100, 0) == (100, 0)
    assert paging.random_lengths("holes", 1, 100, 0) == (0,)


def test_unknown_lengths_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="uniform, ragged"):
        paging.random_lengths("bimodal", 1, 1, 0)
