"""Claims that measured whole steps judge, before sums over parts: every value by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bench.judge.claims import Comparison, judge
from bench.records import Record
from kernels.decode_step.op import OP
from kernels.op import Stage, Work
from tests.support.claim_records import gemm, layer, read, run
from tests.support.synthetic_run import case_record, samples

PEAK = 989.5e12


def step(batch: int, seconds: float, *, model: str = "llama-3.1-70b", layers: int = 8, **more: Any) -> Record:
    fields = {"model": model, "layers": layers, "B": batch, "T": 2048, "page": 16, "weights": more.pop("weights", "")}
    fields["kv"] = more.pop("kv", "")
    impl = more.pop("impl", "triton")
    found = case_record("decode_step", impl, fields, **more)
    return dataclasses.replace(found, samples_s=samples(seconds), run_id="r1")


def measured(claim: str, *records: Record) -> list[Comparison]:
    found = judge(claim, [run(read(), gemm(), *records)]).measured
    assert found
    return list(found)


def whole(record: Record) -> float:
    """Bytes of all 80 layers over those of the step that was measured."""
    return case_record("decode_step", "x", {**record.case, "layers": 0}).bytes / record.bytes


def test_a_token_and_its_price_come_from_the_step_and_not_from_the_layers() -> None:
    """Eight layers of 80 in 6 ms: all of them take as much longer as they have more bytes."""
    one, many = step(1, 6e-3, telemetry={"power_w": 500.0}), step(64, 8e-3)
    token = next(c for c in measured("T1", layer(1), one) if c.setting["capacity"] == "set aside")
    assert token.value == pytest.approx(6e-3 * whole(one))
    assert [each.op for each in token.records] == ["decode_step"]
    assert "8 layers" in token.how
    prices = {c.published.what: c.value for c in measured("M1", layer(1), one, many)}
    assert prices["$ per million output tokens at batch 1"] == pytest.approx(2.5 / 3600 * 6e-3 * whole(one) * 1e6)
    assert prices["$ per million output tokens at batch 64"] == pytest.approx(
        2.5 / 3600 * 8e-3 * whole(many) / 64 * 1e6
    )
    (joules,) = measured("M5", layer(1), one)
    assert joules.value == pytest.approx(500 * 6e-3 * whole(one))
    assert measured("T1", layer(1))[0].records[0].op == "ffn_gemv"


def test_batches_are_those_of_one_step_of_one_model() -> None:
    records = [step(1, 6e-3), step(16, 6.3e-3), step(64, 8e-3), step(64, 1e-3, model="llama-3.1-8b")]
    added = {c.setting["batch"]: c.value for c in measured("T3", *records)}
    assert added == pytest.approx({"1": 0.05 / 15, "16": (8 / 6.3 - 1) / 48})
    rate, time = measured("T8", *records)
    assert (rate.value, time.value) == pytest.approx((64 * 6 / 8, 8 / 6))
    assert rate.setting["model"] == "llama-3.1-70b"


def test_fewer_bits_are_set_against_the_same_step_in_16() -> None:
    (half,) = measured("T4", step(1, 6e-3), step(1, 3.3e-3, weights="int8"), step(4, 1e-3, weights="int8"))
    assert half.value == pytest.approx(0.55)
    assert half.setting["batch"] == "1"


def with_attention(seconds: float, batch: int, *alone: float, **more: Any) -> Record:
    """A step whose attention reads 8 MiB for each sequence, and took so long alone."""
    parts: list[dict[str, Any]] = [{"name": "attention", "calls": 8, "alone_s": list(alone)}] if alone else []
    stage = Stage(name="3.attention split", work=Work(bytes_read=batch * (8 << 20)))
    return dataclasses.replace(step(batch, seconds, **more), parts=parts, stages=[dataclasses.asdict(stage)])


def test_a_cache_in_fp8_is_set_against_the_same_step_in_16_bits() -> None:
    """By the attention of both, measured alone: 3 ms and 1.8 ms. Steps that read little or say nothing don't count."""
    sixteen, eight = with_attention(6e-3, 16, 3e-3, 2.9e-3, 9e-3), with_attention(5e-3, 16, 1.8e-3, kv="fp8")
    few = [with_attention(6e-3, 1, 3e-3), with_attention(5e-3, 1, 1e-3, kv="fp8")]
    silent = [with_attention(6e-3, 64), with_attention(5e-3, 64, kv="fp8")]
    (found,) = measured("T6", sixteen, eight, *few, *silent)
    assert found.value == pytest.approx(0.6)
    assert found.setting == {"batch": "16", "context": "2048", "model": "llama-3.1-70b"}


