"""Claims judged by records: other records give other verdicts, and records that do not count change none."""

from __future__ import annotations

from itertools import product

import pytest

from bench.judge.claims import Verdict, explain, judge, scorecard
from bench.judge.claims.common import LLAMA_70B
from bench.judge.claims.intensity import I1, bracketed
from bench.judge.claims.reading import MeasuredPart, pairs
from bench.records import MAY_BE_TOO_SHORT, Record
from kernels.models import active_parameters
from tests.support.claim_records import (
    GATE,
    READ,
    attend,
    experts,
    full_run,
    gemm,
    host_copy,
    l2_read,
    layer,
    prompt,
    read,
    record,
    run,
)


def test_a_slow_gemm_moves_the_measured_ridge() -> None:
    assert judge("I3", [run(read(3.35e12), gemm(989e12))]).status == "HOLDS"
    slow = judge("I3", [run(read(3.0e12), gemm(600e12))])
    assert slow.status == "DEPENDS"
    assert slow.condition == "ceilings datasheet (predicted; nothing measured fits)"
    assert slow.measured
    assert slow.measured[0].value == pytest.approx(200)
    assert {i.op for i in slow.measured[0].records} == {"stream", "gemm_peak"}


def test_the_knee_of_a_sweep_is_found_and_decides() -> None:
    batches = (1, 16, 64, 128, 192, 256, 384, 512)
    sweep = [layer(B, peak=900e12) for B in batches]
    verdict = judge("I4", [run(*sweep)])
    assert verdict.measured
    assert verdict.measured[0].value == pytest.approx(300, rel=0.03), "900 TFLOP/s over 3 TB/s"
    assert verdict.status == "DEPENDS", "the measured bf16 does not fit, and 8-bit weights are still only predicted"
    slow = judge("I4", [run(*(layer(B, peak=450e12) for B in batches))])
    assert slow.measured
    assert slow.measured[0].holds, "half the arithmetic crosses at 150"
    assert "16-bit" in slow.condition
    assert judge("I4", [run(*sweep[:4])]).status == "NOT MEASURED", "the sweep ends before the knee"


def test_a_token_at_the_roof_and_at_half_of_it() -> None:
    good = judge("T1", [run(layer(1))])
    assert good.status == "DEPENDS"
    assert good.condition == (
        "where the part's memory may be too small for the weights; "
        "no setting fits 16-bit weights of 70B over the memory of one part"
    )
    assert good.measured
    assert good.measured[0].value == pytest.approx(2 * active_parameters(LLAMA_70B) / READ, rel=0.01)
    bad = judge("T1", [run(layer(1, bandwidth=1.5e12))])
    assert bad.status == "FAILS"
    assert "The closest measured value is 92.7 ms, 122% above it; the tolerance is 15%." in explain(bad)


@pytest.mark.parametrize("flag", sorted(MAY_BE_TOO_SHORT))
def test_the_fastest_implementation_counts_and_times_that_may_be_too_short_do_not(flag: str) -> None:
    fast, slow = layer(1, impl="ours"), layer(1, impl="torch", bandwidth=1e12)
    short = layer(1, impl="cached", bandwidth=30e12, flags=[flag])
    verdict = judge("T1", [run(fast, slow, short)])
    assert verdict.measured
    assert [i.impl for i in verdict.measured[0].records] == ["ours"]
    assert judge("T1", [run(short)]).status == "NOT MEASURED"


def test_a_cache_of_half_the_bytes_must_take_half_the_time() -> None:
    assert judge("T6", [run(attend(64, 8), attend(64, 8, kv="fp8"))]).status == "HOLDS"
    slow = judge("T6", [run(attend(64, 8), attend(64, 8, kv="fp8", time=1.8))])
    assert slow.status == "FAILS"
    assert judge("T6", [run(attend(64, 8))]).status == "NOT MEASURED"


