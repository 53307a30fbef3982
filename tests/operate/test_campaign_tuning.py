"""Tuning in a campaign: a minute of each call, all classes within three, and what it changes is measured again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.devices import find
from bench.measure.schedule import Request as RunRequest
from bench.measure.schedule import outdated, schedule_jobs
from bench.operate.campaign import steps, tuning
from bench.operate.tune import search
from bench.operate.tune.prune import DEFAULT, Pruned, ShapeClass, prune
from bench.records import Record
from bench.run import Run
from kernels.op import Config, Target
from tests.operate.test_search import ENVIRONMENT
from tests.support import planted
from tests.support.heard import Silent
from tests.support.synthetic_run import record
from tests.support.tuning_cases import H100, A, B, compiled, toy_class

H200 = find("h200").target()
RACE_S, COMPILE_S = 0.2, 0.3
"""Of a configuration in a race (sampling 0.1 s, preparing, gate), and of a class that the compilers did not finish
while the class before it raced."""


def test_all_classes_of_an_h200_are_served_within_three_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The clock is pretended, no candidate falls, and every class has a winner, which takes longest."""
    now = [0.0]
    entries: dict[Any, Any] = {}

    def all_survive(classes: Sequence[ShapeClass], target: Target, *_: Any) -> Iterator[Pruned]:
        for each in classes:
            now[0] += COMPILE_S
            yield Pruned(shape_class=each, sm=target.sm, survivors=each.configs, fallen=())

    def race(shape_class: ShapeClass, case: Any, configs: Sequence[Config], cap_s: float) -> dict[Config, Record]:
        now[0] += RACE_S * len(configs)
        times = {config: 1e-4 if config == DEFAULT else 0.8e-4 for config in configs}
        return {c: record(shape_class.op, shape_class.impl, case.id, read=10**6, seconds=t) for c, t in times.items()}

    def write(outcome: search.Outcome, *_: Any) -> Path:
        entries[outcome.pruned.shape_class.label] = outcome
        return tmp_path

    monkeypatch.setattr(search, "prune", all_survive)
    monkeypatch.setattr(search, "write", write)
    classes = tuning.classes_of("quick", H200)
    chosen = search.tunable("kernels.op", (), ())
    budget_s = tuning.LIMIT_S - tuning.START_S
    for call in range(tuning.CALLS):
        done = tuple((c.op, c.impl, c.name) for c in classes if c.label in entries)
        request = search.Request(
            budget_s=budget_s, cap_s=tuning.CAP_S, pace_s=tuning.pace_s(budget_s, len(classes)), without=done
        )
        began = now[0]
        search.search(request, chosen, H200, ENVIRONMENT, race, Silent(), clock=lambda: now[0])
        assert now[0] - began < budget_s + 6.0, "the class that was begun last"
        if call == 0:
            largest = max(classes, key=lambda c: c.bytes)
            assert largest.label == next(iter(entries)), "most bytes first"
            assert len(entries) >= len(classes) // 3
    assert set(entries) == {c.label for c in classes}
    assert all(outcome.status == "tuned" for outcome in entries.values())


def test_tuning_takes_a_minute_of_a_call_at_most() -> None:
    (step,) = (step for step in steps.STEPS if step.name == "tune")
    assert step.most_s == tuning.LIMIT_S == 60.0