def test_verifying_drafts_takes_the_products_of_a_larger_batch_and_the_cache_of_its_own() -> None:
    """Four tokens of four sequences: 8 ms less 2 ms of attention, and the 0.5 ms of four sequences."""
    records = [with_attention(6e-3, 4, 0.5e-3), with_attention(8e-3, 16, 2e-3), with_attention(9e-3, 64)]
    (found,) = measured("T10", *records)
    assert found.value == pytest.approx(6.5 / 6)
    assert (found.setting["timed"], found.setting["batch"], found.setting["draft"]) == ("whole step", "4", "4")


def test_drafts_pay_by_what_measured_steps_take_to_verify_them() -> None:
    """Verifying five tokens takes 1.25 steps, drafting four a fifth of one; 0.6 and 0.8 of the drafts are right."""
    slow, fast = measured("T13", with_attention(4e-3, 1, 1e-3), with_attention(6e-3, 5, 2e-3))
    assert slow.value == pytest.approx((1 + 0.6 + 0.36 + 0.216 + 0.1296) / 1.45)
    assert fast.value == pytest.approx((1 + 0.8 + 0.64 + 0.512 + 0.4096) / 1.45)
    assert (slow.setting["accepted"], slow.setting["batch"]) == ("0.6", "1")


def test_compute_in_use_and_bytes_over_bandwidth_by_hand() -> None:
    record = step(16, 7e-3)
    (share,) = measured("I9", layer(1), record)
    assert share.value == pytest.approx(record.flops / (7e-3 * PEAK), rel=1e-3)
    full = step(1, 6e-3, model="llama-3.1-8b", layers=0)
    (over,) = measured("M7", full, step(1, 6e-3))
    assert over.value == pytest.approx(6e-3 * 3.35e12 / (2 * 8.03e9), rel=2e-3)
    assert over.setting == {"model": "llama-3.1-8b", "batch": "1", "context": "2048"}


def test_software_alone_is_judged_by_the_whole_step_too() -> None:
    found = {c.setting["op"]: c.value for c in measured("M6", step(1, 6e-3), step(1, 15e-3, impl="torch"))}
    assert found == pytest.approx({"decode_step": 2.5})


JUDGED_BY_SWEEPS = ("T1", "T3", "T4", "T6", "T8", "T10", "T13", "I9", "M1", "M5", "M6", "M7")


@pytest.mark.parametrize("claim", JUDGED_BY_SWEEPS)
def test_the_sweeps_of_steps_judge_each_claim_about_steps(claim: str) -> None:
    """A run of the suite `sweeps` that holds nothing but ceilings and steps, each of ours and of torch."""
    records = []
    for case in OP.sweeps():
        parts = [{"name": "attention", "calls": 1, "alone_s": [1e-3]}]
        stage = dataclasses.asdict(Stage(name="0.attention split", work=Work(bytes_read=1 << 30)))
        for impl, seconds in (("triton", OP.work(case).bytes / 2.5e12), ("torch", OP.work(case).bytes / 1e12)):
            made = case_record("decode_step", impl, case.as_dict(), telemetry={"power_w": 500.0})
            more: dict[str, Any] = {"parts": parts, "stages": [stage], "run_id": "r1"}
            records.append(dataclasses.replace(made, samples_s=samples(seconds), **more))
    assert {record.op for each in measured(claim, *records) for record in each.records} >= {"decode_step"}


def test_sweeps_fit_twice_into_80_gb() -> None:
    """Weights and cache of each, as they are allocated."""
    for case in OP.sweeps():
        held = sum(tensor.nbytes for tensor in OP.inputs(case, "meta", 0).values())
        assert 2 * held < 80e9, (case.id, held)