def test_intensity_is_bracketed_by_the_measured_roof() -> None:
    verdict = judge("I5", [run(read(), attend(32, 32), attend(64, 8))])
    assert verdict.measured
    by_group = {c.setting["query heads per KV head"]: c.value for c in verdict.measured}
    assert by_group["1"] == pytest.approx(1, rel=0.01)
    assert by_group["8"] == pytest.approx(8, rel=0.01)
    slow = judge("I5", [run(read(), attend(32, 32, time=4))])
    assert slow.status == "NOT MEASURED", "at a quarter of the roof the intensity may be anything from 0.25 to 1 FLOP/B"
    assert "known without counters" in slow.reason
    counted = attend(32, 32, time=4, counters={"dram_read": 2 * attend(32, 32).bytes, "dram_written": 0.0})
    by_counter = judge("I5", [run(counted)])
    assert by_counter.measured
    assert [c.value for c in by_counter.measured] == [pytest.approx(0.5)], "twice the bytes, half the intensity"


@pytest.mark.parametrize(
    ("intensity", "slower", "settled"),
    [
        (1.5, 1.2, True),  # 1.25 to 1.5 lies in the published 1 to 2
        (0.5, 4.0, True),  # the bracket lies below
        (8.0, 2.0, True),  # the bracket lies above
        (8.0, 5.0, False),  # 1.6 to 8
        (4.0, 8.0, False),  # 0.5 to 4
        (0.95, 2.0, False),  # 0.48 to 0.95, which is within the tolerance of 1
    ],
)
def test_a_bracket_decides_inside_or_outside_of_the_range(intensity: float, slower: float, settled: bool) -> None:
    measured = MeasuredPart(run(read()))
    size = 1 << 30
    found = record("ffn_gemv", {"B": 1}, slower * size / READ, size=size, flops=intensity * size)
    ends = [c.value for c in bracketed(I1.published[0], measured, found)]
    assert ends == ([pytest.approx(intensity / slower), pytest.approx(intensity)] if settled else [])


def test_shared_heads_are_judged_by_attention_time() -> None:
    good = judge("K4", [run(attend(32, 32), attend(32, 8))])
    assert good.measured
    assert [c.value for c in good.measured] == [pytest.approx(4)]
    bad = judge("K4", [run(attend(32, 32), attend(32, 8, time=3))])
    assert bad.measured
    assert not bad.measured[0].holds


def shares(verdict: Verdict) -> dict[tuple[str, str], float]:
    """The measured shares of the peak that prefill reaches, by prompt and by peak."""
    what = "share of the peak that prefill reaches"
    found = [c for c in verdict.measured or () if c.published.what == what]
    return {(c.setting["prompt"], c.setting["of"]): c.value for c in found}


def test_prefill_is_what_a_prompt_reaches_of_the_datasheet_and_of_the_best_gemm() -> None:
    """A layer of 70B: 2 x 855,638,016 FLOP a token at 700 TFLOP/s, and 4 x 8192 x 2049 / 2 of attention at 350."""
    weights, scores = 2 * 2048 * 855_638_016, 4 * 8192 * 2048 * 2049 // 2
    reached = (weights + scores) / (weights / 700e12 + scores / 350e12)
    good = judge("I10", [run(read(), gemm(), layer(1), layer(64), *prompt(2048))])
    assert shares(good) == {
        ("2048", "the best measured GEMM"): pytest.approx(reached / 700e12),
        ("2048", "the datasheet's peak"): pytest.approx(reached / 989.4e12),
    }
    assert good.status == "DEPENDS"
    assert "prefill, of the best measured GEMM" in good.condition
    assert {i.op for c in good.measured or () for i in c.records} == {"prefill", "gemm_peak", "ffn_gemv"}
    slow = judge("I10", [run(read(), gemm(), layer(1), layer(64), *prompt(2048, peak=350e12))])
    assert "of the best measured GEMM" not in slow.condition
    assert all(not c.holds for c in slow.measured or () if c.setting.get("prompt") == "2048")


