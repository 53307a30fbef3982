"""Expected times: each term by hand, and what they say of a whole step."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.devices import DEVICES, find
from bench.errors import BadRequest
from bench.predict import command, expected, expected_rows
from bench.predict.step_expected import expect_step, server_seconds
from bench.predict.step_model import step
from kernels.models import MODELS
from tests.test_cli import decodebench

PART = expected.Part(bandwidth=1e12, peak=1e15, sms=100, l2=50e6)


def one(**fields: float) -> expected.Kernels:
    return expected.Kernels(**{name: np.array([float(value)]) for name, value in fields.items()})


def seconds(kernels: expected.Kernels, warm: bool = False, **constants: float) -> float:
    usual = {"start": 1e-6, "read": 0.5}
    found = expected.terms(kernels, expected.Constants(**(usual | constants)), PART, warm=warm)
    return float(expected.total(found)[0])


def test_a_long_read_takes_its_bytes_at_the_share_that_kernels_reach() -> None:
    assert seconds(one(bytes=1e9, flops=0, units=1000, steps=1)) == pytest.approx(1e-6 + 1e9 / 0.5e12)


def test_units_and_steps_take_the_time_of_sms() -> None:
    kernels = one(bytes=0, flops=0, units=500, steps=4)
    assert seconds(kernels, unit=2e-6, step=3e-6) == pytest.approx(1e-6 + 500 * (2e-6 + 4 * 3e-6) / 100)


def test_terms_that_overlap_add_up_as_squares() -> None:
    kernels = one(bytes=3e6, flops=0, units=100, steps=1)
    assert seconds(kernels, unit=8e-6) == pytest.approx(1e-6 + 10e-6)
    assert seconds(one(bytes=0, flops=1e9, units=100, steps=1), math=0.5) == pytest.approx(1e-6 + 2e-6)


def test_few_units_are_split_and_wait_for_their_steps() -> None:
    few, many = one(bytes=0, flops=0, units=50, steps=10), one(bytes=0, flops=0, units=200, steps=10)
    assert seconds(few, combine=2e-6) == pytest.approx(3e-6)
    assert seconds(many, combine=2e-6) == pytest.approx(1e-6)
    assert seconds(one(bytes=0, flops=0, units=50, steps=1), combine=2e-6) == pytest.approx(1e-6)
    assert seconds(few, lone=1e-7) == pytest.approx(1e-6 + 10 * 1e-7)
    assert seconds(many, lone=1e-7) == pytest.approx(1e-6 + 10 * 1e-7 * 100 / 200)


def test_a_warm_buffer_comes_partly_from_the_l2() -> None:
    kernels = one(bytes=20e6, flops=0, units=100, steps=1)
    kept = np.exp(-20e6 / (0.4 * 50e6))
    by_hand = 20e6 * ((1 - kept) / 0.5e12 + kept / 2.5e12)
    assert seconds(kernels, warm=True, kept=0.4, l2=2.5) == pytest.approx(1e-6 + by_hand)
    assert seconds(kernels) > seconds(kernels, warm=True)


def test_operations_are_cut_as_engines_cut_them() -> None:
    zero = {"size": np.array([1.0]), "flops": np.array([1.0])}

    def cut(make, **fields: float) -> tuple[float, float]:  # type: ignore[no-untyped-def]
        found = make(**zero, **{name: np.array([float(value)]) for name, value in fields.items()})
        return float(found.units[0]), float(found.steps[0])

    assert cut(expected.attention, B=4, H_q=32, H_kv=8, D=128, T=1000) == (32, 8)
    assert cut(expected.attention, B=4, H_q=128, H_kv=1, D=256, T=128) == (4, 4)
    assert cut(expected.latent_attention, B=4, H=128, T=130) == (8, 3)
    assert cut(expected.product, N=4096, K=8192) == (64, 128)
    assert cut(expected.experts, hit=8, H=4096, F=64) == (16, 64)


def test_every_stored_constant_is_sound_and_says_what_it_rests_on() -> None:
    for op, stored, gen in expected.entries():
        found = expected.find(op, stored, gen)
        assert found is not None
        assert 0 < found.constants.read <= 0.945
        assert 0 < found.constants.math <= 1
        assert 1e-6 < found.constants.start < 1e-4
        assert f"on {expected.FITTED_ON[gen]}" in found.rests_on
        assert found.rows >= 40
        assert all(low <= median <= high for low, median, high in found.spread.values())


def test_what_nobody_fitted_takes_the_nearest_constants_or_none() -> None:
    assert expected.find("attention_decode", "int8", "hopper") == expected.find("attention_decode", "bf16", "hopper")
    assert expected.find("ffn_gemv", "nvfp4", "hopper") == expected.find("ffn_gemv", "bf16", "hopper")
    assert expected.find("all_reduce", "bf16", "hopper") is None
    assert expected.generation(find("mi300x")) == expected.DEFAULT
    with pytest.raises(BadRequest, match="no memory bandwidth"):
        expected.Part.of(find("rubin-cpx"))
    assert expected.size_class(16e6) == "16 to 64 MB"


@pytest.mark.parametrize("name", ["llama-3.1-70b", "deepseek-v3", "gpt-oss-120b", "gemma-3-27b"])
@pytest.mark.parametrize("weights", ["bf16", "fp8", "fp4"])
def test_a_step_is_never_below_its_floor(name: str, weights: str) -> None:
    shape = MODELS[name]
    for key in ("h100-sxm", "b200", "mi300x"):
        spec = DEVICES[key]
        for batch in (1, 256):
            floor = step(shape, device=spec, weights=weights, batch=batch, context=4096, devices=8)
            found = expect_step(floor, shape, spec)
            assert floor.seconds <= found.low <= found.seconds <= found.high
            assert found.seconds < 3 * floor.seconds + 150e-6 * shape.layers
            assert any("whole servers" in said for said in found.rests_on)
            assert any("of no fitted generation" in said for said in found.rests_on) == (key == "mi300x")


def test_what_fits_goes_by_the_memory_that_the_driver_reports() -> None:
    """81,559 MiB of an H100 are 85.5 GB. The floor alone goes by the datasheet's 80 GB."""
    asked = {"model": "llama-3.1-8b", "parts": ["h100-sxm", "b200"], "batches": [1], "context": 4096}
    h100, b200 = command.rows(**asked, expect=True)  # type: ignore[arg-type]
    assert h100["capacity_bytes"] == 81_559 * 2**20
    assert b200["capacity_bytes"] == 180e9
    floor = command.rows(**asked)[0]  # type: ignore[arg-type]
    assert floor["capacity_bytes"] == 80e9
    assert h100["max_batch"] > floor["max_batch"]


