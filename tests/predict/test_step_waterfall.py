"""The waterfall of a step: what it adds up to, its shares, and that the composed step is what `predict` predicts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.devices import find
from bench.errors import BadRequest
from bench.predict import expected
from bench.predict.collectives import Routed
from bench.predict.roofline import predict_from_datasheet
from bench.predict.step_expected import alone_seconds, kernel_seconds
from bench.predict.step_request import Request, expect, predicted_on, roof_of, shape_of
from bench.predict.step_table import swept
from bench.predict.step_waterfall import MeasuredPart, MeasuredStep, measured_waterfall, parts_of, sizes_of
from bench.run import load_run
from kernels.decode_step.op import OP, StepCase
from kernels.decode_step.parts import parts
from kernels.decode_step.wiring import FAMILIES, composed
from kernels.models import MODELS
from kernels.op import Target, Work, implementations
from tests.support.synthetic_run import ceiling_records, write_run

H100 = find("h100-sxm")
LLAMA = Request(model="llama-3.1-8b", batch=1, context=4096)


FIRST = {next(f for f in FAMILIES if name.startswith(f)): name for name in reversed(composed())}
"""A model of each family that a step is composed for."""

SMALL_EXPERTS = ("qwen3-next", "qwen3.5", "kimi-linear")

H100_TARGET = Target(kind="cuda", name=H100.name, sm=90, sm_count=132, l2_bytes=50 << 20, smem_per_sm=228 << 10)


@pytest.mark.parametrize(
    ("model", "batch", "weights", "devices"),
    [
        *((model, 1, "bf16", 1) for model in FIRST.values()),
        ("llama-3.1-8b", 16, "bf16", 1),
        ("llama-3.1-8b", 1, "w8a16", 1),
        ("llama-3.1-8b", 4, "bf16", 2),
        ("llama-3.1-70b", 1, "bf16", 8),
    ],
)
def test_the_step_that_predict_tells_is_the_sum_of_the_stages_of_ours(
    model: str, batch: int, weights: str, devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operation by operation: the compulsory work and the seconds of our kernels' stages, both within 1%.

    Absorbed attention at batch 1 also moves the parts of its splits, 128 heads of 512 each: its stages take longer.
    What experts read of x again for each tile, and the small operations that `predict` leaves out, are below 3% of all.
    Of Qwen3-Next, Qwen3.5 and Kimi-Linear they are 5%: an expert is so small that the shares of blocks, which CTAs pass
    on to each other, are a tenth of what the first product reads. `predict` leaves out the gate of shared experts, a
    row of the router's product, and of most state mixers the tokens and the convolution: below 2% of these operations.
    One of several parts of a server runs the step of a model with fewer heads, a narrower FFN and a smaller vocabulary,
    beside the all-reduces.
    """
    asked = Request(model=model, batch=batch, context=4096, weights=weights, devices=devices)
    predicted = predicted_on(asked, H100)
    if devices > 1:
        whole = MODELS[model]
        part = {name: getattr(whole, name) // devices for name in ("heads", "kv_heads", "ffn", "vocab")}
        monkeypatch.setitem(MODELS, f"{model}-of-{devices}", replace(whole, **part))
        asked = replace(asked, model=f"{model}-of-{devices}", devices=1)
    works: dict[str, Work] = {}
    for each in parts(asked.case):
        works[each.name] = works.get(each.name, Work()) + each.work
    seconds: dict[str, float] = {}
    triton = next(impl for impl in implementations("decode_step")[0] if impl.name == "triton")
    for stage in triton.stages(asked.case, H100_TARGET):
        name = stage.name.partition(" ")[0].rpartition(".")[2]
        seconds[name] = seconds.get(name, 0.0) + predict_from_datasheet([stage], H100).seconds
    ops = {op.name: op for op in predicted.ops if op.name != "all_reduce"}
    alike = [name for name in works if name in ops and name not in ("embedding", "kv_append")]
    mixer = ("qkv", "attention", "o") if MODELS[asked.model].attention_layers else ("state_in", "state", "state_out")
    assert {*mixer, "lm_head"} <= set(alike)
    for name in alike:
        loose = 2.0 if name == "state" else 1.0
        flops = 1e-3 if name not in ("state", "router") else 0.02
        assert ops[name].work.total_flops == pytest.approx(works[name].total_flops, rel=flops), name
        assert ops[name].work.bytes == pytest.approx(works[name].bytes, rel=0.01 * loose), name
        if name != "attention" or not MODELS[asked.model].is_mla:
            assert ops[name].seconds == pytest.approx(seconds[name], rel=0.01 * loose), name
    floor = sum(op.seconds for op in ops.values())
    assert floor == pytest.approx(predicted.seconds - sum(op.seconds for op in predicted.ops if op.link_bytes))
    assert floor < sum(seconds.values()) < (1.05 if model.startswith(SMALL_EXPERTS) else 1.03) * floor
    assert OP.work(asked.case).bytes == pytest.approx(sum(op.work.bytes for op in ops.values()), rel=0.01)


def test_the_floors_of_all_operations_are_the_time_that_predict_says() -> None:
    found = expect(LLAMA)
    predicted = predicted_on(LLAMA, H100)
    assert sum(op.floor for op in found.ops) == pytest.approx(predicted.seconds)
    assert found.levels[0].seconds == predicted.seconds
    assert [op.name for op in found.ops] == [op.name for op in predicted.ops]


@pytest.mark.parametrize("model", ["llama-3.1-8b", "mixtral-8x7b", "deepseek-v3"])
def test_levels_rise_and_shares_are_of_one_whole(model: str) -> None:
    found = expect(replace(LLAMA, model=model))
    seconds = [level.seconds for level in found.levels]
    assert seconds == sorted(seconds)
    assert sum(op.share for op in found.ops) == pytest.approx(1)
    assert sum(op.gap for op in found.ops) == pytest.approx(1)
    assert all(level.source for level in found.levels)
    assert not found.measured


def test_operations_alone_are_the_kernels_of_an_expected_step() -> None:
    predicted, shape = predicted_on(LLAMA, H100), shape_of(LLAMA)
    seconds, _ = kernel_seconds(predicted, shape, H100)
    assert sum(each.seconds for each in alone_seconds(predicted, shape, H100)) == pytest.approx(seconds)
    assert expect(LLAMA).levels[1].seconds == pytest.approx(seconds)


def test_a_run_adds_the_floor_at_its_read_roof() -> None:
    found = expect(LLAMA, read_roof=3e12)
    (level,) = [level for level in found.levels if "roof" in level.name]
    assert level.seconds == pytest.approx(sum(op.work.bytes for op in predicted_on(LLAMA, H100).ops) / 3e12)


def test_a_run_of_another_part_and_a_host_that_is_no_part_are_refused(tmp_path: Path) -> None:
    """The read roof of one part says nothing of a step on another."""
    run = load_run(write_run(tmp_path, ceiling_records()))
    assert run.ceilings
    assert roof_of(LLAMA, run) == run.ceilings.read_roof
    with pytest.raises(BadRequest, match="the run is of"):
        roof_of(replace(LLAMA, part="h200"), run)
    with pytest.raises(BadRequest, match="--device cpu"):
        expect(replace(LLAMA, part="cpu"))


def test_a_batch_that_does_not_fit_is_told_and_lines_fit_a_terminal() -> None:
    found = expect(replace(LLAMA, batch=1_000_000)).lines()
    assert any("does not fit: at most" in line for line in found)
    assert not any("does not fit" in line for line in expect(LLAMA).lines())
    assert "batch 1,000,000" in found[0]
    assert not any("e+" in line for line in found)
    assert max(len(line) for line in expect(LLAMA).lines() if line.startswith("  ")) <= 80
    assert sum("published runs of whole servers" in line for line in found) == 1


def test_fewer_layers_are_a_smaller_step_and_windows_stay_in_place() -> None:
    gemma = Request(model="gemma-3-27b", batch=1, context=4096, layers=6)
    assert (shape_of(gemma).layers, shape_of(gemma).windowed_layers) == (6, 5)
    assert expect(replace(LLAMA, layers=4)).step.seconds < expect(LLAMA).step.seconds / 4
    with pytest.raises(BadRequest, match="--layers 40"):
        shape_of(replace(LLAMA, layers=40))


def test_a_measured_step_is_split_among_its_parts() -> None:
    """Two parts take half of the time each; one of them is at its floor, so that the other has the whole gap."""
    case = StepCase(model="llama-3.2-1b", B=1, T=1024)
    floor = sum(part.work.bytes for part in parts(case) if part.name == "ffn") / 1e9
    small = sum(part.work.bytes for part in parts(case) if part.name == "ffn_norm") / 1e9
    made = MeasuredStep(
        impl="numba",
        seconds=2.5 * floor,
        parts=(
            MeasuredPart(name="ffn", calls=16, alone=floor, in_step=floor),
            MeasuredPart(name="ffn_norm", calls=16, alone=floor / 2, in_step=floor),
        ),
        peers={"torch": 3 * floor},
        source="made up",
        bytes=OP.work(case).bytes,
        sizes=sizes_of((part.name, part.work.bytes) for part in parts(case)),
        expected=1.2 * floor,
        launches=32,
        launch_s=floor / 320,
    )
    found = measured_waterfall(case, made, part="a host", roof=1e9, sheet=H100.memory_bandwidth)
    assert [op.share for op in found.ops] == pytest.approx([0.5, 0.5])
    assert [op.gap for op in found.ops] == pytest.approx([0, 1])
    assert [op.floor for op in found.ops] == pytest.approx([floor, small])
    whole = OP.work(case).bytes
    floors = [whole / 3.35e12, whole / 1e9]
    assert [level.seconds for level in found.levels] == pytest.approx(
        [*floors, 1.2 * floor, 1.4 * floor, 1.5 * floor, 2 * floor, 2.5 * floor]
    )
    assert any("torch" in line for line in found.lines())
    assert (found.mbu, found.joules_per_token) == (pytest.approx(whole / 1e9 / (2.5 * floor)), None)
    powered = measured_waterfall(case, replace(made, watts=300.0), part="a GPU")
    assert powered.joules_per_token == pytest.approx(300 * 2.5 * floor)
    assert "measured" in powered.costs()[0]
    alone = replace(made, parts=tuple(replace(part, in_step=None) for part in made.parts), launch_s=0.0)
    names = [level.name for level in measured_waterfall(case, alone, part="a GPU").levels]
    assert names == ["expected of its kernels", "each operation alone", "step (numba)"]


def test_parts_take_the_time_of_a_memory_as_fast_as_beside_the_step() -> None:
    """The memory was twice as slow while a part ran alone; its median counts, and one late sample does not."""
    recorded = {
        "name": "ffn",
        "calls": 2,
        "alone_s": [4e-3, 4e-3, 9e-3],
        "alone_reads_s": [2e-3, 2e-3, 2e-3],
        "in_step_s": [3e-3, 3e-3, 3e-3],
        "in_step_reads_s": [1e-3, 1e-3, 1e-3],
    }
    (part,) = parts_of([recorded], read_s=1e-3)
    assert (part.alone, part.in_step) == pytest.approx((2e-3, 3e-3))
    (part,) = parts_of([{"name": "ffn", "calls": 2, "alone_s": [4e-3]}], read_s=1e-3)
    assert (part.alone, part.in_step) == (4e-3, None)


def test_the_command_prints_levels_and_operations() -> None:
    asked = ["step", "--model", "llama-3.1-8b", "--batch", "1", "--context", "4096"]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 0, said.output
    for word in ("floor by the datasheet", "each operation alone", "gate_up", "lm_head", "1890 published runs"):
        assert word in said.output
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).output)
    assert found["ops"][1]["name"] == "qkv"
    assert found["levels"][-1]["seconds"] > found["levels"][0]["seconds"]


