"""Tuned configurations: the file that plans read, and how one reaches a launch, the declared traffic and a record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bench.measure.case import Measurement, Settings
from bench.measure.gate import check
from bench.operate.tune.prune import shape_classes
from kernels.common import tuned
from kernels.op import Config, Impl, Op, Target, discover, implementations
from tests.support import planted_tuning
from tests.support.tuning_cases import H100, SMALL, A, B, entry


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
    impl = next(impl for impl in implementations("paged_read")[0] if impl.name == "triton")
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