def test_an_all_reduce_sends_once_where_a_switch_adds_up() -> None:
    """A ring of 8 sends 2 x 7/8 of [1, 8192] in 16 bits; a switch needs it once; so it is not for an A100."""
    asked = {"batch": 1, "context": 128, "devices": 8}
    sent = 160 * 8192 * 2
    for key, share, link in (("h200", 1.0, 450e9), ("a100-80", 2 * 7 / 8, 300e9)):
        reduce = step(MODELS["llama-3.1-70b"], device=DEVICES[key], **asked).op("all_reduce")  # type: ignore[arg-type]
        assert reduce.seconds == pytest.approx(share * sent / link)
        assert reduce.link_bytes == round(sent * 2 * 7 / 8)


def test_a_server_takes_its_kernels_and_what_runs_between_them() -> None:
    constants = {"kernels": 0.9, "layer": 1e-5, "reduce": 2e-5, "step": 1e-3, "prefill": 2.0}
    assert server_seconds(constants, 10e-3, 80, 160) == pytest.approx(9e-3 + 80e-5 + 160 * 2e-5 + 1e-3)
    assert server_seconds(constants, 0, 0, 0, 1e-3) == pytest.approx(3e-3)


def test_predict_says_floor_expected_and_range_and_leaves_them_out_when_asked() -> None:
    asked = ("predict", "--model", "llama-3.1-8b", "--device", "h100-sxm,rubin-cpx", "--batch", "1")
    rows = json.loads(decodebench(*asked, "--json").stdout)
    assert set(rows[0]) == {*command.ROW, *expected_rows.KEYS}
    assert rows[0]["seconds"] < rows[0]["expected_low"] < rows[0]["expected_seconds"] < rows[0]["expected_high"]
    assert rows[1]["expected_seconds"] is None
    shown = decodebench(*asked).stdout
    assert "floor ms/token" in shown
    assert "rows of sglang on h100-sxm" in shown
    floor = decodebench(*asked, "--floor", "--json")
    assert json.loads(floor.stdout) == command.rows(
        model="llama-3.1-8b", parts=["h100-sxm", "rubin-cpx"], batches=[1], context=4096
    )
    assert "expected" not in decodebench(*asked, "--floor").stdout