def test_several_batches_and_contexts_make_one_table() -> None:
    asked = ["step", "--model", "qwen3-next-80b-a3b", "--batch", "1,8", "--context", "4096,32768"]
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).output)
    assert [(each["context"], each["batch"]) for each in found] == [(4096, 1), (4096, 8), (32768, 1), (32768, 8)]
    headers, rows = swept([expect(replace(LLAMA, batch=batch)) for batch in (1, 64)])
    assert [row[0] for row in rows] == ["1", "64"]
    assert headers[2] == "floor by the datasheet ms"
    assert headers[-5:] == ["token/s", "MBU", "MFU", "J/token", "most of the time"]
    assert rows[0][2] == f"{predicted_on(LLAMA, H100).seconds * 1e3:,.3g}"
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 0, said.output
    assert "32,768" in said.output
    for wrong in ("0", "x"):
        with pytest.raises(BadRequest, match="batch"):
            CliRunner().invoke(app, [*asked, "--batch", wrong], catch_exceptions=False)


def test_precisions_parts_and_drafts_are_swept_too() -> None:
    asked = ["step", "--model", "llama-3.1-8b", "--weights", "bf16,int4", "--tp", "1,2", "--drafts", "0,3", "--json"]
    found = json.loads(CliRunner().invoke(app, asked).output)
    assert len(found) == 8
    assert {(each["devices"], each["drafts"]) for each in found} == {(1, 0), (1, 3), (2, 0), (2, 3)}
    steps = [expect(replace(LLAMA, weights=w, tokens=n)) for w in ("bf16", "int4") for n in (1, 4)]
    headers, rows = swept(steps)
    assert headers[:4] == ["batch", "context", "weights", "drafts"]
    assert [row[2:4] for row in rows] == [["bf16", "0"], ["bf16", "3"], ["int4", "0"], ["int4", "3"]]
    assert steps[1].joules_per_token > steps[0].joules_per_token > steps[2].joules_per_token
    with pytest.raises(BadRequest, match="devices must be at least 1"):
        CliRunner().invoke(app, ["step", "--model", "llama-3.1-8b", "--tp", "0"], catch_exceptions=False)


