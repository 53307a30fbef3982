"""Searching: which configuration wins and what is written down. Times are pretended, and real once in a worker."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import BadRequest
from bench.operate.tune.prune import Compiled, Pruned, ShapeClass, judge, shape_classes
from bench.operate.tune.search import DEFAULT, HEAT, Display, Request, in_turns, search, search_class, tune, write
from bench.operate.tune.track import Track
from bench.records import Record
from kernels.common import tuned
from kernels.op import Config
from tests.support import ROOT, planted_tuning
from tests.support.heard import Silent
from tests.support.planted import ToyCase
from tests.support.synthetic_run import record, samples
from tests.support.tuning_cases import H100, LARGE, SMALL, A, B, C, compiled, entry, toy_class

ENVIRONMENT = {
    "git": {"sha": "0123456789ab", "dirty": True},
    "packages": {"torch": "2.11.0", "triton": "3.6.0"},
    "gpu": {"driver": "580.0"},
    "source_digest": "feedbeef0000",
}


def test_every_operation_gets_its_turn() -> None:
    """If the time ends early, no operation has used all of it."""
    classes = (("stream", "a"), ("stream", "b"), ("stream", "c"), ("ffn", "d"), ("moe", "e"), ("moe", "f"))
    found = [ShapeClass(op=op, impl="triton", name=name, cases=(), configs=()) for op, name in classes]
    assert [c.name for c in in_turns(found)] == ["a", "d", "e", "b", "f", "c"]
    found[-1] = dataclasses.replace(found[-1], bytes=2)
    found[3] = dataclasses.replace(found[3], bytes=1)
    assert [c.name for c in in_turns(found)] == ["f", "d", "a", "e", "b", "c"], "most bytes first"


def never(*_: Any) -> Any:
    raise AssertionError("nothing should be timed")


def timed(case: ToyCase, seconds: float, seed: int = 0, **changes: Any) -> Record:
    found = record("toy", "t", case.id, read=10**6, seconds=seconds, **changes)
    return dataclasses.replace(found, samples_s=samples(seconds, seed) if changes.get("status", "ok") == "ok" else [])


class FakeTrack:
    """Gives each configuration what `clock(case, config)` is: seconds, a record, or a reason why there is none."""

    def __init__(self, clock: Callable[[ToyCase, Config], Any]) -> None:
        self.clock = clock
        self.heats: list[tuple[str, tuple[Config, ...], float]] = []

    def race(self, shape_class: ShapeClass, case: ToyCase, configs: Sequence[Config], cap_s: float) -> Any:
        self.heats.append((case.id, tuple(configs), cap_s))
        found = {config: self.clock(case, config) for config in configs}
        return {
            config: timed(case, value, seed=len(self.heats) * 100 + i) if isinstance(value, float) else value
            for i, (config, value) in enumerate(found.items())
        }


def row_of(*configs: Config, cases: Sequence[ToyCase] = (LARGE,)) -> Pruned:
    shape_class = toy_class(*configs, cases=cases)
    return Pruned(shape_class=shape_class, sm=90, survivors=shape_class.configs, fallen=())


def test_the_fastest_wins_with_its_evidence() -> None:
    speeds = {DEFAULT: 1e-4, A: 0.8e-4, B: 0.9e-4, C: 1.5e-4}
    outcome = search_class(row_of(A, B, C), 0.5, FakeTrack(lambda case, config: speeds[config]).race)
    assert (outcome.status, outcome.config) == ("tuned", A)
    evidence = outcome.evidence
    assert evidence["gain"] == pytest.approx(0.25, abs=0.005)
    assert evidence["gain_interval"][0] < 0.25 < evidence["gain_interval"][1]
    assert evidence["seconds"]["median"] == pytest.approx(0.8e-4)
    assert evidence["default"]["seconds"]["median"] == pytest.approx(1e-4)
    assert evidence["runner_up"]["config"] == dict(B)
    assert evidence["tried"] == 3
    assert evidence["bytes_per_s"] == pytest.approx(10**6 / 0.8e-4)
    assert "+25.0%" in outcome.lines()[0]
    assert "runner-up num_warps=16" in outcome.lines()[0]


def test_the_default_is_in_every_heat_and_the_final_has_fresh_samples() -> None:
    many = [(("num_warps", n),) for n in range(2 * HEAT + 1)]
    track = FakeTrack(lambda case, config: 1e-4 - 1e-6 * (dict(config).get("num_warps") == 9))
    outcome = search_class(row_of(*many), 0.5, track.race)
    *heats, final = track.heats
    assert len(heats) == 3
    assert all(configs[0] == DEFAULT and len(configs) <= HEAT + 1 for _, configs, _ in heats)
    assert {c for _, configs, _ in heats for c in configs[1:]} == set(many)
    assert final[1][0] == DEFAULT
    assert (("num_warps", 9),) in final[1]
    assert final[2] == 0.5 > heats[0][2]
    # one percent is not beyond doubt
    assert outcome.status == "default stands"


def test_a_gain_within_doubt_leaves_the_default_and_says_so_with_numbers() -> None:
    speeds = {DEFAULT: 1e-4, A: 0.995e-4}
    outcome = search_class(row_of(A), 0.5, FakeTrack(lambda case, config: speeds[config]).race)
    assert (outcome.status, outcome.config) == ("default stands", DEFAULT)
    assert "num_warps=8: +0.5%" in outcome.why
    assert outcome.evidence["runner_up"]["config"] == dict(A)
    assert outcome.evidence["gain"] == pytest.approx(0.0, abs=1e-9)


def test_a_winner_must_not_lose_on_other_cases_of_its_class() -> None:
    def clock(case: ToyCase, config: Config) -> float:
        return 1e-4 if config == DEFAULT else 0.8e-4 if case == LARGE else 1.2e-4

    lost = search_class(row_of(A, cases=(LARGE, SMALL)), 0.5, FakeTrack(clock).race)
    assert lost.status == "default stands"
    assert f"loses on {SMALL.id}" in lost.why
    held = search_class(row_of(A, cases=(LARGE, SMALL)), 0.5, FakeTrack(lambda case, c: 1e-4 if not c else 0.9e-4).race)
    assert held.status == "tuned"
    assert [check["case_id"] for check in held.evidence["also_on"]] == [SMALL.id]


def test_what_fails_the_gate_or_dies_is_named_and_cannot_win() -> None:
    def clock(case: ToyCase, config: Config) -> Any:
        if config == A:
            return timed(case, 1e-9, status="wrong", reason="max_rel 3")
        if config == B:
            return "the worker process died (signal 11) during gate"
        return timed(case, 1e-9, flags=["impossible"]) if config == C else 1e-4

    outcome = search_class(row_of(A, B, C), 0.5, FakeTrack(clock).race)
    assert outcome.status == "default stands"
    reasons = dict(outcome.wrong)
    assert reasons[A] == "wrong: max_rel 3"
    assert "signal 11" in reasons[B]
    assert reasons[C] == "impossible"
    assert any("num_warps=16: the worker process died" in line for line in outcome.lines())


def test_a_default_without_a_time_fails_the_class() -> None:
    outcome = search_class(row_of(A), 0.5, FakeTrack(lambda case, c: 1e-4 if c else "the worker process died").race)
    assert outcome.status == "failed"
    assert "the default: the worker process died" in outcome.why


def test_without_a_default_nobody_races() -> None:
    row = judge(toy_class(A), 90, {DEFAULT: Compiled(error="can't be planned"), A: compiled("a")})
    assert row.survivors == ()
    assert search_class(row, 1.0, never).status == "failed"


def test_without_rivals_nothing_is_timed() -> None:
    outcome = search_class(row_of(), 0.5, never)
    assert outcome.status == "default stands"
    assert not outcome.evidence


def pruning(monkeypatch: pytest.MonkeyPatch, *rows: Pruned) -> None:
    monkeypatch.setattr("bench.operate.tune.search.prune", lambda *_: list(rows))


def test_every_class_is_on_disk_before_the_next_and_the_budget_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "toy").mkdir()
    rows = [row_of(A), row_of(A), row_of(A)]
    names = ("one", "two", "three")
    rows = [
        dataclasses.replace(r, shape_class=dataclasses.replace(r.shape_class, name=n))
        for r, n in zip(rows, names, strict=True)
    ]
    pruning(monkeypatch, *rows)
    seen: list[list[str]] = []
    now = [0.0]

    def clock(case: ToyCase, config: Config) -> float:
        now[0] += 3.0
        path = tmp_path / "toy" / tuned.FILE
        seen.append([e["shape_class"] for e in json.loads(path.read_text())["entries"]] if path.exists() else [])
        return 1e-4 if config == DEFAULT else 0.8e-4

    request = Request(budget_s=13.0, root=tmp_path, catalogue="tests.support.planted_tuning")
    display: Display = Silent()
    report = search(request, [], H100, ENVIRONMENT, FakeTrack(clock).race, display, clock=lambda: now[0])
    assert [o.status for o in report.outcomes] == ["tuned", "tuned", "not reached"]
    assert report.outcomes[2].why == "the budget was used up"
    assert seen[0] == []
    assert seen[-1] == ["one"]
    assert report.files == (tmp_path / "toy" / tuned.FILE,)
    assert "written" in report.lines()[-1]
    assert json.loads(json.dumps(report.as_dict()))["outcomes"][0]["config"] == dict(A)
    found = tuned.entries("toy", tmp_path)[H100.name, "t", "one"]
    evidence = found["evidence"]
    assert found["config"] == dict(A)
    assert (evidence["driver"], evidence["torch"], evidence["triton"]) == ("580.0", "2.11.0", "3.6.0")
    assert evidence["git"] == "0123456789ab+"


def test_only_classes_without_an_entry_for_this_part_are_tried_where_that_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        "bench.operate.tune.search.prune", lambda classes, *_: asked.append([c.name for c in classes]) or []
    )
    (tmp_path / "toy").mkdir()
    tuned.write("toy", {(H100.name, "host", "small"): entry({}, impl="host", shape_class="small")}, tmp_path)
    chosen = [(planted_tuning.TOY, planted_tuning.HOST)]
    for only_new, part in ((False, H100), (True, H100), (True, dataclasses.replace(H100, name="NVIDIA H200"))):
        request = Request(only_new=only_new, root=tmp_path)
        search(request, chosen, part, ENVIRONMENT, never, Silent())
    assert asked == [["large", "small"], ["large"], ["large", "small"]], "most bytes first"


def test_an_interruption_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    pruning(monkeypatch, row_of(A), row_of(B), row_of(C))

    def clock(case: ToyCase, config: Config) -> float:
        if config == B:
            raise KeyboardInterrupt
        return 1e-4 if config == DEFAULT else 0.8e-4

    report = search(Request(root=tmp_path), [], H100, ENVIRONMENT, FakeTrack(clock).race, Silent())
    assert report.interrupted
    assert [o.status for o in report.outcomes] == ["tuned", "not reached", "not reached"]
    assert len(tuned.entries("toy", tmp_path)) == 1


def test_a_dirty_or_absent_checkout_is_told(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    outcome = search_class(row_of(A), 0.5, FakeTrack(lambda case, c: 0.8e-4 if c else 1e-4).race)
    write(outcome, H100, {**ENVIRONMENT, "git": {"sha": None, "dirty": None}}, tmp_path)
    assert tuned.entries("toy", tmp_path)[H100.name, "t", "all"]["evidence"]["git"] == "feedbeef0000"


def test_configurations_race_in_a_worker_and_a_crash_costs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (small, _) = shape_classes([(planted_tuning.TOY, planted_tuning.HOST)], "smoke", H100)
    track = Track("tests.support.planted_tuning", 30.0, device="cpu")
    try:
        times = track.race(small, small.cases[0], small.configs, 0.05)
    finally:
        track.close()
    one, many, wrong, dies = small.configs[1:]
    quick, slow = times[one], times[many]
    assert isinstance(quick, Record)
    assert isinstance(slow, Record)
    assert quick.seconds
    assert slow.seconds
    assert slow.seconds > quick.seconds
    assert isinstance(times[DEFAULT], Record)
    assert times[wrong].status == "wrong"  # type: ignore[union-attr]
    assert times[dies] == "the worker process died (exit code 7) during gate"


def test_without_a_gpu_one_line_says_what_can_be_done() -> None:
    with pytest.raises(BadRequest, match="--dry-run"):
        tune(Request(device="cpu", catalogue="tests.support.planted_tuning"), Silent())
    if not torch.cuda.is_available():
        with pytest.raises(BadRequest, match=r"needs an NVIDIA GPU: .*--dry-run") as caught:
            tune(Request(catalogue="tests.support.planted_tuning"), Silent())
        assert "\n" not in str(caught.value)
    with pytest.raises(BadRequest, match="sm_75 is unknown"):
        tune(Request(dry_run=True, sms=(75,), catalogue="tests.support.planted_tuning"), Silent())
