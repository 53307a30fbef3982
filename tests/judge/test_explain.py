"""Explain: result files of every known format, what each says, and where its time goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.devices import DEVICES
from bench.errors import BadRequest
from bench.judge.explain import explain
from bench.judge.explain.attribution import explained
from bench.judge.explain.formats import READERS, Given, Result, llama_type, read, weights_in
from bench.predict.step_expected import expect_step
from bench.predict.step_model import step
from kernels.models import MODELS
from tests.support import DATA

RESULTS = DATA / "results"
LLAMA = MODELS["llama-3.1-70b"]

FILES = {
    "sglang_bench_serving.jsonl": ("sglang bench_serving", 0.014536, 7.81, 508.7, 534.5),
    "vllm_bench_serve.json": ("vllm bench serve", 0.0135125, 30.4, 999, 270.2),
    "sglang_bench_one_batch.jsonl": ("sglang bench_one_batch", 0.0188878, 4, 1024, 1024),
    "llama_bench.json": ("llama-bench", 1 / 118.877, 1, 0, 128),
    "aiperf.json": ("aiperf", 0.03473, 1.83, 256, 64),
    "trtllm_bench_by_hand.json": ("trtllm-bench", 0.01858, 1, 5000, 500),
    "vllm_bench_latency_by_hand.json": ("vllm bench latency", 0, 8, 32, 128),
}
"""Format, TPOT, batch, input and output tokens of the first decode run of each file."""


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_read(name: str):
    result = read(RESULTS / name, Given())[0]
    found = (result.tpot_s, result.batch, result.input_tokens, result.output_tokens)
    assert result.format == FILES[name][0]
    assert found == pytest.approx(FILES[name][1:], rel=5e-3)


def test_there_is_a_recorded_file_of_every_format():
    assert {format for format, *_ in FILES.values()} == set(READERS)
    assert set(FILES) == {path.name for path in RESULTS.iterdir()}


@pytest.mark.parametrize("name", FILES)
def test_the_parts_add_up_to_what_was_measured(name: str):
    for found in explain(RESULTS / name, model="llama-3.1-8b", part="h100-sxm"):
        total = sum(part.seconds for part in (*found.floor_parts, *found.rest))
        assert total == pytest.approx(max(found.measured_s, found.floor_s))
        assert all(part.helps for part in (*found.floor_parts, *found.rest))
        json.dumps(found.as_dict(), allow_nan=False)


def test_a_server_of_four_h200s():
    calm, loaded = explain(RESULTS / "sglang_bench_serving.jsonl", model="llama-3.1-70b", part="h200", devices=4)
    floor = step(LLAMA, device=DEVICES["h200"], batch=8, context=calm.prediction.context, devices=4).seconds
    assert calm.floor_s == pytest.approx(floor)
    usual = expect_step(calm.prediction, LLAMA, DEVICES["h200"])
    assert (calm.expected_s, calm.range_s) == (usual.seconds, (usual.low, usual.high))
    assert calm.share == pytest.approx(0.51, abs=0.01)
    names = {part.name for part in calm.rest}
    assert names >= {"all-reduce latency", "kernels below the roof", "prefill between steps"}
    assert loaded.rest[0].name == "not explained"
    prefill = {part.name: part.seconds for part in loaded.rest}["prefill between steps"]
    assert prefill > 10 * {part.name: part.seconds for part in calm.rest}["prefill between steps"]


def test_the_file_says_model_part_devices_and_precision():
    (found,) = explain(RESULTS / "trtllm_bench_by_hand.json")
    asked = found.prediction
    assert (asked.model, asked.device, asked.devices, asked.weights, asked.kv) == (
        "llama-3.1-70b",
        "h100-sxm",
        2,
        "fp8",
        "fp8",
    )


def test_llama_cpp_weights_are_counted_by_the_size_of_their_file():
    (found,) = explain(RESULTS / "llama_bench.json", part="rtx-4090")
    assert found.prediction.weights == "int4"
    weights = next(part for part in found.floor_parts if part.name == "weights")
    assert weights.seconds == pytest.approx(4677120000 / 1.008e12, rel=0.1)
    assert any("RTX 4080" in remark for remark in found.remarks)


def test_whole_requests_lose_the_floor_of_their_prefill():
    given = Given(batch=1, input_tokens=1024, output_tokens=128)
    path = RESULTS / "vllm_bench_latency_by_hand.json"
    (found,) = explain(path, model="qwen2.5-72b", part="h100-sxm", devices=2, given=given)
    assert 0.030 < found.measured_s < 4.05 / 127
    assert any("upper bound" in remark for remark in found.remarks)
    with pytest.raises(BadRequest, match="shorter than the floor of its prefill"):
        explain(path, model="qwen2.5-72b", part="h100-sxm", given=Given(batch=64, input_tokens=8192))


def result(**changes: Any) -> Result:
    fields = {"format": "test", "tpot_s": 0.030, "batch": 8, "input_tokens": 1000, "output_tokens": 200}
    return Result(**(fields | changes))


def seconds(found, name: str) -> float:
    return sum(part.seconds for part in (*found.floor_parts, *found.rest) if part.name == name)


def test_what_dominates_is_named():
    h200 = DEVICES["h200"]
    single = explained(result(), LLAMA, h200, weights="fp8")
    assert seconds(single, "all-reduce latency") == 0
    split = explained(result(), LLAMA, h200, weights="fp8", devices=8)
    assert seconds(split, "all-reduce latency") > 0.5e-3
    long = explained(result(input_tokens=60_000, tpot_s=0.080), LLAMA, h200, weights="fp8")
    assert seconds(long, "KV cache") > seconds(long, "weights") / 2
    many = explained(result(batch=512, tpot_s=0.200), LLAMA, h200)
    assert seconds(many, "compute") > 0.01
    bare = explained(result(), LLAMA, DEVICES["maia-200"], weights="fp8")
    assert bare.expected_s is None
    busy = explained(result(requests_per_s=3.0, tpot_s=0.060), LLAMA, h200, devices=2)
    assert seconds(busy, "prefill between steps") > 0.003


def test_signs_are_told():
    h200 = DEVICES["h200"]
    fast = explained(result(tpot_s=0.010), LLAMA, h200)
    assert fast.rest == ()
    assert any("faster than the floor" in remark for remark in fast.remarks)
    drafted = explained(result(tpot_s=0.015, tokens_per_step=2.5), LLAMA, h200)
    assert drafted.measured_s == pytest.approx(0.0375)
    waiting = explained(result(ttft_s=20.0, tpot_p99_s=0.2), LLAMA, h200, weights="fp8")
    assert any("queue" in remark for remark in waiting.remarks)
    assert any("slowest percent" in remark for remark in waiting.remarks)
    assert any("does not fit" in remark for remark in explained(result(batch=500), LLAMA, h200).remarks)


def test_precisions_in_names():
    assert [weights_in(name) for name in ("X-FP8", "nvidia/Y-NVFP4", "Z-AWQ", "plain")] == ["fp8", "fp4", "int4", ""]
    assert [llama_type(f"llama 8B {name}") for name in ("Q4_K - Medium", "Q8_0", "F16", "IQ2_XS")] == [
        "int4",
        "w8a16",
        "fp16",
        "int4",
    ]


BAD = {
    "": "is empty",
    "no json": "known are the JSON files of vllm bench latency",
    '{"a": 1}': "of no known format: known are",
    "[1, 2]": "of no known format",
    "[]": "holds no results",
    '{"avg_ts": NaN, "n_gen": 128}': "expected a number above 0",
    '{"avg_ts": -3, "n_gen": 128}': "avg_ts is -3",
    '{"avg_ts": "fast", "n_gen": 128}': "expected a number above 0",
    '{"avg_ts": 3, "n_gen": 0}': "no decode run",
    '{"total_input_tokens": 5, "mean_tpot_ms": 3}': "lacks 'completed'",
    '{"inter_token_latency": {"avg": 3, "unit": "fortnights"}}': "has the unit",
    '{"world_info": 3, "performance": {}, "request_info": 3}': "is built differently",
    '{"total_input_tokens": 5, "total_output_tokens": 5, "completed": 1, "mean_tpot_ms": 3, "duration": 1, '
    '"server_info": {"tp_size": NaN}}': "tp_size is nan",
    '{"avg_ts": 1' + "0" * 400 + ', "n_gen": 128}': "expected a number above 0",
    '{"avg_latency": 1, "latencies": []': "is no JSON",
    "[" * 100_000: "",
}


@pytest.mark.parametrize("content", BAD, ids=lambda text: text[:30] or "empty")
def test_bad_files_get_one_line(content: str, tmp_path: Path):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(BadRequest) as caught:
        explain(path, model="llama-3.1-8b", part="h100-sxm")
    assert BAD[content] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_large_numbers_are_written_out():
    """DeepSeek-V3 has 1,342 GB of weights in bf16, and a server may run 1,200 sequences."""
    (found,) = [explained(result(batch=1200), MODELS["deepseek-v3"], DEVICES["h200"], devices=8)]
    text = "\n".join(found.lines())
    assert "batch 1,200," in text
    assert "e+" not in text


def test_unknown_names(tmp_path: Path):
    path = RESULTS / "aiperf.json"
    with pytest.raises(BadRequest, match="unknown device"):
        explain(path, model="llama-3.1-8b", part="h1000")
    with pytest.raises(BadRequest, match="unknown model"):
        explain(path, model="llama-9", part="h200")
    with pytest.raises(BadRequest, match="names no known model"):
        explain(path, part="h200")
    with pytest.raises(BadRequest, match="names no known part"):
        explain(path, model="llama-3.1-8b")
    with pytest.raises(BadRequest, match="cannot read"):
        explain(tmp_path / "absent.json", model="llama-3.1-8b", part="h200")


def test_the_command_prints_for_people_and_for_machines():
    arguments = ["explain", str(RESULTS / "sglang_bench_serving.jsonl"), "--model", "llama-3.1-70b", "--part", "h200"]
    said = CliRunner().invoke(app, [*arguments, "--devices", "4"])
    assert said.exit_code == 0
    assert "what would help most" in said.stdout
    rows = json.loads(CliRunner().invoke(app, [*arguments, "--devices", "4", "--json"]).stdout)
    assert [row["format"] for row in rows] == ["sglang bench_serving"] * 2
    assert rows[0]["measured_tpot_seconds"] == pytest.approx(0.01454, rel=1e-3)