def test_joules_and_dollars_are_those_of_the_step_and_not_of_its_floor() -> None:
    """By hand: 700 W of an H100 and $2.50 an hour, each for two parts, over 16 tokens a step."""
    found = replace(expect(replace(LLAMA, batch=16, devices=2)), dollars_per_hour=2.5)
    step = found.step.seconds
    assert step > 1.2 * found.levels[0].seconds
    assert found.joules_per_token == pytest.approx(2 * 700 * step / 16)
    assert found.dollars_per_million_tokens == pytest.approx(2 * 2.5 / 3600 * step / 16 * 1e6)
    joules, dollars = found.costs()
    assert "1,400 W, the rated power of NVIDIA H100 SXM (datasheet)" in joules
    assert "$2.5 an hour and part, as --price says" in dollars
    floor = predicted_on(replace(LLAMA, batch=16, devices=2), H100)
    assert found.mbu == pytest.approx(floor.mbu * floor.seconds / step)
    said = found.as_dict()
    assert (said["joules_per_token"], said["dollars_per_million_tokens"]) == (
        found.joules_per_token,
        found.dollars_per_million_tokens,
    )
    headers, rows = swept([found, expect(LLAMA)])
    columns = dict(zip(headers, rows[0], strict=True))
    assert columns["J/token"] == f"{found.joules_per_token:.3g}"
    assert columns["$/M tokens"] == f"{found.dollars_per_million_tokens:.3g}"
    assert columns["all-reduces"].endswith("%")
    assert dict(zip(headers, rows[1], strict=True))["$/M tokens"] == ""
    asked = ["step", "--model", "llama-3.1-8b", "--batch", "1", "--price", "2.5"]
    assert "a million tokens: $2.5 an hour" in CliRunner().invoke(app, asked).output


