"""KV-cache allocators against numbers worked out by hand, and the properties that each free list must have."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from bench.judge.claims.paging_simulation import (
    AZURE_SAMPLE,
    LOG_SDS,
    MAX_TOKENS,
    FirstFit,
    Independent,
    Lognormal,
    Paged,
    Traced,
    azure_conversation,
    compare_allocators,
    sharegpt,
    simulate,
)

ALIKE = Independent(
    name="all alike",
    prompt=Lognormal(median=100, log_sd=0),
    output=Lognormal(median=100, log_sd=0),
    source="made up",
)


def test_requests_that_are_all_alike_waste_what_hand_arithmetic_says() -> None:
    """A request holds 101, 102 ... 200 tokens over its 100 steps, which is 150.5 on average."""
    reserved = simulate(FirstFit(3000, reserve=1000), ALIKE, max_tokens=1000)
    assert reserved.running == 3
    assert reserved.waste == pytest.approx(1 - 150.5 / 1000)
    exact = simulate(FirstFit(3000), ALIKE, max_tokens=1000)
    assert exact.running == 15
    assert exact.waste == pytest.approx(1 - 150.5 / 200)


def test_pages_of_ten_waste_the_part_of_the_last_page_that_is_empty() -> None:
    """101 to 200 tokens in pages of 10 leave 9, 8 ... 0 slots of the last page empty."""
    outcome = simulate(Paged(200, 10), ALIKE, max_tokens=1000)
    tokens = np.arange(101, 201)
    held = -(-tokens // 10) * 10
    assert outcome.running == 1
    assert outcome.waste == pytest.approx(np.mean(1 - tokens / held))


def test_first_fit_takes_the_lowest_hole_that_is_large_enough() -> None:
    space = FirstFit(10)
    assert [space.admit(i, 1, n) for i, n in ((1, 4), (2, 3), (3, 3))] == [True, True, True]
    assert not space.admit(4, 1, 1)
    space.release(2)
    assert not space.admit(5, 1, 4)
    assert space.admit(6, 1, 2)
    space.release(1)
    assert space.held == 5
    assert space.fragmented(5) == 5, "4 + 1 free slots would do if they were neighbours"
    assert not space.admit(7, 1, 5)
    assert space.fragmented(6) == 0, "six do not fit into five free slots even in one piece"


def test_pages_need_no_neighbours_and_all_come_back() -> None:
    pool = Paged(40, 4)
    assert pool.admit(1, 15, 40)
    assert pool.admit(2, 15, 40)
    assert pool.held == 32, "15 prompt tokens and the first new one fill four pages each"
    assert pool.grow(1, 16)
    assert pool.grow(1, 17)
    assert pool.grow(1, 21)
    assert not pool.grow(2, 17), "all ten pages are taken"
    pool.release(1)
    assert pool.grow(2, 17)
    pool.release(2)
    assert pool.held == 0
    assert pool.admit(3, 39, 40), "every page is free again"


def test_a_request_put_back_returns_with_the_tokens_it_had() -> None:
    """Two requests grow beyond a memory for one and a half. The younger one leaves, and both still finish."""
    outcome = simulate(Paged(300, 10), ALIKE, max_tokens=1000, steps=2000, warm_up=0)
    assert outcome.preempted > 0
    assert outcome.finished >= 15, "a request that returns keeps its tokens and does not compute them again"


def test_smaller_pages_waste_less_and_one_token_pages_nothing() -> None:
    outcome = compare_allocators(sharegpt(), pages=(1, 16, 256)).paged
    assert outcome[1].waste == 0
    assert 0 < outcome[16].waste < outcome[256].waste
    assert outcome[256].running < outcome[16].running


def test_the_same_seed_gives_the_same_outcome_and_another_seed_another() -> None:
    first, again = (simulate(Paged(4000, 16), sharegpt(), seed=7) for _ in range(2))
    assert first == again
    assert first != simulate(Paged(4000, 16), sharegpt(), seed=8)


def test_every_allocator_serves_the_same_requests_in_order() -> None:
    """With room for all requests none of them waits, so both first-fit allocators finish the same number."""
    outcomes = [
        simulate(allocator, ALIKE, max_tokens=200, steps=400, warm_up=0)
        for allocator in (FirstFit(400, reserve=200), FirstFit(400), Paged(400, 1))
    ]
    assert [o.finished for o in outcomes[:2]] == [8, 8]


def test_a_lognormal_of_a_given_mean_has_it() -> None:
    lengths = Lognormal.of_mean(337.99, 1.0)
    assert lengths.mean == pytest.approx(337.99)
    assert lengths.median == pytest.approx(337.99 * math.exp(-0.5))
    drawn = lengths.draw(np.random.default_rng(0), 200_000)
    assert drawn.mean() == pytest.approx(337.99, rel=0.02)
    assert drawn.min() >= 1


def test_the_sample_is_like_the_trace_it_was_taken_from() -> None:
    """Its medians lie within 5% of those that Splitwise gives, and its spreads lie within the assumed ones."""
    lengths = np.array(AZURE_SAMPLE.requests)
    assert len(lengths) == 192
    whole = azure_conversation()
    assert np.median(lengths, axis=0) == pytest.approx([whole.prompt.median, whole.output.median], rel=0.05)
    spreads = np.log(lengths).std(axis=0)
    assert spreads == pytest.approx([0.96, 0.92], abs=0.005)
    assert all(min(LOG_SDS) < spread < max(LOG_SDS) for spread in spreads)


def test_traced_requests_are_drawn_whole_and_again() -> None:
    """A prompt keeps its own output, and more requests can be drawn than the trace has."""
    few = Traced(name="two", requests=((10, 1), (20, 2)), source="made up")
    prompts, outputs = few.draw(np.random.default_rng(0), 50)
    assert set(zip(prompts.tolist(), outputs.tolist(), strict=True)) == {(10, 1), (20, 2)}
    assert len(prompts) == 50


def test_no_request_is_longer_than_the_longest_allowed() -> None:
    asked: set[tuple[int, int]] = set()

    class Recorder(FirstFit):
        def admit(self, request: int, prompt: int, final: int) -> bool:
            asked.add((prompt, final))
            return super().admit(request, prompt, final)

    long = Lognormal(median=5000, log_sd=1)
    simulate(Recorder(3 * MAX_TOKENS), Independent(name="long", prompt=long, output=long, source="made up"))
    assert max(final for _, final in asked) == MAX_TOKENS
    assert all(0 < prompt < final for prompt, final in asked)


def test_a_comparison_takes_under_five_seconds() -> None:
    start = time.process_time()
    compare_allocators(sharegpt())
    assert time.process_time() - start < 5
