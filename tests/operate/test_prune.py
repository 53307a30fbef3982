"""Pruning: which candidates are worth timing, judged by what the compiler makes of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from bench.errors import BadRequest
from bench.inspection.codegen.judge import Stream
from bench.operate.tune import prune
from bench.operate.tune.prune import Compiled, judge, shape_classes, tunable
from bench.operate.tune.search import DEFAULT, Request, tune
from tests.support import planted_tuning
from tests.support.heard import Silent
from tests.support.tuning_cases import H100, A, compiled, toy_class
from tests.support.uninterpreted import elsewhere


def judged(default: Compiled, candidate: Compiled) -> str:
    row = judge(toy_class(A), 90, {DEFAULT: default, A: candidate})
    assert row.survivors[0] == DEFAULT
    assert len(row.survivors) + len(row.fallen) == 2
    return row.fallen[0][1] if row.fallen else ""


def test_only_what_is_no_worse_than_the_default_is_worth_a_clock() -> None:
    default = compiled("default")
    assert judged(default, compiled("good", in_flight=40 << 10)) == ""
    assert "few bytes in flight" in judged(default, compiled("few", in_flight=20 << 10))
    assert "spills" in judged(default, compiled("spills", spill_instructions=4))
    assert "does not fit" in judged(default, compiled("large", ctas_per_sm=0))
    assert "narrow" in judged(default, compiled("narrow", streams=(Stream(name="w", how="load", width=4),)))
    assert judged(default, compiled("default")) == "the same as default"
    crowded = dataclasses.replace(compiled("crowded"), declared=(3,))
    assert judged(default, crowded) == "too many CTAs: k counts on 3 CTAs per SM, 2 fit"
    assert judged(dataclasses.replace(default, declared=(3,)), crowded) == ""
    assert judged(default, Compiled(error="does not compile: no")) == "does not compile: no"


def test_a_default_with_few_bytes_in_flight_excuses_as_few_but_not_fewer() -> None:
    small = compiled("default", in_flight=8 << 10)
    assert judged(small, compiled("as few", in_flight=8 << 10)) == ""
    assert "few bytes" in judged(small, compiled("fewer", in_flight=4 << 10))
    spilling = compiled("default", spill_instructions=1)
    assert "spills" in judged(spilling, compiled("too", spill_instructions=1))


def test_classes_hold_their_cases_most_bytes_first_and_the_default_leads() -> None:
    (small, large) = shape_classes([(planted_tuning.TOY, planted_tuning.HOST)], "quick", H100)
    assert [c.K for c in small.cases] == [8192, 4096]
    assert [c.K for c in large.cases] == [16384]
    assert small.configs[0] == DEFAULT
    assert (("repeats", 1),) in small.configs


def test_a_case_that_takes_long_to_draw_does_not_stand_for_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes() -> list[list[int]]:
        found = shape_classes([(planted_tuning.TOY, planted_tuning.HOST)], "smoke", H100)
        return [[planted_tuning.TOY.work(case).bytes for case in each.cases] for each in found]

    before = next(each for each in sizes() if len(set(each)) > 1)
    monkeypatch.setattr(prune, "MOST_BYTES", max(before) - 1)
    largest, *others = before
    assert [*others, largest] in sizes()


def test_names_are_checked() -> None:
    assert [impl.name for _, impl in tunable("tests.support.planted_tuning", (), ())] == ["host", "compiled"]
    for ops, impls, message in (
        (("stream",), (), "unknown op"),
        ((), ("plain",), "unknown tunable implementation"),
        ((), ("hots",), "did you mean host"),
    ):
        with pytest.raises(BadRequest, match=message):
            tunable("tests.support.planted_tuning", ops, impls)
    with pytest.raises(BadRequest, match="unknown suite"):
        shape_classes([], "tiny", H100)


def dry() -> dict[str, Any]:
    return tune(
        Request(dry_run=True, sms=(90,), impls=("compiled",), catalogue="tests.support.planted_tuning", workers=1),
        Silent(),
    ).as_dict()


@pytest.mark.slow
def test_a_dry_run_compiles_the_candidates_and_says_why_some_fall() -> None:
    (row,) = elsewhere("tests.operate.test_prune", "t.dry()")["sifted"]
    names = {json.dumps(v): k for k, v in planted_tuning.CANDIDATES.items()}
    assert [names.get(json.dumps(c), "default") for c in row["survivors"]] == ["default", "good"]
    reasons = {names[json.dumps(fallen["config"])]: fallen["reason"] for fallen in row["fallen"]}
    assert reasons["same"] == "the same as default"
    assert "few bytes in flight" in reasons["shallow"]
    assert "does not compile" in reasons["odd block"]
    assert "can't be planned" in reasons["no such field"]
    assert "block_m" in reasons["no such field"]
    assert "spills" in reasons["spilling"]