def test_parts_that_share_a_model_say_what_they_tell_each_other() -> None:
    """The all-reduces are one operation of the step, and more of it the more parts there are."""
    shares = []
    for devices in (2, 4, 8):
        asked = Request(model="llama-3.1-70b", batch=1, context=4096, devices=devices)
        found = expect(asked)
        (reduce,) = [op for op in found.ops if op.name == "all_reduce"]
        (each,) = [
            e for e in alone_seconds(predicted_on(asked, H100), shape_of(asked), H100) if e.names == ("all_reduce",)
        ]
        assert (reduce.calls, reduce.seconds) == (160, each.seconds)
        assert f"on {devices} x h100-sxm" in found.lines()[0]
        share = reduce.seconds / found.step.seconds
        assert any(
            f"160 all-reduces: {reduce.seconds * 1e6:,.0f} us, {100 * share:.0f}%" in line for line in found.notes
        )
        shares.append(share)
    assert shares == sorted(shares)
    assert shares[-1] > 0.05
    with pytest.raises(BadRequest, match="7 devices cannot share"):
        expect(replace(LLAMA, devices=7))
    with pytest.raises(BadRequest, match="leave out --tp"):
        assert replace(LLAMA, devices=2).case


def test_whole_experts_are_reached_over_the_link() -> None:
    """DeepSeek-V3 on 8 H100s, 64 requests: 8 tokens x 8 experts x 7,168 numbers of each part, 7/8 of them by link."""
    found = expect(Request(model="deepseek-v3", batch=64, context=4096, devices=8, weights="fp8"))
    (said,) = [line for line in found.notes if line.startswith("were experts whole")]
    ways = [Routed.of(expected.exchanges(direction)["deepep hopper"]) for direction in ("dispatch", "combine")]
    dispatch, combine = (
        way.start + 256 * way.expert + 7 / 8 * size * 8 * 8 * 7168 / (way.rate * 450e9)
        for way, size in zip(ways, (1, 2), strict=True)
    )
    assert f"dispatch in 8 bits {dispatch * 1e6:.1f} us and combine in 16 bits {combine * 1e6:.1f} us a layer" in said
    assert f"{58 * (dispatch + combine) * 1e6:,.0f} us a step, " in said, "58 of 61 layers have experts"


