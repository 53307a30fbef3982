"""Tuning: what is compiled, dropped, raced and written, with fakes for a GPU's clock; and what plans read of it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import BadRequest
from bench.inspection.codegen.judge import KernelReport, Stream
from bench.inspection.targets import compile_targets
from bench.measure.case import Measurement, Settings
from bench.measure.gate import check
from bench.operate.tune.race import DEFAULT, HEAT, Display, Request, campaign, in_turns, settle, tune, write
from bench.operate.tune.sift import Compiled, ShapeClass, Sifted, judge, shape_classes, tunable
from bench.operate.tune.track import Track
from bench.records import Record
from kernels.common import tuned
from kernels.op import Config, Impl, Op, Target, discover, implementations
from tests.support import ROOT, planted_tuning
from tests.support.planted import ToyCase
from tests.support.synthetic_run import record, samples

H100 = compile_targets()[90]
LARGE, SMALL = ToyCase(K=16384), ToyCase(K=4096)
A, B, C = (("num_warps", 8),), (("num_warps", 16),), (("num_warps", 2),)
ENVIRONMENT = {
    "git": {"sha": "0123456789ab", "dirty": True},
    "packages": {"torch": "2.11.0", "triton": "3.6.0"},
    "gpu": {"driver": "580.0"},
    "source_digest": "feedbeef0000",
}


class Quiet:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def working(self, op: str, case_id: str) -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


def entry(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "part": H100.name, "impl": "triton", "shape_class": "read", "config": config,
        "evidence": dict.fromkeys(tuned.EVIDENCE, "x"), **changes,
    }  # fmt: skip


# ---- the file that plans read


def test_an_entry_is_found_by_part_implementation_and_class_alone(tmp_path: Path) -> None:
    (tmp_path / "stream").mkdir()
    tuned.write("stream", {(H100.name, "triton", "read"): entry({"num_warps": 8})}, tmp_path)
    tuned.write("stream", {(H100.name, "triton", "copy"): entry({}, shape_class="copy")}, tmp_path)
    found = tuned.entries("stream", tmp_path)
    assert {key[2]: e["config"] for key, e in found.items()} == {"copy": {}, "read": {"num_warps": 8}}
    assert tuned.entries("absent", tmp_path) == {}
    tuned.write("stream", {(H100.name, "triton", "read"): entry({"num_warps": 2})}, tmp_path)
    content = json.loads((tmp_path / "stream" / tuned.FILE).read_text())
    assert [(e["shape_class"], e["config"]) for e in content["entries"]] == [("copy", {}), ("read", {"num_warps": 2})]


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ([{**entry({}), "part": "x"}, {**entry({}), "part": "x"}], "second for x, triton, read"),
        ([entry({"num_warps": "8"})], "num_warps is no integer"),
        ([entry({"num_warps": True})], "num_warps is no integer"),
        ([{k: v for k, v in entry({}).items() if k != "shape_class"}], "lacks shape_class"),
        ([entry({}, evidence={"gain": 1})], "lacks evidence.case_id"),
        ("nonsense", "attribute"),
    ],
)
def test_a_file_that_does_not_hold_what_it_must_is_refused_by_name(
    tmp_path: Path, entries: Any, complaint: str
) -> None:
    (tmp_path / "op").mkdir()
    (tmp_path / "op" / tuned.FILE).write_text(json.dumps({"schema": 1, "entries": entries}))
    with pytest.raises(ValueError, match=complaint) as caught:
        tuned.entries("op", tmp_path)
    assert "op/tuned.json" in str(caught.value)


def test_what_the_tuner_asks_for_goes_before_what_was_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    key = (H100.name, "triton", "read")
    monkeypatch.setattr(tuned, "entries", lambda op: {key: entry({"num_warps": 8})} if op == "stream" else {})

    def overrides(target: Target, shape_class: str = "read") -> dict[str, int]:
        return tuned.overrides("stream", "triton", shape_class, target)

    assert overrides(H100) == {"num_warps": 8}
    assert overrides(dataclasses.replace(H100, config=A)) == dict(A)
    assert overrides(dataclasses.replace(H100, config=B)) == dict(B)
    assert overrides(dataclasses.replace(H100, config=())) == {}
    assert overrides(dataclasses.replace(H100, name="NVIDIA H200")) == {}
    assert overrides(H100, "copy") == {}
    assert tuned.lookup("stream", "triton", "NVIDIA H200", "read") is None


def test_every_committed_entry_is_of_an_implementation_that_takes_it() -> None:
    for op in discover().values():
        impls = {impl.name: impl for impl in implementations(op.name)[0]}
        cases = [case for suite in ("quick", "full") for case in op.cases(suite)]
        for (_, name, shape_class), found in tuned.entries(op.name).items():
            tuning = impls[name].tuning
            assert tuning
            case = next(c for c in cases if tuning.shape_class(c) == shape_class)
            build_with(op, impls[name], case, tuple(sorted(found["config"].items())))


def test_every_operation_gets_its_turn() -> None:
    """Where the time ends early, no operation has all of it."""
    classes = (("stream", "a"), ("stream", "b"), ("stream", "c"), ("ffn", "d"), ("moe", "e"), ("moe", "f"))
    rows = [
        Sifted(
            shape_class=ShapeClass(op=op, impl="triton", name=name, cases=(), configs=()),
            sm=90,
            survivors=(),
            fallen=(),
        )
        for op, name in classes
    ]
    assert [row.shape_class.name for row in in_turns(rows)] == ["a", "d", "e", "b", "f", "c"]


# ---- the seam in the implementations


def build_with(op: Op, impl: Impl, case: Any, config: Config) -> Any:
    assert impl.build
    return impl.build(case, op.inputs(case, "meta", 0), dataclasses.replace(H100, config=config))


TUNABLE = [(op, impl) for op in discover().values() for impl in implementations(op.name)[0] if impl.tuning]


@pytest.mark.parametrize(("op", "impl"), TUNABLE, ids=lambda x: x.name)
def test_candidates_reach_the_launch_and_the_declared_traffic_follows(op: Op, impl: Impl) -> None:
    for shape_class in shape_classes([(op, impl)], "quick", H100):
        case = shape_class.cases[0]
        assert len(shape_class.configs) > 1
        # what runs: kernels, grids, constants, warps, stages
        shown = [
            [launch.config for launch in build_with(op, impl, case, config).launches] for config in shape_class.configs
        ]
        assert any(other != shown[0] for other in shown[1:])
        for config in shape_class.configs:
            (first, *_) = impl.configured(config).stages(case, H100)
            assert first.ctas_per_sm >= 1


@pytest.mark.parametrize(
    ("op_name", "impl_name", "config"),
    [
        ("stream", "triton", {"num_warps": 8}),
        ("stream", "triton-async", {"ctas_per_sm": 2, "num_stages": 3}),
        ("paged_read", "triton", {"num_warps": 4}),
        ("ffn_gemv", "triton", {"ctas_per_sm": 1, "in_flight": 1 << 14}),
        ("attention_decode", "triton", {"block_t": 128, "buffers": 2, "ctas_per_sm": 1}),
        ("mla_decode", "triton", {"block_t": 64, "buffers": 2}),
        ("moe_ffn", "triton", {"BLOCK_B": 32, "ctas_per_sm": 1}),
    ],
)
def test_an_override_keeps_the_result_and_a_misspelt_one_is_refused(
    op_name: str, impl_name: str, config: dict[str, int], target: Target
) -> None:
    op = discover()[op_name]
    impl = next(i for i in implementations(op_name)[0] if i.name == impl_name)
    cases = [case for case in op.cases("test") if impl.supports(case, target) is None]
    case = min((c for c in cases if op_name != "stream" or c.kind == "read"), key=lambda case: op.work(case).bytes)
    errors = check(op, impl.configured(tuple(config.items())), case, target)
    assert errors.passed, f"{case.id}: {errors.reason}"
    assert impl.build
    inputs = op.inputs(case, target.device, 0)
    with pytest.raises((TypeError, KeyError)):
        impl.build(case, inputs, dataclasses.replace(target, config=(("no_such_field", 1),))).launches[0]


def test_a_record_tells_how_it_was_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    op = discover()["paged_read"]
    impl = implementations("paged_read")[0][0]
    case = op.cases("quick")[0]

    def told() -> dict[str, Any]:
        assert impl.build
        built = impl.build(case, op.inputs(case, "meta", 0), H100)
        return Measurement(op, case, H100, Settings(), None).config(impl, [built])  # type: ignore[arg-type]

    monkeypatch.setattr(tuned, "entries", lambda op: {})
    before = told()
    assert before["tuned"] is None
    assert before["launches"][0]["kernel"] == "paged_read_kernel"
    assert json.loads(json.dumps(before)) == before
    key = (H100.name, impl.name, impl.tuning.shape_class(case))  # type: ignore[union-attr]
    monkeypatch.setattr(tuned, "entries", lambda op: {key: entry({"num_warps": 16})})
    after = told()
    assert after["tuned"] == {"num_warps": 16}
    assert after["launches"][0]["num_warps"] == 16 != before["launches"][0]["num_warps"]


def test_an_implementation_without_triton_tells_nothing() -> None:
    measurement = Measurement(planted_tuning.TOY, SMALL, H100, Settings(), None)  # type: ignore[arg-type]
    assert measurement.config(planted_tuning.HOST, [lambda: None]) == {}


# ---- before the clock


def compiled(name: str, in_flight: int = 64 << 10, **changes: Any) -> Compiled:
    report = KernelReport(
        op="toy", impl="t", kernel="k", case_id="c", sm=90, part="", threads=128, ctas_per_sm=2,
        streams=(Stream(name="w", how="cp.async", width=16),), bytes_in_flight=in_flight, bytes_needed=32 << 10,
    )  # fmt: skip
    return Compiled(reports=(dataclasses.replace(report, **changes),), binaries=(name,))


def toy_class(*configs: Config, cases: Sequence[ToyCase] = (LARGE,)) -> ShapeClass:
    return ShapeClass(op="toy", impl="t", name="all", cases=tuple(cases), configs=(DEFAULT, *configs))


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


def test_without_a_default_nobody_races() -> None:
    row = judge(toy_class(A), 90, {DEFAULT: Compiled(error="can't be planned"), A: compiled("a")})
    assert row.survivors == ()
    assert settle(row, 1.0, never).status == "failed"


def test_classes_hold_their_cases_most_bytes_first_and_the_default_leads() -> None:
    (small, large) = shape_classes([(planted_tuning.TOY, planted_tuning.HOST)], "quick", H100)
    assert [c.K for c in small.cases] == [8192, 4096]
    assert [c.K for c in large.cases] == [16384]
    assert small.configs[0] == DEFAULT
    assert (("repeats", 1),) in small.configs


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


def elsewhere(expression: str) -> Any:
    """What `expression` gives as JSON in a process that compiles Triton kernels instead of interpreting them."""
    code = f"import json, test_tune as t\nif __name__ == '__main__':\n    print(json.dumps({expression}))"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def dry() -> dict[str, Any]:
    return tune(
        Request(dry_run=True, sms=(90,), impls=("compiled",), catalogue="tests.support.planted_tuning", workers=2),
        Quiet(),
    ).as_dict()


@pytest.mark.slow
def test_a_dry_run_compiles_the_candidates_and_says_why_some_fall() -> None:
    (row,) = elsewhere("t.dry()")["sifted"]
    names = {json.dumps(v): k for k, v in planted_tuning.CANDIDATES.items()}
    assert [names.get(json.dumps(c), "default") for c in row["survivors"]] == ["default", "good"]
    reasons = {names[json.dumps(fallen["config"])]: fallen["reason"] for fallen in row["fallen"]}
    assert reasons["same"] == "the same as default"
    assert "few bytes in flight" in reasons["shallow"]
    assert "does not compile" in reasons["odd block"]
    assert "can't be planned" in reasons["no such field"]
    assert "block_m" in reasons["no such field"]
    assert "spills" in reasons["spilling"]


# ---- the races


def never(*_: Any) -> Any:
    raise AssertionError("nothing should be timed")


def timed(case: ToyCase, seconds: float, seed: int = 0, **changes: Any) -> Record:
    found = record("toy", "t", case.id, read=10**6, seconds=seconds, **changes)
    return dataclasses.replace(found, samples_s=samples(seconds, seed) if changes.get("status", "ok") == "ok" else [])


class FakeTrack:
    """Gives each configuration the seconds of `clock(case, config)`, or the record or reason that it is."""

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


def row_of(*configs: Config, cases: Sequence[ToyCase] = (LARGE,)) -> Sifted:
    shape_class = toy_class(*configs, cases=cases)
    return Sifted(shape_class=shape_class, sm=90, survivors=shape_class.configs, fallen=())


def test_the_fastest_wins_with_its_evidence() -> None:
    speeds = {DEFAULT: 1e-4, A: 0.8e-4, B: 0.9e-4, C: 1.5e-4}
    outcome = settle(row_of(A, B, C), 0.5, FakeTrack(lambda case, config: speeds[config]).race)
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
    outcome = settle(row_of(*many), 0.5, track.race)
    *heats, final = track.heats
    assert len(heats) == 3
    assert all(configs[0] == DEFAULT and len(configs) <= HEAT + 1 for _, configs, _ in heats)
    assert {c for _, configs, _ in heats for c in configs[1:]} == set(many)
    assert final[1][0] == DEFAULT
    assert (("num_warps", 9),) in final[1]
    assert final[2] == 0.5 > heats[0][2]
    # one percent is within doubt
    assert outcome.status == "default stands"


def test_a_gain_within_doubt_leaves_the_default_and_says_so_with_numbers() -> None:
    speeds = {DEFAULT: 1e-4, A: 0.995e-4}
    outcome = settle(row_of(A), 0.5, FakeTrack(lambda case, config: speeds[config]).race)
    assert (outcome.status, outcome.config) == ("default stands", DEFAULT)
    assert "num_warps=8: +0.5%" in outcome.why
    assert outcome.evidence["runner_up"]["config"] == dict(A)
    assert outcome.evidence["gain"] == pytest.approx(0.0, abs=1e-9)


def test_a_winner_must_not_lose_on_other_cases_of_its_class() -> None:
    def clock(case: ToyCase, config: Config) -> float:
        return 1e-4 if config == DEFAULT else 0.8e-4 if case == LARGE else 1.2e-4

    lost = settle(row_of(A, cases=(LARGE, SMALL)), 0.5, FakeTrack(clock).race)
    assert lost.status == "default stands"
    assert f"loses on {SMALL.id}" in lost.why
    held = settle(row_of(A, cases=(LARGE, SMALL)), 0.5, FakeTrack(lambda case, c: 1e-4 if not c else 0.9e-4).race)
    assert held.status == "tuned"
    assert [check["case_id"] for check in held.evidence["also_on"]] == [SMALL.id]


def test_what_fails_the_gate_or_dies_is_named_and_cannot_win() -> None:
    def clock(case: ToyCase, config: Config) -> Any:
        if config == A:
            return timed(case, 1e-9, status="wrong", reason="max_rel 3")
        if config == B:
            return "the worker process died (signal 11) during gate"
        return timed(case, 1e-9, flags=["impossible"]) if config == C else 1e-4

    outcome = settle(row_of(A, B, C), 0.5, FakeTrack(clock).race)
    assert outcome.status == "default stands"
    reasons = dict(outcome.wrong)
    assert reasons[A] == "wrong: max_rel 3"
    assert "signal 11" in reasons[B]
    assert reasons[C] == "impossible"
    assert any("num_warps=16: the worker process died" in line for line in outcome.lines())


def test_a_default_without_a_time_fails_the_class() -> None:
    outcome = settle(row_of(A), 0.5, FakeTrack(lambda case, c: 1e-4 if c else "the worker process died").race)
    assert outcome.status == "failed"
    assert "the default: the worker process died" in outcome.why


def test_without_rivals_nothing_is_timed() -> None:
    outcome = settle(row_of(), 0.5, never)
    assert outcome.status == "default stands"
    assert not outcome.evidence


def sifting(monkeypatch: pytest.MonkeyPatch, *rows: Sifted) -> None:
    monkeypatch.setattr("bench.operate.tune.race.sift", lambda *_: list(rows))


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
    sifting(monkeypatch, *rows)
    seen: list[list[str]] = []
    now = [0.0]

    def clock(case: ToyCase, config: Config) -> float:
        now[0] += 3.0
        path = tmp_path / "toy" / tuned.FILE
        seen.append([e["shape_class"] for e in json.loads(path.read_text())["entries"]] if path.exists() else [])
        return 1e-4 if config == DEFAULT else 0.8e-4

    request = Request(budget_s=13.0, root=tmp_path, catalogue="tests.support.planted_tuning")
    display: Display = Quiet()
    report = campaign(request, [], H100, ENVIRONMENT, FakeTrack(clock).race, display, clock=lambda: now[0])
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
        "bench.operate.tune.race.sift", lambda classes, *_: asked.append([c.name for c in classes]) or []
    )
    (tmp_path / "toy").mkdir()
    tuned.write("toy", {(H100.name, "host", "small"): entry({}, impl="host", shape_class="small")}, tmp_path)
    chosen = [(planted_tuning.TOY, planted_tuning.HOST)]
    for only_new, part in ((False, H100), (True, H100), (True, dataclasses.replace(H100, name="NVIDIA H200"))):
        request = Request(only_new=only_new, root=tmp_path)
        campaign(request, chosen, part, ENVIRONMENT, never, Quiet())
    assert asked == [["small", "large"], ["large"], ["small", "large"]]


def test_an_interruption_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    sifting(monkeypatch, row_of(A), row_of(B), row_of(C))

    def clock(case: ToyCase, config: Config) -> float:
        if config == B:
            raise KeyboardInterrupt
        return 1e-4 if config == DEFAULT else 0.8e-4

    report = campaign(Request(root=tmp_path), [], H100, ENVIRONMENT, FakeTrack(clock).race, Quiet())
    assert report.interrupted
    assert [o.status for o in report.outcomes] == ["tuned", "not reached", "not reached"]
    assert len(tuned.entries("toy", tmp_path)) == 1


def test_a_dirty_or_absent_checkout_is_told(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    outcome = settle(row_of(A), 0.5, FakeTrack(lambda case, c: 0.8e-4 if c else 1e-4).race)
    write(outcome, H100, {**ENVIRONMENT, "git": {"sha": None, "dirty": None}}, tmp_path)
    assert tuned.entries("toy", tmp_path)[H100.name, "t", "all"]["evidence"]["git"] == "feedbeef0000"


def test_configurations_race_in_a_worker_and_a_crash_costs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that befell the worker before the race, while candidates were compiled, costs none."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (small, _) = shape_classes([(planted_tuning.TOY, planted_tuning.HOST)], "smoke", H100)
    track = Track("tests.support.planted_tuning", 30.0, device="cpu")
    try:
        (process,) = multiprocessing.active_children()
        process.kill()
        process.join()
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
        tune(Request(device="cpu", catalogue="tests.support.planted_tuning"), Quiet())
    if not torch.cuda.is_available():
        with pytest.raises(BadRequest, match=r"needs an NVIDIA GPU: .*--dry-run") as caught:
            tune(Request(catalogue="tests.support.planted_tuning"), Quiet())
        assert "\n" not in str(caught.value)
    with pytest.raises(BadRequest, match="sm_75 is unknown"):
        tune(Request(dry_run=True, sms=(75,), catalogue="tests.support.planted_tuning"), Quiet())
