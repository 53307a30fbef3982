"""`predict --from`: which record gives which operation of a step its share, and that measured times come out again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BadRequest
from bench.predict import command
from bench.predict.calibration import Machine
from bench.predict.step_model import step
from bench.predict.sweep import sweep
from bench.records import Record
from bench.run import load_run
from kernels.models import model
from tests.support.synthetic_run import GB, case_record, ceiling_records, write_run

LLAMA = model("llama-3.1-70b")
DOWN = {"B": 1, "N": 8192, "K": 28672}
DOWN_SECONDS = 0.2e-3
"""This is 2.35 TB/s; the roof is 3 TB/s."""


def gemv(seconds: float, impl: str = "triton_gemv", flags: tuple[str, ...] = (), **fields: Any) -> Record:
    return case_record("ffn_gemv", impl, DOWN | fields, seconds=seconds, flags=list(flags))


def shares(tmp_path: Path, records: list[Record], **asked: Any) -> dict[str, tuple[float, str, str]]:
    """Share, implementation and case by operation."""
    machine = Machine.of(load_run(write_run(tmp_path / "run", [*ceiling_records(), *records])))
    precisions = {"weights": asked.pop("weights", "bf16"), "kv": asked.pop("kv", "bf16")}
    given = {"batch": 1, "context": 4096} | precisions | asked
    predicted = step(given.pop("shape", LLAMA), device=machine.spec, **given)
    found = machine.reached(predicted.ops, kv=precisions.get("kv", "bf16"))
    return {r.name: (r.share, r.record.impl, r.record.case_id) for r in found}


def rows(tmp_path: Path, records: list[Record], **asked: Any) -> list[dict[str, Any]]:
    run = write_run(tmp_path / "run", [*ceiling_records(), *records])
    given = {"model": "llama-3.1-70b", "parts": [], "batches": [1], "context": 4096} | asked
    return command.rows(run=load_run(run), **given)


def test_a_measured_operation_takes_the_measured_time_and_the_others_the_measured_roof(tmp_path):
    attention = {"B": 1, "T": 4096, "H_q": 64, "H_kv": 8, "D": 128}
    (row,) = rows(tmp_path, [gemv(DOWN_SECONDS), case_record("attention_decode", "ours", attention, seconds=9e-6)])
    ops = {op["name"]: op for op in row["ops"]}
    assert ops["down"]["seconds"] == pytest.approx(80 * DOWN_SECONDS)
    assert ops["attention"]["seconds"] == pytest.approx(80 * 9e-6, rel=0.01)
    roof = (1 << 32) / (2e-6 + (1 << 32) / 3e12)
    assert ops["embedding"]["seconds"] == pytest.approx(2 * 8192 * 2 / roof)
    assert row["weight_seconds"] == pytest.approx(2 * 69_501_714_432 / roof)
    assert row["basis"].startswith("measured roofline of NVIDIA H100 SXM at measured fractions: qkv 0.78, ")
    assert row["seconds"] == pytest.approx(sum(op["seconds"] for op in row["ops"]))


def test_of_similar_cases_the_nearest_in_bytes_counts_and_then_the_fastest(tmp_path):
    small = gemv(5e-6, N=1024, K=8192)
    found = shares(tmp_path, [gemv(DOWN_SECONDS), gemv(DOWN_SECONDS / 1.1, impl="torch"), small])
    assert found["down"][1:] == ("torch", "B1-N8192-K28672-bf16")
    assert found["gate_up"][1] == "torch"
    assert shares(tmp_path / "8b", [gemv(1), small], shape=model("llama-3.1-8b"))["qkv"][2] == small.case_id


def test_the_intensity_counts_before_the_bytes(tmp_path):
    """Batch 16 is four octaves from batch 1, even if the matrices are the same."""
    records = [gemv(DOWN_SECONDS, N=1024, K=1024), gemv(DOWN_SECONDS, B=16)]
    assert shares(tmp_path / "1", records)["down"][2] == "B1-N1024-K1024-bf16"
    assert shares(tmp_path / "16", records, batch=20)["down"][2] == "B16-N8192-K28672-bf16"


@pytest.mark.parametrize("flag", ["impossible", "warm"])
def test_a_time_that_may_be_too_short_is_not_used(tmp_path, flag):
    found = shares(tmp_path, [gemv(DOWN_SECONDS / 2, flags=(flag,)), gemv(DOWN_SECONDS, impl="torch")])
    assert found["down"][1] == "torch"
    refused = dataclasses.replace(gemv(DOWN_SECONDS), status="refused")
    assert shares(tmp_path / "refused", [refused]) == {}


def test_no_operation_runs_faster_than_the_roof(tmp_path):
    assert shares(tmp_path, [gemv(DOWN_SECONDS / 2)])["down"][0] == 1


def test_precisions_are_kept_apart(tmp_path):
    records = [gemv(DOWN_SECONDS), gemv(DOWN_SECONDS, weights="int4", impl="four")]
    assert shares(tmp_path / "a", records, weights="int4")["down"][1] == "four"
    assert shares(tmp_path / "b", records, weights="fp8") == {}
    eight = gemv(DOWN_SECONDS, weights="fp8", impl="wide")
    narrow = gemv(DOWN_SECONDS, weights="fp8", activations="fp8", impl="narrow")
    assert shares(tmp_path / "c", [eight, narrow], weights="fp8")["down"][1] == "narrow"
    assert shares(tmp_path / "d", [eight, narrow], weights="w8a16")["down"][1] == "wide"
    attention = {"B": 1, "T": 4096, "H_q": 64, "H_kv": 8, "D": 128, "page": 16}
    caches = [case_record("attention_decode", kv, attention | {"kv": kv}, seconds=9e-6) for kv in ("bf16", "fp8")]
    assert shares(tmp_path / "e", caches, kv="fp8")["attention"][1] == "fp8"


def test_cases_that_are_not_plain_are_not_used(tmp_path):
    attention = {"B": 1, "T": 4096, "H_q": 64, "H_kv": 8, "D": 128, "page": 16}
    odd = [attention | more for more in ({"lengths": "ragged"}, {"window": 128}, {"q_len": 2})]
    records = [case_record("attention_decode", "ours", fields, seconds=1e-5) for fields in odd]
    append = {"B": 2, "T": 4096, "H_kv": 8, "D": 128, "page": 16, "idle": 1}
    assert shares(tmp_path / "a", [*records, case_record("kv_append", "ours", append, seconds=1e-5)]) == {}
    moe = {"B": 1, "E": 8, "k": 2, "H": 4096, "F": 14336, "routing": "zipf"}
    records = [case_record("moe_ffn", "ours", moe, seconds=1e-3)]
    assert shares(tmp_path / "b", records, shape=model("mixtral-8x7b")) == {}
    latent = {"B": 1, "H": 128, "T": 4096, "page": 64}
    for name, more in (("q_len", {"q_len": 2}), ("lengths", {"lengths": "ragged"})):
        records = [case_record("mla_decode", "ours", latent | more, seconds=1e-5)]
        assert shares(tmp_path / name, records, shape=model("deepseek-v3")) == {}
    records = [case_record("mla_decode", "ours", latent, seconds=1e-4)]
    assert list(shares(tmp_path / "c", records, shape=model("deepseek-v3"))) == ["attention"]


def test_both_matrices_of_the_experts_are_one_record(tmp_path):
    mixtral = model("mixtral-8x7b")
    fields = {"B": 1, "E": 8, "k": 2, "H": 4096, "F": 14336}
    found = rows(tmp_path, [case_record("moe_ffn", "ours", fields, seconds=0.3e-3)], model="mixtral-8x7b")
    ops = {op["name"]: op["seconds"] for op in found[0]["ops"]}
    assert ops["experts_gate_up"] + ops["experts_down"] == pytest.approx(mixtral.layers * 0.3e-3, rel=0.01)
    sizes = {each["name"]: each["bytes_over_those_predicted"] for each in found[0]["measured"]}
    assert sizes == {name: pytest.approx(1.0, rel=0.01) for name in ("experts_gate_up", "experts_down")}


def test_rows_say_what_was_measured_and_the_table_what_was_not(tmp_path):
    found = rows(tmp_path, [gemv(DOWN_SECONDS, flags=("noisy",))], batches=[1, 2], dollars_per_hour=2.0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(set(row) == set(command.ROW) for row in found)
    by_name = {each["name"]: each for each in found[0]["measured"]}
    assert by_name["gate_up"] == {
        "name": "gate_up",
        "op": "ffn_gemv",
        "impl": "triton_gemv",
        "case_id": "B1-N8192-K28672-bf16",
        "precision": "bf16",
        "efficiency": by_name["down"]["efficiency"],
        "flags": ["noisy"],
        "bytes_over_those_predicted": pytest.approx(0.5, rel=1e-3),
    }
    headers, lines = command.measured_table(found)
    assert all(len(line) == len(headers) for line in lines)
    assert len(lines) == 2 * len(found[0]["ops"])
    cells = {tuple(line[:2]): line[2:] for line in lines}
    assert cells["2", "gate_up"] == ["78%", "ffn_gemv B1-N8192-K28672-bf16", "bf16", "triton_gemv", "0.5x", "noisy"]
    assert cells["1", "kv_append"] == ["100%", "not measured", "", "", "", ""]


def test_measured_steps_say_nothing_about_prefill(tmp_path):
    (row,) = rows(tmp_path, [gemv(DOWN_SECONDS)], dollars_per_hour=2.0)
    assert row["dollars_per_million_tokens"] == pytest.approx(2.0 / 3600 * row["seconds"] * 1e6)
    assert row["output_to_input_ratio"] is row["dollars_per_million_input_tokens"] is None
    assert command.rows(model="llama-2-7b", parts=["h100-sxm"], batches=[1], context=9)[0]["measured"] is None


def test_a_part_outside_the_table_has_only_measured_numbers(tmp_path):
    run = write_run(tmp_path, [*ceiling_records(), gemv(DOWN_SECONDS)], device={"key": None, "name": "Some CPU"})
    row = command.rows(run=load_run(run), model="llama-3.1-70b", parts=[], batches=[1], context=4096)[0]
    assert (row["device"], row["max_batch"], row["missing"]) == ("Some CPU", None, ["memory_capacity", "power"])
    assert row["weight_bytes"] > 100 * GB


def test_a_price_by_name_is_that_of_the_runs_part(tmp_path):
    asked = {"model": "llama-3.1-8b", "config": None, "parts": ["h100-sxm"], "batches": [1], "contexts": [2048]}
    run = load_run(write_run(tmp_path / "known", ceiling_records(), device={"key": "h200", "name": "NVIDIA H200"}))
    (row,) = sweep(**asked, run=run, prices={"h200": 3.6})
    assert row["dollars_per_million_tokens"] == pytest.approx(3.6 / 3600 * row["seconds"] * 1e6)
    with pytest.raises(BadRequest, match="unknown part in --price 'h100-sxm'"):
        sweep(**asked, run=run, prices={"h100-sxm": 3.6})
    other = load_run(write_run(tmp_path / "other", ceiling_records(), device={"key": None, "name": "Some CPU"}))
    with pytest.raises(BadRequest, match="Some CPU is not in `list devices`; give its price without a name"):
        sweep(**asked, run=other, prices={"h200": 3.6})


def test_the_roof_is_the_slowest_of_memory_and_pipes_that_are_known(tmp_path):
    machine = Machine.of(load_run(write_run(tmp_path, ceiling_records())))
    bandwidth, peak = machine.spec.memory_bandwidth.value, machine.spec.peaks["mma_bf16"].value
    assert machine.roof_seconds(10**9, {"mma_bf16": 10**9}) == pytest.approx(10**9 / bandwidth)
    assert machine.roof_seconds(10**9, {"mma_bf16": 10**12}) == pytest.approx(10**12 / peak)
    assert machine.roof_seconds(10**9, {"mma_fp3": 10**15}) == pytest.approx(10**9 / bandwidth)


def test_a_run_without_a_roof_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="holds no read of `stream`"):
        Machine.of(load_run(write_run(tmp_path, [gemv(DOWN_SECONDS)])))


def test_a_small_operation_is_not_faster_than_a_launch(tmp_path: Path) -> None:
    """Its share of the roof comes from a much larger case, in which the launch takes no visible time."""
    run = [*ceiling_records(), gemv(0.16e-3)]
    machine = Machine.of(load_run(write_run(tmp_path / "run", run)))
    assert machine.launch_s == 2e-6
    predicted = step(model("mixtral-8x7b"), device=machine.spec, batch=1, context=128, weights="bf16", kv="bf16")
    found = {r.name: r.share for r in machine.reached(predicted.ops, kv="bf16")}
    router = next(op for op in predicted.ops if op.name == "router")
    roof = machine.roof_seconds(router.work.bytes, router.work.flops)
    assert roof / found["router"] == pytest.approx(router.calls * machine.launch_s)
    assert found["qkv"] > found["router"]
