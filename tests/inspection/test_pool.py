"""The processes that compile: what each item gets, and what a killed process, an exception and a limit cost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from bench.inspection.codegen.pool import compile_each


def work(item: str) -> str:
    if item == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "raise":
        raise ValueError("what it says")
    if item == "hang":
        time.sleep(600)
    return item * 2


def test_a_killed_process_costs_only_its_item() -> None:
    items = ["a", "kill", "b", "kill", "c"]
    found = list(compile_each(work, items, 2))
    assert sorted(item for item, _ in found) == sorted(items)
    assert {item: result for item, result in found if result} == {"a": "aa", "b": "bb", "c": "cc"}
    assert [item for item, result in found if result is None] == ["kill", "kill"]
    assert not multiprocessing.active_children()


def test_an_exception_is_raised_here() -> None:
    with pytest.raises(RuntimeError, match="what it says"):
        list(compile_each(work, ["raise"], 1))


def test_what_hangs_is_killed_at_the_limit_or_when_nobody_asks_for_more() -> None:
    assert list(compile_each(work, ["hang"], 1, limit_s=0.5)) == []
    some = compile_each(work, ["a", "hang"], 2)
    assert next(some) == ("a", "aa")
    some.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_nothing_to_do_starts_nothing() -> None:
    assert list(compile_each(work, [], 8)) == []
