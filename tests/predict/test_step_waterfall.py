"""The waterfall of a step: what it adds up to, its shares, and that the composed step is what `predict` predicts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.devices import DeviceSpec, find
from bench.errors import BadRequest
from bench.predict.step_expected import alone_seconds, kernel_seconds
from bench.predict.step_request import Request, expect, host_spec, measured, predicted_on, shape_of
from bench.predict.step_waterfall import OF_PART, MeasuredPart, MeasuredStep
from kernels.decode_step.op import OP, StepCase
from kernels.decode_step.parts import parts
from kernels.models import MODELS
from kernels.op import Work

H100 = find("h100-sxm")
LLAMA = Request(model="llama-3.1-8b", batch=1, context=4096)


@pytest.mark.parametrize(
    ("model", "batch", "weights"),
    [
        ("llama-3.1-8b", 1, "bf16"),
        ("llama-3.1-8b", 16, "bf16"),
        ("qwen2.5-0.5b", 4, "bf16"),
        ("gemma-3-27b", 2, "bf16"),
        ("mixtral-8x7b", 1, "bf16"),
        ("llama-3.1-8b", 1, "int4"),
    ],
)
def test_the_composed_step_does_what_predict_says_operation_by_operation(model: str, batch: int, weights: str) -> None:
    """FLOPs are the same. Bytes differ by lengths, block tables and hidden values that never leave a kernel."""
    asked = Request(model=model, batch=batch, context=4096, weights=weights)
    predicted = {op.name: op for op in predicted_on(asked, H100).ops}
    found: dict[str, Work] = {}
    for part in parts(asked.case):
        found[part.name] = found.get(part.name, Work()) + part.work
    large = 0
    for name, work in found.items():
        names = [each for each in OF_PART.get(name, (name,)) if each in predicted]
        if not names or name in ("embedding", "kv_append"):
            continue
        large += 1
        assert sum(predicted[each].work.total_flops for each in names) == pytest.approx(work.total_flops, rel=1e-3)
        assert sum(predicted[each].work.bytes for each in names) == pytest.approx(work.bytes, rel=0.01), name
    joined = "experts_gate_up" in predicted or weights == "bf16"
    assert large == len(predicted) - 2 - joined
    whole = sum(op.work.bytes for op in predicted.values())
    assert OP.work(asked.case).bytes == pytest.approx(whole, rel=0.01)


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


def test_fewer_layers_are_a_smaller_step_and_windows_stay_in_place() -> None:
    gemma = Request(model="gemma-3-27b", batch=1, context=4096, layers=6)
    assert (shape_of(gemma).layers, shape_of(gemma).windowed_layers) == (6, 5)
    assert expect(replace(LLAMA, layers=4)).step.seconds < expect(LLAMA).step.seconds / 4
    with pytest.raises(BadRequest, match="--layers 40"):
        shape_of(replace(LLAMA, layers=40))


def test_a_measured_step_is_split_among_its_parts() -> None:
    """Two parts take half of the time each; one of them is at its floor, so that the other has the whole gap."""
    asked = Request(model="llama-3.2-1b", batch=1, context=1024)
    floors = {op.name: op.seconds for op in predicted_on(asked, host_of(1e9)).ops}
    ffn = floors["gate_up"] + floors["down"]
    made = MeasuredStep(
        impl="numba",
        seconds=2.5 * ffn,
        parts=(
            MeasuredPart(name="ffn", calls=16, alone=ffn, in_step=ffn),
            MeasuredPart(name="ffn_norm", calls=16, alone=ffn / 2, in_step=ffn),
        ),
        peers={"torch": 3 * ffn},
        source="made up",
    )
    found = measured(asked, made, "a host", 1e9)
    assert [op.share for op in found.ops] == pytest.approx([0.5, 0.5])
    assert [op.gap for op in found.ops] == pytest.approx([0, 1])
    assert [level.seconds for level in found.levels[1:]] == pytest.approx([1.5 * ffn, 2 * ffn, 2.5 * ffn])
    assert any("torch" in line for line in found.lines())


def host_of(rate: float) -> DeviceSpec:
    return host_spec("a host", rate)


def test_the_command_prints_levels_and_operations() -> None:
    asked = ["step", "--model", "llama-3.1-8b", "--batch", "1", "--context", "4096"]
    said = CliRunner().invoke(app, asked)
    assert said.exit_code == 0, said.output
    for word in ("floor by the datasheet", "each operation alone", "gate_up", "lm_head", "1890 published runs"):
        assert word in said.output
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).output)
    assert found["ops"][1]["name"] == "qkv"
    assert found["levels"][-1]["seconds"] > found["levels"][0]["seconds"]


def test_what_no_step_is_composed_for_is_refused() -> None:
    for model in ("deepseek-v3", "gpt-oss-20b"):
        assert model in MODELS
        with pytest.raises(ValueError, match=model):
            StepCase(model=model, B=1, T=8)
    with pytest.raises(BadRequest, match="--kv fp8"):
        assert Request(model="llama-3.1-8b", batch=1, context=8, kv="fp8").case


@pytest.mark.slow
def test_a_toy_is_measured_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of the step has a time, alone and in the step, and the step takes at least as long as its longest."""
    from bench import machine
    from bench.measure import step_parts

    monkeypatch.setattr(step_parts, "SECONDS", 0.0)
    case = StepCase(model="toy-qwen2.5", layers=1, B=2, T=9, page=0, dtype="fp16")
    found = step_parts.measure_step(case, machine.detect("cpu"))
    assert [part.name for part in found.parts] == [part.name for part in parts(case)]
    assert all(part.alone > 0 and part.in_step > 0 for part in found.parts)
    assert found.seconds > max(part.in_step for part in found.parts)
    assert set(found.peers) == {"torch"}


def test_a_busy_host_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.measure import step_parts
    from kernels.op import Target

    host = Target(kind="cpu", name="a host", sm_count=2)
    for load, said in ((2.5, 0), (9.0, 1)):
        monkeypatch.setattr(step_parts.os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert len(step_parts.busy_note(host)) == said