def test_drafts_are_verified_in_one_step() -> None:
    one, five = (expect(replace(LLAMA, tokens=tokens)) for tokens in (1, 5))
    assert one.step.seconds < five.step.seconds < 1.1 * one.step.seconds


def test_what_no_step_is_composed_for_is_refused() -> None:
    assert set(composed()) == set(MODELS)
    with pytest.raises(ValueError, match="zamba2"):
        StepCase(model="zamba2", B=1, T=8)
    asked = Request(model="llama-3.1-8b", batch=1, context=8)
    with pytest.raises(BadRequest, match="--kv int4"):
        assert replace(asked, kv="int4").case
    with pytest.raises(BadRequest, match="latents"):
        assert replace(asked, model="deepseek-v3", kv="fp8").case
    for weights in ("bf16", "fp8"):
        assert replace(asked, kv="fp8", weights=weights).case.kv == "fp8"
    assert replace(asked, kv="bf16", weights="fp8").case.kv == ""


@pytest.mark.slow
def test_a_toy_is_measured_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of the step has a time, alone and in the step, and the roof was read."""
    from bench import machine
    from bench.measure import step_parts

    monkeypatch.setattr(step_parts, "SECONDS", 0.0)
    case = StepCase(model="toy-qwen2.5", layers=1, B=2, T=9, page=0, dtype="fp16")
    found, roof = step_parts.measure_step(case, machine.detect("cpu"))
    assert [part.name for part in found.parts] == [part.name for part in parts(case)]
    assert all(part.alone > 0 and part.in_step and part.in_step > 0 for part in found.parts)
    assert roof is not None
    assert roof > 1e8
    assert set(found.peers) == {"torch"}


def test_a_busy_host_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.measure import step_parts
    from kernels.op import Target

    host = Target(kind="cpu", name="a host", sm_count=2)
    for load, said in ((2.5, 0), (9.0, 1)):
        monkeypatch.setattr(step_parts.os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert len(step_parts.busy_note(host)) == said