def test_what_is_wasted_follows_the_prompt_measured_nearest_to_1024_tokens() -> None:
    """A prompt at half the datasheet's peak, and a layer at 3 TB/s with 2 B FLOP for the 2 bytes of a weight."""

    def wasted(*prompts: Record) -> float:
        verdict = judge("I10", [run(read(), gemm(), layer(8), *prompts)])
        return next(c.value for c in verdict.measured or () if c.setting["phase"] == "shared")

    half = prompt(2048, peak=989.4e12 / 2, attention=989.4e12 / 2)
    decoding = layer(8).flops / layer(8).samples_s[1] / 989.4e12
    weights, per_layer = 80 * 855_638_016, 4 * 64 * 128 * 80
    reading = 1024 * 2 * weights + 2 * 8192 * 128_256 + per_layer * 1024 * 1025 / 2
    writing = 256 * (2 * weights + 2 * 8192 * 128_256 + per_layer * 1024)
    by_hand = 1 - (reading + writing) / (reading / 0.5 + writing / decoding)
    assert wasted(*half) == pytest.approx(by_hand, rel=1e-3)
    assert wasted(*half, *prompt(8192)) == wasted(*half, *prompt(512)) == wasted(*half)


def test_without_a_prompt_prefill_is_not_measured() -> None:
    gate, heads = prompt(2048)
    for missing, records in (("attention of 128 wide heads", [gate]), ("a llama-3.1-70b projection", [heads])):
        verdict = judge("I10", [run(read(), gemm(), layer(1), *records)])
        assert verdict.status == "NOT MEASURED"
        assert missing in verdict.reason
    assert "`prefill` of 2048 tokens" in judge("T9", [run(layer(1), attend(64, 8, model="llama-3.1-70b"))]).reason


def test_an_output_token_is_set_against_a_measured_prompt() -> None:
    """Batch 64: weights / 64 and 2,048 tokens of 327,680 B at 3 TB/s, against 2 FLOP a weight at 700 TFLOP/s."""
    layers = [layer(B) for B in (1, 64)]
    cache = attend(64, 8, model="llama-3.1-70b")
    good = judge("T9", [run(*layers, cache, *prompt(2048, attention=700e12))])
    assert good.measured
    found = {c.setting["batch"]: c for c in good.measured}
    reading = 80 * (2 * 855_638_016 + 4 * 8192 * 2049 / 2) / 700e12
    writing = layers[1].samples_s[1] / (GATE[0] * GATE[1]) * active_parameters(LLAMA_70B) / 64 + 2048 * 327_680 / READ
    assert found["64"].value == pytest.approx(writing / reading)
    assert found["64"].holds
    assert {i.op for i in found["64"].records} == {"ffn_gemv", "attention_decode", "prefill"}
    slow = judge("T9", [run(*layers, cache, *prompt(2048, peak=175e12))])
    assert "64" not in slow.condition.replace("batch", "").split()
    assert "64" in good.condition.replace("batch", "").split()


def test_an_fp8_cache_is_set_against_a_bf16_one_in_the_same_case() -> None:
    narrow = attend(64, 8, kv="fp8")
    for other in ({"order": "ordered"}, {"softcap": 30.0}, {"dtype": "fp32"}):
        assert judge("T6", [run(attend(64, 8, **other), narrow)]).status == "NOT MEASURED", other
    assert judge("T6", [run(attend(64, 8, model="llama-3.1-70b"), narrow)]).status == "HOLDS"


def test_requests_are_added_in_one_case() -> None:
    one, more = attend(64, 8, B=1), attend(64, 8, B=16)
    assert [c.value for c in judge("T3", [run(one, more)]).measured or ()] == [pytest.approx(1.0)], "each adds its time"
    (weights,) = judge("T3", [run(layer(1, bandwidth=2e12), layer(16), layer(64, bandwidth=1e12))]).measured or ()
    assert weights.value == pytest.approx((layer(64).bytes / layer(1).bytes * 2 - 1) / 63)
    assert not judge("T3", [run(one, attend(64, 8, B=16, layout="HND"))]).measured
    assert not judge("T3", [run(one, attend(32, 8, B=16))]).measured


