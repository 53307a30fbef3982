"""Predictions of claims, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from bench.devices import find
from bench.judge.claims import Verdict, explain, scorecard
from bench.judge.claims.common import LLAMA_70B, decode
from bench.judge.claims.hardware import advantage, latest_crossover
from kernels.models import active_parameters, kv_bytes_per_token
from tests.support.claim_records import values


@pytest.fixture(scope="module")
def bare() -> dict[str, Verdict]:
    """Verdicts without a single run."""
    return {v.claim.id: v for v in scorecard()}


def test_the_kv_cache_of_70b_by_hand(bare: dict[str, Verdict]) -> None:
    """2 x 80 layers x 8 heads x 128 x 2 B = 327,680 B a token: 1.34 GB at 4K, not 2.5."""
    assert kv_bytes_per_token(LLAMA_70B, 2) == 327_680
    at_4k = "KV cache of 70B at 4K tokens"
    bf16 = {"cache": "bf16", "GB": "1e9 B"}
    assert values(bare["K1"], at_4k, **bf16, **{"KV heads": "8 (GQA, as in Llama-3.1-70B)"}) == [
        pytest.approx(1.342177, rel=1e-6)
    ]
    assert values(bare["K1"], at_4k, **bf16, **{"KV heads": "64 (MHA)"}) == [pytest.approx(8 * 1.342177, rel=1e-6)]
    assert bare["K1"].status == "DEPENDS", "2.5 GiB is 4,096 tokens of 655,360 B, which is four bytes an element"
    assert "fp32" in bare["K1"].condition
    assert "2^30" in bare["K1"].condition


def test_the_settings_that_make_the_other_cache_sizes_right(bare: dict[str, Verdict]) -> None:
    """640 GiB = 32 x 8,192 x 2 x 80 x 64 x 128 x 2 B; 1.125 GiB = 512 x 2 x 64 x 72 x 128 x 2 B."""
    binary = {"cache": "bf16", "GB": "2^30 B"}
    assert values(bare["K3"], "KV cache at batch 32 and 8K tokens", **binary, **{"KV heads": "64 (MHA)"}) == [640]
    assert "64 (MHA)" in bare["K3"].condition
    assert "bf16" in bare["K3"].condition
    assert values(bare["K7"], "KV cache of a request of 512 tokens", **binary, model="opt-66b") == [1.125]
    assert "opt-66b" in bare["K7"].condition


def test_mla_saves_93_percent_only_against_gqa_and_with_a_quantized_latent(bare: dict[str, Verdict]) -> None:
    """60 x 576 x 6 bits of 95 x 2 x 8 x 128 x 16 bits: 6.66%."""
    what = "share of the cache that MLA saves"
    assert values(bare["K4"], what, bits="6", against="DeepSeek 67B, which has GQA") == [
        pytest.approx(1 - 60 * 576 * 6 / (95 * 2048 * 16))
    ]
    assert values(bare["K4"], what, bits="16", against="DeepSeek 67B, which has GQA") == [
        pytest.approx(0.8224, abs=1e-4)
    ]
    alone = [c for c in bare["K4"].predicted if c.setting.get("bits") == "16" and "67B" not in c.setting["against"]]
    assert [c.value for c in alone] == [pytest.approx(1 - 576 / (128 * (128 + 64 + 128)))], "its own heads, each cached"


def test_room_for_requests_by_hand(bare: dict[str, Verdict]) -> None:
    """20 GB over 2,048 x 2,621,440 B holds 3.7 requests with 64 KV heads. Two H100s leave 18.9 GB free."""
    assert values(bare["K5"], "batch at 2K tokens in 20 GB", cache="bf16", **{"KV heads": "64 (MHA)"}) == [3]
    gqa = {"cache": "bf16", "KV heads": "8 (GQA, as in Llama-3.1-70B)"}
    assert values(bare["K5"], "largest batch at 4K tokens on two H100", **gqa) == [14]
    assert bare["K5"].status == "FAILS"


def test_the_ridge_and_the_batch_that_crosses_it(bare: dict[str, Verdict]) -> None:
    """989.4 / 3.35 = 295.3 FLOP/B. At batch B a weight of b bytes does 2 B / b FLOP per byte."""
    assert values(bare["I3"], "ridge point of the H100") == [pytest.approx(295.34, rel=1e-4)]
    crossings = {c.setting["weights"]: c.value for c in bare["I4"].predicted}
    assert 295 <= crossings["16-bit"] <= 330, "activations push it a little above the ridge"
    assert 148 <= crossings["8-bit in 16-bit arithmetic"] <= 160
    assert 295 <= crossings["8-bit in 8-bit arithmetic"] <= 330
    assert 74 <= crossings["4-bit in 16-bit arithmetic"] <= 80
    assert bare["I4"].predicted_condition == "weights 8-bit in 16-bit arithmetic"


def test_saturation_of_256_experts_by_hand(bare: dict[str, Verdict]) -> None:
    """Ridge x bytes / 2 tokens an expert x 256 / 8: 9,451 on an H100 in bf16, 3,849 on a TPU v5e in int8."""
    what = "batch that saturates 256 experts, top 8"
    assert values(bare["I6"], what, part="NVIDIA H100 SXM", weights="16-bit") == [pytest.approx(989.4 / 3.35 * 32)]
    v5e = {"part": "Google TPU v5e", "weights": "8-bit in 16-bit arithmetic"}
    assert values(bare["I6"], what, **v5e) == [pytest.approx(197e12 / 819e9 / 2 * 32)]
    assert "TPU v5e" in bare["I6"].predicted_condition


def test_attention_has_the_intensity_of_its_heads(bare: dict[str, Verdict]) -> None:
    for heads, low, high in (("1", 0.95, 1.0), ("4", 3.9, 4.0), ("8", 7.8, 8.0)):
        got = values(bare["I5"], "intensity of attention", cache="bf16", **{"query heads per KV head": heads})
        assert got
        assert all(low <= value <= high for value in got), "at every batch"


def test_the_intensity_of_a_step_by_hand(bare: dict[str, Verdict]) -> None:
    """69.5e9 weights of 2 FLOP and 4,096 tokens of 4 x 64 x 128 x 80 FLOP over 2 B a weight and 327,680 B a token."""
    weights = active_parameters(LLAMA_70B)
    flops, size = 2 * weights + 4096 * 4 * 64 * 128 * 80, 2 * weights + 4096 * 327_680
    one = values(bare["I2"], "intensity of decode at batch 1", weights="16-bit")
    assert one == [pytest.approx(flops / size, rel=1e-3)]
    assert values(bare["I1"], "intensity of decode", weights="16-bit", batch="1") == one
    (right,) = [c for c in bare["I2"].predicted if c.setting.get("prompt") == "99"]
    assert right.value == pytest.approx(95, rel=0.01), "with this prompt the published number would be right"


def test_the_experts_that_a_batch_reads_by_hand(bare: dict[str, Verdict]) -> None:
    hit = 256 * (1 - (1 - 8 / 256) ** 256)
    for what, value in (
        ("share of experts read at batch 1", 8 / 256),
        ("share of experts read at batch 256", hit / 256),
        ("bytes at batch 256 over a dense layer's of equal compute", hit / 8),
    ):
        assert values(bare["I7"], what, model="deepseek-v3") == [pytest.approx(value)]
    assert values(bare["I7"], "share of experts read at batch 1", model="mixtral-8x7b") == [0.25]


def test_room_for_a_cache_beside_weights_of_half_the_size_by_hand(bare: dict[str, Verdict]) -> None:
    """Three H100s: 240 GB less 70.55 over 240 less 141.1."""
    room = values(bare["T4"], "memory left for KV in INT8 over FP16", parts="3 x NVIDIA H100 SXM")
    assert room == [pytest.approx((240e9 - 70.554e9) / (240e9 - 141.107e9), rel=1e-3)]


def test_a_step_with_weights_of_half_the_size_by_hand(bare: dict[str, Verdict]) -> None:
    """At batch 64 the cache of 8,192 tokens for each request is larger than the weights."""
    weights, cache = active_parameters(LLAMA_70B), 64 * 8192 * 327_680
    for batch, expected in (("1", 0.5), ("64", (weights + cache) / (2 * weights + cache))):
        ratios = values(bare["T4"], "latency in INT8 over FP16", batch=batch)
        assert ratios[0] == pytest.approx(expected, rel=1e-2)


def test_weights_in_fewer_bits_by_hand(bare: dict[str, Verdict]) -> None:
    """At batch 1 the time of the largest projections is that of their bytes. Only fp8 has another peak than bf16."""
    sizes = values(bare["T5"], "weights of a 70B model in INT4")
    assert sizes == [pytest.approx(70.554e9 * bits / 8, rel=1e-4) for bits in (4, 4.125)]
    assert values(bare["T6"], "cache in FP8 over the cache in 16 bits") == [0.5]
    assert values(bare["T6"], "attention time with the cache in FP8 over 16 bits") == [pytest.approx(0.5, rel=1e-2)]
    eight, widened, four = "8-bit in 8-bit arithmetic", "8-bit in 16-bit arithmetic", "4-bit in 16-bit arithmetic"
    for kind, smaller, rate in ((eight, 2, 1979 / 989.4), (widened, 2, 1), (four, 4, 1)):
        assert values(bare["T7"], "memory of 16-bit weights over quantized ones", weights=kind) == [smaller]
        assert values(bare["T7"], "arithmetic rate over bf16's", weights=kind) == [pytest.approx(rate, rel=1e-3)]
        time = values(bare["T7"], "time of a layer with 16-bit weights over quantized ones", weights=kind)
        # the time counts the 2 B of scale for every 128 weights in 4 bits
        assert time == [pytest.approx({four: 2 / (0.5 + 2 / 128)}.get(kind, smaller), rel=1e-2)]


def test_the_price_of_an_output_token_falls_with_the_batch_by_hand(bare: dict[str, Verdict]) -> None:
    """A 64th of a step at batch 64, over a 2,048th of the time to read a prompt at the peak.

    Reading a prompt needs the logits of its last token alone. Batch 70 gives the geometric mean of 4 and 8.
    """
    what = "cost of an output token over an input token"
    weights = active_parameters(LLAMA_70B)
    layers = weights - 8192 * 128_256
    reading = (2 * 2048 * layers + 2 * 64 * 128 * 80 * 2048 * 2049) / 989.4e12 / 2048
    step = (2 * weights + 64 * 2048 * 327_680) / 3.35e12
    assert values(bare["T9"], what, batch="64") == [pytest.approx(step / 64 / reading, rel=0.01)]
    assert values(bare["T9"], what, batch="70") == [pytest.approx(32**0.5, rel=0.01)]


def test_one_more_request_adds_its_cache_and_little_else(bare: dict[str, Verdict]) -> None:
    """128 Ki tokens of 327,680 B beside 139 GB of weights."""
    what = {"context": "131072", "batch": "1"}
    (added,) = values(bare["T3"], "time added by one more request", **what)
    cache = 131_072 * 327_680
    assert added == pytest.approx(cache / (2 * active_parameters(LLAMA_70B) + cache), rel=0.01)


def test_throughput_is_the_batch_over_the_step(bare: dict[str, Verdict]) -> None:
    for context in ("128", "2048", "8192", "32768"):
        (rate,) = values(bare["T8"], "tokens per second at batch 64 over batch 1", context=context)
        (time,) = values(bare["T8"], "time per token at batch 64 over batch 1", context=context)
        assert rate * time == pytest.approx(64)
    assert time == pytest.approx((139.0 + 64 * 10.737) / (139.0 + 10.737), rel=1e-2), "the other bytes are the cache"


def test_money_by_hand(bare: dict[str, Verdict]) -> None:
    """$2.50 / 3,600 s x 141 GB / 3.35 TB/s x 1e6 = $29; the same over 64 and 256."""
    one = 2.5 / 3600 * 2 * active_parameters(LLAMA_70B) / 3.35e12 * 1e6
    for batch, slack in ((1, 0.01), (64, 0.03), (256, 0.07)):
        what = f"$ per million output tokens at batch {batch}"
        assert values(bare["M1"], what, context="0") == [pytest.approx(one / batch, rel=slack)]
    pair = (2 * active_parameters(LLAMA_70B) + 4 * 4096 * 327_680) / (2 * 3.35e12)  # a batch of 4 on two H100s
    what = "$ per million tokens at the largest batch on H100"
    assert values(bare["M2"], what, batch="as published", **{"$ an hour": "2.5"}) == [
        pytest.approx(2 * 2.5 / 3600 * pair / 4 * 1e6, rel=0.01)
    ]
    assert values(bare["M4"], "prefill GPUs saved by a hit rate of 56.3%", share="of all GPUs") == [
        pytest.approx(0.4504)
    ]


def test_energy_by_hand(bare: dict[str, Verdict]) -> None:
    """A GPU takes 700 W for 41.5 ms. Each LPU holds 230 MB of weights, one byte each, and reads them at 80 TB/s in
    2.9 us."""
    assert values(bare["M5"], "energy of a GPU per token", batch="1") == [pytest.approx(700 * 41.5e-3, rel=0.01)]
    lpu = find("groq-lpu")
    assert lpu.power
    chips = math.ceil(active_parameters(LLAMA_70B) / 230e6)
    assert values(bare["M5"], "energy of LPUs per token") == [
        pytest.approx(chips * lpu.power.value * 230e6 / 80e12, rel=1 / chips)
    ]


def test_the_energy_of_an_lpu_at_its_least_time_refutes_nothing(bare: dict[str, Verdict]) -> None:
    assert [c.bound for c in bare["M5"].predicted if c.setting["machine"] == "LPU"] == ["lower"]
    assert bare["M5"].predicted_condition == (
        "machine GPU, batch 1 to 3 (tried 1, 2, 3; next tried: 8); a lower bound leaves open: energy of LPUs per token"
    )
    assert "energy of LPUs per token at least 0.187 J (left open)" in explain(bare["M5"])


def test_an_upper_bound_of_the_wafer_shows_only_where_the_gpu_is_ahead(bare: dict[str, Verdict]) -> None:
    wafer = [c for c in (*bare["H1"].predicted, *bare["H2"].predicted) if "H100 batch" in c.setting]
    assert {c.bound for c in wafer} == {"upper"}
    assert bare["H1"].condition == (
        "the SRAM, bandwidth or H100's bandwidth; "
        "an upper bound leaves open: tokens per second and watt of WSE-3 over the H100"
    )
    assert [(c.setting["context"], c.value < 1) for c in bare["H2"].predicted if c.holds] == [("128", True)]
    assert not [c for c in bare["H2"].predicted if c.holds is False]
    assert "leaves open: tokens per watt of the wafer over a GPU at batch 1" in bare["H2"].condition


def test_the_crossover_lies_at_the_latest_where_the_bound_of_the_wafer_falls_to_the_gpu(
    bare: dict[str, Verdict],
) -> None:
    """At 128 tokens the wafer's bound is 191 times at batch 1. If a step took the time of its weights alone, 191 users
    would catch up. With their caches 266 users do."""
    latest = latest_crossover(128, 3811)
    assert advantage(latest - 1, 128) > 1 > advantage(latest + 1, 128)
    assert advantage(1, 128) < latest
    told = explain(bare["H2"])
    assert f"at 128 tokens the GPU is ahead from a batch of {latest} at the latest" in told
    assert told.count("at the latest") == 1, "at longer contexts the bound stays above 1 at every batch that fits"


def test_reading_a_prompt_cannot_take_more_than_the_peak(bare: dict[str, Verdict]) -> None:
    """1,024 tokens, the logits of the last one alone, and each token attends to those before it."""
    layers, head = 80 * 855_638_016, 8192 * 128_256
    reading = 1024 * 2 * layers + 2 * head + 4 * 64 * 128 * 80 * 1024 * 1025 / 2
    writing = 256 * (2 * (layers + head) + 4 * 64 * 128 * 80 * 1024)
    step = decode(LLAMA_70B, batch=256, context=1024)
    assert reading <= 989.4e12 * step.prefill_seconds
    busy = step.prefill_seconds + step.seconds
    assert values(bare["I10"], "compute wasted where prefill and decode share a GPU", batch="256") == [
        pytest.approx(1 - (reading + writing) / (989.4e12 * busy), rel=1e-3)
    ]


def test_the_prompt_that_fills_the_arithmetic_of_cpx_by_hand(bare: dict[str, Verdict]) -> None:
    """A byte of FP4 holds two weights, which do 4 FLOP per token of the prompt. 20 PFLOP/s over 2 TB/s need 10,000."""
    what = "share of its peak that CPX reaches in prefill"
    for tokens, share in (("512", 0.2048), ("2048", 0.8192), ("8192", 1)):
        assert values(bare["H3"], what, prompt=tokens) == [pytest.approx(share)]


def test_numbers_that_fit_at_no_setting_are_named(bare: dict[str, Verdict]) -> None:
    """The vendor announces 22 TB/s and 35 PFLOP/s, 7% and 5.1% more than the 20.5 and 33.3 of the claim."""
    assert bare["H3"].status == "DEPENDS"
    assert bare["H3"].condition.endswith(
        "; no setting fits bandwidth of NVIDIA Rubin R200, FP4 peak of NVIDIA Rubin R200"
    )


def test_the_formula_of_m3_is_right_for_one_user_and_wrong_for_long_prompts(bare: dict[str, Verdict]) -> None:
    """64 requests of 8,192 tokens in and 256 out: a prompt takes 5.2% of the time of all decode steps. The model
    divides decode alone by 64, and the formula divides both."""
    what = "cost by the formula over cost by the model"
    assert all(v == pytest.approx(1) for v in values(bare["M3"], what, batch="1"))
    weights = active_parameters(LLAMA_70B)
    reading = (2 * 8192 * (weights - 8192 * 128_256) + 2 * 64 * 128 * 80 * 8192 * 8193) / 989.4e12
    writing = 256 * (2 * weights + 64 * 8192 * 327_680) / 3.35e12
    for hit in (0, 0.5, 0.99):
        unread = (1 - hit) * reading
        (ratio,) = values(bare["M3"], what, batch="64", request="8192 in and 256 out", **{"hit rate": f"{hit:g}"})
        assert ratio == pytest.approx((unread + writing) / 64 / (unread + writing / 64), rel=1e-2)
        assert hit > 0 or ratio < 0.3


def test_a_70b_token_takes_42_ms_of_bandwidth_but_does_not_fit_one_h100(bare: dict[str, Verdict]) -> None:
    assert values(bare["T1"], "time per token", capacity="set aside") == [pytest.approx(41.5e-3, rel=0.01)]
    assert values(bare["T1"], "16-bit weights of 70B over the memory of one part") == [pytest.approx(1.764, rel=1e-3)]
    assert bare["T1"].predicted_status == "DEPENDS"
