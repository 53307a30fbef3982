"""The simulation behind claim T15, against times by hand."""

from __future__ import annotations

import pytest

from bench.judge.claims.drafts import REQUESTS, Request, apart_over_together, most_requests, times

RARE, ALL_AT_ONCE = 1e-6, 1e12
"""Requests a second: nobody ever waits, or all have come when the first is read."""


OUTPUT = 200


def alike(prefill: float, tokens: int = OUTPUT) -> list[Request]:
    return [(prefill, tokens)] * REQUESTS


def test_a_request_alone_waits_for_its_own_prompt_and_steps() -> None:
    first, each = times(RARE, alike(0.5), (0.02, 0.001))
    assert first == pytest.approx(0.5)
    assert each == pytest.approx(0.021)


def test_prompts_that_come_at_once_are_read_one_after_the_other() -> None:
    """Of 200 requests the 181st is the first that is not among nine of ten: it has 180 prompts before its own."""
    assert REQUESTS == 200
    first, _ = times(ALL_AT_ONCE, alike(0.5), (0.0, 0.0))
    assert first == pytest.approx(181 * 0.5)


def test_sequences_that_come_at_once_share_each_step() -> None:
    _, each = times(ALL_AT_ONCE, alike(0.0), (0.02, 0.001))
    assert each == pytest.approx(0.02 + 200 * 0.001, rel=1e-4)  # the first one begins a step alone


def test_answers_stand_still_while_prompts_are_read() -> None:
    """All prompts are read first. The 20th request is the 181st by its wait: for 180 prompts, over 200 tokens."""
    _, each = times(ALL_AT_ONCE, alike(0.5), (0.02, 0.001))
    assert each == pytest.approx(180 * 0.5 / 200 + 0.02 + 200 * 0.001)


def test_requests_at_random_repeat_with_their_seed() -> None:
    assert times(1.0, alike(0.1), (0.02, 0.001)) == times(1.0, alike(0.1), (0.02, 0.001))
    assert times(1.0, alike(0.1), (0.02, 0.001), seed=1) != times(1.0, alike(0.1), (0.02, 0.001))


def test_limits_decide_how_many_requests_fit() -> None:
    """A step of n sequences takes 10 + n ms. Fewer fit within a tighter limit, and none where one step is longer."""
    step = (0.010, 0.001)
    loose, tight = (most_requests(alike(0.0), step, 1.0, each) for each in (0.050, 0.020))
    assert 2 * tight < loose < 1e3
    assert times(0.99 * tight, alike(0.0), step)[1] <= 0.020 < times(1.05 * tight, alike(0.0), step)[1]
    assert most_requests(alike(0.0), step, 1.0, 0.005) == pytest.approx(1e-3, rel=1e-3)


def test_a_reader_of_prompts_takes_no_more_than_they_last() -> None:
    """Prompts of 0.1 s. Without time for waiting there is room for hardly any, and never for ten in a second."""
    assert most_requests(alike(0.1), (0.0, 0.0), 0.0999, 1.0) == pytest.approx(1e-3, rel=1e-3)
    close, far = (most_requests(alike(0.1), (0.0, 0.0), limit, 1.0) for limit in (0.2, 0.6))
    assert close < far < 15


def test_apart_serves_more_where_steps_may_hardly_wait() -> None:
    """Prompts of 0.1 s between steps of 11 ms and more: with a limit of 15 ms a token, together is held up."""
    step, first, each = (0.010, 0.001), 0.5, 0.015
    assert apart_over_together(alike(0.1), step, first, each) > 1
    reading, writing = most_requests(alike(0.1), (0.0, 0.0), first, each), most_requests(alike(0.0), step, first, each)
    together = most_requests(alike(0.1), step, first, each)
    assert apart_over_together(alike(0.1), step, first, each) == 1 / (1 / reading + 1 / writing) / together


def test_short_answers_end_before_long_ones_that_began_earlier() -> None:
    """The first wants 1,000 tokens, the others one: with all prompts read, these end after a step of 200 sequences."""
    requests = [(0.0, 1000), *alike(0.0, 1)[1:]]
    assert times(ALL_AT_ONCE, requests, (0.0, 0.001))[1] == pytest.approx(0.2)