def test_classes_come_one_by_one_while_others_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is there before the last was compiled, and their order is kept."""
    seen: list[str] = []

    def in_turn(work: Any, trials: Sequence[Any], workers: int) -> Iterator[Any]:
        for trial in trials:
            seen.append(trial.impl)
            yield trial, compiled(f"{trial.impl} {trial.target.config}")

    monkeypatch.setattr("bench.operate.tune.prune.compile_each", in_turn)
    monkeypatch.setattr("bench.operate.tune.prune.refuse_interpreter", lambda: None)
    classes = [dataclasses.replace(toy_class(A, B), impl=impl) for impl in ("first", "second")]
    found = prune(classes, H100, "kernels.op", 2)
    assert next(found).shape_class.impl == "first"
    assert seen == ["first"] * 3
    assert [row.shape_class.impl for row in found] == ["second"]


def test_heats_end_where_a_class_is_late() -> None:
    calls: list[int] = []

    def race(shape_class: ShapeClass, case: Any, configs: Sequence[Config], cap_s: float) -> dict[Config, Record]:
        calls.append(len(configs))
        return {c: record("toy", "t", case.id, read=10**6, seconds=1e-4) for c in configs}

    many = toy_class(*[(("num_warps", n),) for n in range(20)])
    row = Pruned(shape_class=many, sm=90, survivors=many.configs, fallen=())
    outcome = search.search_class(row, 0.5, race, late=lambda: True)
    assert calls == [1 + search.HEAT, 1 + search.FINALISTS], "one heat, then the final"
    assert outcome.evidence["tried"] == search.HEAT


def earlier(*records: Record) -> Run:
    header = {"request": {"suite": "smoke"}}
    lists: dict[str, Any] = {"records": list(records), "repeats": [], "notes": [], "warnings": [], "headers": [header]}
    return Run(path=Path(), header=header, complete=True, **lists)


def test_a_case_whose_configuration_has_changed_is_measured_again() -> None:
    """With its peers, so that they are interleaved. What has the new configuration, or none, is not."""
    one, two, three = planted.OP.cases("smoke")
    old = record("toy", "honest", one.id, read=10, seconds=1e-4, config={"tuned": None})
    new = record("toy", "honest", two.id, read=10, seconds=1e-4, config={"tuned": {"num_warps": 8}})
    plain = record("toy", "honest", three.id, read=10, seconds=1e-4)
    peers = [record("toy", "steady", case.id, read=10, seconds=1e-4) for case in (one, two, three)]
    retuned = tuple(("toy", "honest", case.id, {"num_warps": 8}) for case in (one, two))
    run = earlier(old, new, plain, *peers)
    assert outdated(run.records, retuned) == {("toy", one.id, 0)}
    request = RunRequest(suite="smoke", retuned=retuned)
    impls = {"toy": {"honest": True, "steady": False}}
    jobs, done = schedule_jobs(request, {"toy": planted.OP}, impls, run, "", None)
    assert [(job.case.id, job.impls) for job in jobs] == [(one.id, ("honest", "steady"))]
    assert done == 2


def test_what_a_class_changes_are_all_cases_of_the_measured_suite() -> None:
    shape = next(c for c in tuning.classes_of("quick", H200) if c.op == "ffn_gemv")
    row = Pruned(shape_class=shape, sm=90, survivors=shape.configs, fallen=())
    outcome = search.Outcome(pruned=row, status="tuned", config=A)
    changed = tuning.changed_cases(outcome, "full")
    assert {case for _, _, case, _ in changed} >= {case.id for case in shape.cases}
    assert all(entry[0] == "ffn_gemv" and entry[3] == dict(A) for entry in changed)


def test_measuring_is_opened_again_by_a_new_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = steps.Campaign(steps.Request(root=tmp_path), tmp_path / "out", Silent())
    tuned_case = ["stream", "triton", "read-1GiB", {"num_warps": 8}]
    answers = [
        {"left": ["stream"], "lines": ["one"], "tuned": [tuned_case], "settled": [["stream", "triton", "copy"]]},
        {"left": [], "lines": ["two"], "tuned": [], "settled": []},
    ]
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(campaign, "ask", lambda step, limit_s, **more: asked.append(more) or answers[len(asked) - 1])
    progress, measured = campaign.steps["tune"], campaign.steps["measure"]
    measured.state = "done"
    campaign.tune(progress, 60.0)
    assert (progress.state, measured.state) == ("open", "open")
    measured.state = "done"
    campaign.tune(progress, 60.0)
    assert (progress.state, measured.state) == ("done", "done")
    assert progress.result["tuned"] == [tuned_case]
    assert progress.result["outcomes"] == ["one", "two"]
    assert asked[0]["budget_s"] == 45.0
    assert asked[1]["settled"] == [["stream", "triton", "copy"]]