def test_a_larger_batch_is_measured_by_layers_and_attention() -> None:
    """All weights of a step take the gate's time per weight, and each request adds the time of its own cache."""
    cache = attend(64, 8, B=16, T=8192, model="llama-3.1-70b")
    rate, step = judge("T8", [run(layer(1), layer(64, bandwidth=2e12), cache)]).measured or ()
    per_request = 80 * cache.seconds / 16

    def seconds(batch: int, bandwidth: float) -> float:
        of_layer = layer(batch, bandwidth=bandwidth).seconds or 0.0
        return of_layer / (GATE[0] * GATE[1]) * active_parameters(LLAMA_70B) + batch * per_request

    one, many = seconds(1, READ), seconds(64, 2e12)
    assert (rate.value, step.value) == (pytest.approx(64 * one / many), pytest.approx(many / one))


def test_verifying_four_tokens_is_a_layer_at_four_times_the_batch() -> None:
    (found,) = judge("T10", [run(layer(1), layer(4, bandwidth=2e12))]).measured or ()
    assert found.value == pytest.approx((layer(4).bytes / 2e12) / (layer(1).bytes / READ))
    assert found.setting["batch"] == "1"


def test_a_window_is_followed_in_one_case() -> None:
    short, long = attend(64, 8, window=4096), attend(64, 8, T=32768, window=4096)
    assert judge("K8", [run(short, long)]).measured
    assert not judge("K8", [run(short, attend(64, 8, T=32768, window=4096, softcap=30.0))]).measured


def test_experts_are_compared_in_one_format_and_at_the_batch_nearest_256() -> None:
    """8 / 1 in bf16 and 2.2 / 0.25 in 4 bits. Batch 1,024 does not count, because arithmetic takes longer there."""
    bf16 = [experts(B, time=time) for B, time in ((1, 1e-3), (192, 8e-3), (1024, 40e-3))]
    int4 = [experts(B, "int4", time=time) for B, time in ((1, 0.25e-3), (256, 2.2e-3))]
    verdict = judge("I7", [run(*bf16, *int4)])
    assert [c.value for c in verdict.evidence] == [pytest.approx(8), pytest.approx(8.8)]
    assert ["192" in c.how and "bf16" in c.how for c in verdict.evidence] == [True, False]
    assert judge("I7", [run(bf16[0], experts(32), int4[1])]).status == "NOT MEASURED", "no format has both"


def test_saturation_as_measured_replaces_what_was_predicted_of_the_part() -> None:
    """8,192 tokens take 2.1 times as long as 256, which read every expert: 8,192 / 2.1 = 3,901."""
    times = ((1, 1e-4), (256, 1e-3), (8192, 2.1e-3))
    sweep = [experts(B, weights, time=time) for weights in ("bf16", "int4") for B, time in times]
    verdict = judge("I6", [run(*sweep)])
    assert [c.value for c in verdict.evidence] == [pytest.approx(8192 / 2.1)] * 2
    replaced = [c.setting for c in verdict.predicted if c.replaced_by(verdict.evidence)]
    assert replaced == [c.setting for c in verdict.evidence]
    assert {setting["part"] for setting in replaced} == {"NVIDIA H100 SXM"}


def test_the_middle_of_two_is_between_them() -> None:
    """The median of 1.2 and 2.6 is 1.9, which is less than 2. The median of 0.5 and 0.9 is 0.7."""
    naive = [layer(B, impl="naive", bandwidth=READ / by) for B, by in ((1, 1.2), (8, 2.6))]
    software = judge("M6", [run(layer(1), layer(8), *naive)])
    assert [c.value for c in software.evidence] == [pytest.approx(1.9)]
    assert software.status == "FAILS"
    times = ((8192, "", 1), (8192, "fp8", 1), (16384, "", 1), (16384, "fp8", 1.8))
    caches = [attend(64, 8, T=T, kv=kv, time=time) for T, kv, time in times]
    assert [c.value for c in judge("T6", [run(*caches)]).evidence] == [pytest.approx(0.7)]
    h200 = run(read(READ), layer(1), layer(8, bandwidth=1.5 * READ), device="NVIDIA H200")
    across = judge("I12", [run(read(READ), layer(1), layer(8)), h200])
    assert [c.value for c in across.evidence] == [pytest.approx(1.25)]


def test_joules_are_the_power_of_the_layers_and_the_time_of_all_weights_by_hand() -> None:
    """A layer with a quarter of the gate's weights takes a fifth of the time of both: 600 W and 300 W make 540 W."""
    weights, few = 2 * active_parameters(LLAMA_70B), 28672 * 8192 // 4
    case = {"model": "llama-3.1-70b", "B": 8, "N": few // 8192, "K": 8192, "dtype": "bf16", "weights": "bf16"}
    power = {"power_w": 300.0}
    small = record("ffn_gemv", case, layer(8).samples_s[1] / 4, size=2 * few, flops=16 * few, telemetry=power)
    watched = [layer(1, telemetry={"power_w": 500.0}), layer(8, telemetry={"power_w": 600.0}), small]
    verdict = judge("M5", [run(*watched, layer(2))])
    assert verdict.measured
    assert {c.setting["batch"]: c.value for c in verdict.measured} == {
        "1": pytest.approx(500 * weights / READ, rel=1e-3),
        "8": pytest.approx(540 * weights / READ / 8, rel=1e-2),
    }
    assert judge("M5", [run(layer(1))]).status == "NOT MEASURED", "the power was not read"


def test_layers_in_fewer_bits_are_set_against_16_by_hand() -> None:
    """At one rate of bytes, 8 and 4 bits take 1/2 and 1/4 of the time. At half the rate 8 bits save nothing."""
    fast = judge("T7", [run(layer(1), layer(1, "fp8"), layer(1, "int4"))])
    assert [c.value for c in fast.measured or ()] == [pytest.approx(2, rel=1e-2), pytest.approx(4, rel=1e-2)]
    assert all(c.holds for c in fast.measured or ())
    slow = judge("T7", [run(layer(1), layer(1, "int8", bandwidth=READ / 2), layer(8, "int4"))])
    assert [(c.value, c.holds) for c in slow.measured or ()] == [(pytest.approx(1, rel=1e-2), False)]
    assert judge("T7", [run(layer(1), layer(8, "int4"))]).measured is None, "the two layers have different batches"


def test_drafts_are_set_against_one_token_in_the_same_case() -> None:
    """Only q_len may differ, so a record of another context has no partner."""
    one, four, elsewhere = attend(64, 8), attend(64, 8, q_len=4, time=1.1), attend(64, 8, T=4096, q_len=4)
    verdict = judge("T10", [run(one, four, elsewhere)])
    assert verdict.measured
    assert [(c.value, c.setting["draft"]) for c in verdict.measured] == [(pytest.approx(1.1), "4")]
    assert judge("T10", [run(one, attend(64, 8, q_len=4, time=1.5))]).measured != verdict.measured
    assert judge("T10", [run(one, elsewhere)]).status == "NOT MEASURED"


def test_a_pair_is_the_fastest_of_either_label_in_one_group() -> None:
    slow, fast, wide, alone = attend(64, 8, time=2), attend(64, 8), attend(64, 8, kv="fp8"), attend(32, 8, kv="fp8")
    found = pairs([slow, fast, wide, alone], lambda r: r.case["kv"], "", "fp8", "kv")
    assert found == [(fast, wide)]
    assert pairs([slow, wide], lambda r: r.case["kv"], "fp8", "", "kv") == [(wide, slow)]


def test_elasticities_come_from_ours_alone() -> None:
    records = []
    for B, N in product((1, 8, 64), (4096, 8192, 28672)):
        case = {"B": B, "N": N, "K": 8192, "dtype": "bf16", "weights": "bf16"}
        size = 2 * N * 8192
        records.append(record("ffn_gemv", case, size / READ, size=size, flops=B * size))
    assert judge("I11", [run(*records)]).measured
    fitted = [
        c for c in judge("I11", [run(*records)]).measured or () if c.published.what == "elasticity of time to FLOPs"
    ]
    assert all(c.holds for c in fitted)
    assert judge("I11", [run(*records[:2])]).status == "NOT MEASURED"


def test_software_counts_from_twofold() -> None:
    assert judge("M6", [run(layer(1), layer(1, impl="naive", bandwidth=1e12))]).status == "HOLDS"
    assert judge("M6", [run(layer(1), layer(1, impl="torch", bandwidth=2.9e12))]).status == "FAILS"
    assert judge("M6", [run(layer(1))]).status == "NOT MEASURED"


def test_l2_hit_rates_come_from_counters_alone() -> None:
    big, small = gemm(), layer(1, counters={"l2_hit_rate": 0.2})
    assert "counters" in judge("I8", [run(big, small)]).reason
    counted = gemm()
    counted.counters["l2_hit_rate"] = 0.9
    assert judge("I8", [run(counted, small)]).status == "HOLDS", "1 - 0.2 / 0.9 = 78%"
    unread = layer(8, counters={"l2_hit_rate": None})
    assert judge("I8", [run(counted, unread)]).status == "NOT MEASURED"
    assert len(judge("I8", [run(counted, unread, small)]).evidence) == 1
    gate, heads = prompt(2048)
    gate.counters["l2_hit_rate"], heads.counters["l2_hit_rate"] = 0.3, 0.4
    of_prompt = judge("I8", [run(counted, gate, heads, small)])
    assert of_prompt.status == "FAILS", "1 - 0.2 / 0.4 = 50%: a prompt counts, and any other GEMM only without one"
    assert {i.op for c in of_prompt.measured or () for i in c.records} == {"prefill", "ffn_gemv"}


def test_tiers_of_memory_are_measured_one_by_one() -> None:
    """L2 over HBM is 6 / 3. HBM over the link is 3000 / 50 at the larger copy. 64 KiB arrive in 3.3 us."""

    def measured(*records: Record) -> dict[str, float]:
        return {c.published.what: c.value for c in judge("H6", [run(read(), *records)]).measured or ()}

    l2, link = "L2 bandwidth over HBM bandwidth", "HBM bandwidth over the host link's"
    reach = "time to fetch a little from host memory"
    assert judge("H6", [run(read())]).status == "NOT MEASURED"
    assert measured(l2_read()) == {l2: pytest.approx(2)}
    assert measured(host_copy("d2h", start=0)) == {link: pytest.approx(60)}
    small, swap = host_copy(size=1 << 16), host_copy("swap_out", bandwidth=1e12)
    found = measured(l2_read(), host_copy(start=0), small, swap)
    assert found == {l2: pytest.approx(2), link: pytest.approx(60), reach: pytest.approx(2e-6 + (1 << 16) / 50e9)}
    verdict = judge("H6", [run(read(), l2_read(), host_copy(), small)])
    assert not [c for c in verdict.measured or () if not c.holds]
    slow = judge("H6", [run(read(), host_copy(), host_copy(size=1 << 16, start=2e-3))])
    assert [c.published.what for c in slow.measured or () if not c.holds] == [reach]


def test_what_cannot_be_measured_says_why() -> None:
    full = run(read(), gemm(), *(layer(B) for B in (1, 4, 16, 64, 256)), attend(64, 8))
    verdict = judge("H7", [full])
    assert verdict.status == "NOT MEASURED"
    assert "area" in verdict.reason


def test_a_whole_run_judges_most_claims_and_every_value_names_its_records() -> None:
    verdicts = scorecard([full_run()])
    judged = {v.claim.id for v in verdicts if v.status != "NOT MEASURED"}
    assert judged >= {v.claim.id for v in verdicts if not v.claim.needs_measurement}
    measured = "I1 I2 I3 I4 I5 I9 I10 T1 T3 T4 T6 T7 T8 T9 T10 K4 K8 M1"
    assert judged >= set(measured.split())
    for verdict in verdicts:
        for comparison in verdict.measured or ():
            assert comparison.records
            assert all(i.run_id == "r1" for i in comparison.records)


def test_the_same_records_give_the_same_verdicts() -> None:
    assert scorecard([full_run()]) == scorecard([full_run()])
