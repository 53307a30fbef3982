"""The step model against arithmetic written out by hand, and against what must hold for every model and part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.devices import find
from bench.errors import BadRequest
from bench.predict.step_model import NotPublished, step
from bench.predict.step_work import expected_experts, shares_evenly
from kernels.models import MODELS, active_parameters, model, parameters
from kernels.op import discover
from tests.support.properties import given, settings, st

LLAMA = model("llama-3.1-70b")
H100 = find("h100-sxm")
READ_PER_STEP = 69_501_714_432
"""All weights of Llama-3.1-70B without its embedding table: 80 x (2 x 8192 x 8192 + 2 x 1024 x 8192 + 3 x 28672 x 8192)
+ 128256 x 8192."""


def at(**changes):
    given = {"device": H100, "batch": 1, "context": 4096}
    return step(changes.pop("shape", LLAMA), **(given | changes))


# Time per token (T1, T2)


@pytest.mark.parametrize(
    ("key", "bandwidth", "published_ms"),
    [("h100-sxm", 3.35e12, 41.8), ("h200", 4.8e12, 29), ("b200", 8e12, 17.5), ("a100-80", 2.0e12, 70)],
)
def test_weights_alone_give_the_published_times(key, bandwidth, published_ms):
    """The published figures round 139 GB up to 140 and the A100's 2.039 TB/s down to 2.0."""
    spec = find(key)
    assert spec.memory_bandwidth.value == pytest.approx(bandwidth, rel=0.02)
    spec = replace(spec, memory_bandwidth=replace(spec.memory_bandwidth, value=bandwidth))
    predicted = at(device=spec)
    assert predicted.weight_seconds == pytest.approx(2 * READ_PER_STEP / bandwidth)
    assert predicted.weight_seconds * 1e3 == pytest.approx(published_ms, rel=0.01)


def test_kv_cache_comes_on_top():
    predicted = at(batch=8)
    assert predicted.kv_seconds == pytest.approx(8 * 4096 * 327_680 / 3.35e12)  # 3.2 ms on 41.5
    activations = predicted.seconds - predicted.weight_seconds - predicted.kv_seconds
    assert 0 < activations < 0.01 * predicted.seconds


@pytest.mark.parametrize("name", [name for name, shape in MODELS.items() if not shape.is_moe])
def test_a_dense_step_reads_every_weight_but_the_embedding_once(name):
    shape = MODELS[name]
    embedding = 0 if shape.tied_embeddings else shape.vocab * shape.hidden
    read = at(shape=shape, context=128).weight_seconds * 3.35e12
    assert read == pytest.approx(2 * (parameters(shape) - embedding))


# Intensity and ridge (I3 to I7)


@pytest.mark.parametrize("weights", ["bf16", "fp8"])
def test_projections_run_at_about_two_flop_per_weight_and_row(weights):
    gate_up = at(weights=weights).op("gate_up")
    assert gate_up.intensity == pytest.approx({"bf16": 1, "fp8": 2}[weights], rel=1e-3)


@pytest.mark.parametrize("batch", [1, 16, 512])
@pytest.mark.parametrize(("name", "flop_per_byte"), [("llama-2-7b", 1), ("llama-3.1-70b", 8), ("llama-3.1-8b", 4)])
def test_attention_intensity_is_the_group_size_whatever_the_batch(name, flop_per_byte, batch):
    """4 H_q D T FLOP over 4 H_kv D T bytes in bf16: H_q / H_kv."""
    attention = at(shape=model(name), batch=batch).op("attention")
    assert attention.intensity == pytest.approx(flop_per_byte, rel=0.01)
    assert attention.crossing_batch is None


@pytest.mark.parametrize(
    ("weights", "crossing"),
    [
        ("bf16", 309),  # E = 57344 x 8192: 2 E / (2 E / 295.3 - 2 (57344 + 8192)) = 308.0
        ("w8a16", 155),  # half of it: 154.09 with the scales of rows; the published "about 150"
        ("int4", 80),  # a quarter, and 2 B for 128 weights: 33/64 E / (2 E / 295.3 - 131072) = 79.41
        ("fp8", 323),  # (E + 4 x 57344) / (2 E / 590.7 - 131072) = 322.1: twice the pipe, half the bytes
    ],
)
def test_ffn_crossing_batch_by_precision(weights, crossing):
    assert at(weights=weights).op("gate_up").crossing_batch == crossing


def test_crossing_batch_is_where_the_bound_changes():
    for name in ("qkv", "o", "gate_up", "down", "lm_head"):
        crossing = at().op(name).crossing_batch
        assert at(batch=crossing - 1).op(name).bound == "memory"
        assert at(batch=crossing).op(name).bound == "mma_bf16"


def test_moe_saturates_when_every_expert_has_a_ridge_of_tokens():
    """Each expert gets B k / E tokens: 32 times the dense batch for 256 experts and top-8."""
    deepseek = model("deepseek-v3")
    for weights, size in (("bf16", 2), ("w8a16", 1)):
        pure = 295.3 * size / 2 * 256 / 8  # 9,450 in bf16, 4,725 in w8a16
        crossing = at(shape=deepseek, weights=weights).op("experts_gate_up").crossing_batch
        assert pure < crossing < 1.2 * pure
    v5e = find("tpu-v5e")  # 197 TFLOP/s over 819 GB/s: 240.5
    assert v5e.ridge("mma_bf16").value / 2 * 256 / 8 == pytest.approx(3840, rel=0.01)  # the published 3,840


def test_experts_hit():
    shape = model("deepseek-v3")
    assert expected_experts(shape, 1) == pytest.approx(8)
    assert expected_experts(shape, 2) == pytest.approx(8 + 8 * (1 - 8 / 256))
    assert expected_experts(shape, 10_000) == pytest.approx(256)
    mixtral = model("mixtral-8x7b")
    assert expected_experts(mixtral, 4) == pytest.approx(8 * (1 - 0.75**4))  # 5.47


def test_moe_reads_few_experts_at_batch_1_and_all_of_them_at_a_large_one():
    shape = model("deepseek-v3")
    bandwidth = H100.memory_bandwidth.value
    one, many = (at(shape=shape, weights="fp8", batch=batch) for batch in (1, 4096))
    scales = 2e-3  # 4 B for a row, of at least 2048 columns nearly everywhere
    assert active_parameters(shape) < one.weight_seconds * bandwidth < (1 + scales) * active_parameters(shape)
    everything = parameters(shape) - shape.vocab * shape.hidden
    assert everything < many.weight_seconds * bandwidth < (1 + scales) * everything
    dense_of_equal_compute = active_parameters(shape)
    assert many.weight_seconds * bandwidth > 18 * dense_of_equal_compute


# The step model itself


def test_every_request_gets_one_token_a_step():
    predicted = at(batch=16)
    assert predicted.tokens_per_second_per_user == pytest.approx(1 / predicted.seconds)
    assert predicted.tokens_per_second == pytest.approx(16 / predicted.seconds)


def test_the_step_is_bound_by_what_most_of_it_waits_for():
    """At batch 2048 and short contexts, projections wait for the tensor cores and attention for its cache."""
    assert at().bound == "memory"
    crowded = at(batch=2048, context=64)
    assert crowded.op("attention").bound == "memory"
    assert crowded.bound == "mma_bf16"


def test_prefill_by_hand():
    """4096 tokens: 2 x 68.45e9 weights x 4096, attention 4 x 8192 x 80 x 4096^2 / 2, at 989.4 TFLOP/s."""
    weights = 2 * (READ_PER_STEP - 128256 * 8192) * 4096
    attention = 4 * 64 * 128 * 80 * 4096 * 4097 / 2
    predicted = at()
    assert predicted.prefill_seconds == pytest.approx((weights + attention) / 989.4e12, rel=0.01)
    (over,) = [op for op in predicted.prefill_ops if op.name == "attention"]
    assert over.work.total_flops == attention
    assert over.work.bytes == 2 * 4096 * 80 * (2 * 8192 + 2 * 1024)  # Q in, O out; K and V once


def test_tensor_parallel_step_by_hand():
    """Ring all-reduce: 2 x 80 x 2 (2 - 1)/2 x 8192 x 2 B = 2.62 MB over 450 GB/s."""
    alone, pair = at(), at(devices=2)
    reduce = pair.op("all_reduce")
    assert reduce.link_bytes == 2 * 80 * 8192 * 2
    assert (reduce.bound, reduce.seconds) == ("link", pytest.approx(2_621_440 / 450e9))
    assert pair.seconds - reduce.seconds == pytest.approx(alone.seconds / 2, rel=1e-3)
    assert "all_reduce" not in [op.name for op in alone.ops]
    assert at(devices=4).op("all_reduce").link_bytes == 2 * 80 * 2 * 3 / 4 * 8192 * 2


def test_bytes_of_a_row_split_matrix_by_hand():
    """`o` on two devices, batch 4: half of 80 x 8192 x 8192 weights, half of each input row, all of each output row.

    The weights in fp8 have a fp32 scale for each of the 8192 rows.
    """
    work = at(batch=4, devices=2, weights="fp8").op("o").work
    assert work.bytes_read == 80 * (8192 * 8192 // 2 + 8192 * 4 + 4 * 8192 // 2 * 2)
    assert work.bytes_written == 80 * 4 * 8192 * 2
    assert work.flops == {"mma_fp8": 80 * 2 * 8192 * 8192 * 4 // 2}


def test_append_and_attention_bytes_follow_the_cache_precision():
    """A token has 80 x 2048 elements. They are read in 16 bits, and written and read again in the cache's precision."""
    for kv, size in (("bf16", 2), ("fp8", 1)):
        predicted = at(batch=3, kv=kv)
        append = predicted.op("kv_append").work
        assert (append.bytes_read, append.bytes_written) == (3 * 80 * 2048 * 2, 3 * 80 * 2048 * size)
        scales = 2 * 8 * 4 / 16 if size == 1 else 0  # a fp32 scale for 16 tokens of each head of K and of V
        assert predicted.kv_seconds == pytest.approx(3 * 4096 * 80 * (2048 * size + scales) / 3.35e12)


def test_prefill_of_a_sliding_window_counts_the_pairs_in_the_window():
    mistral = replace(model("mistral-7b"), window=100)
    pairs = sum(min(token + 1, 100) for token in range(1000))
    attention = next(op for op in at(shape=mistral, context=1000).prefill_ops if op.name == "attention")
    assert attention.work.total_flops == 32 * pairs * 4 * 32 * 128


def test_copies_of_kv_heads_take_memory():
    """16 B200s: (2880 x 0.9 - 141.1) GB over 2 x 1.342 GB, since 8 KV heads on 16 devices are held twice."""
    assert at(device=find("b200"), devices=16).max_batch == int(
        (2592e9 - 2 * parameters(LLAMA)) // (2 * 4096 * 327_680)
    )


def test_kv_heads_limit_how_far_the_cache_is_cut():
    eight, sixteen = at(devices=8), at(devices=16)
    assert sixteen.kv_seconds == eight.kv_seconds == pytest.approx(at().kv_seconds / 8)
    deepseek = model("deepseek-v3")
    assert at(shape=deepseek, devices=8).kv_seconds == at(shape=deepseek).kv_seconds


def test_the_step_waits_for_the_device_with_most_heads():
    """8 KV heads of 8 query heads each on 3 devices: one holds 2 and 16, two hold 3 and 24."""
    alone, three = at(batch=4), at(batch=4, devices=3)
    assert three.kv_seconds == pytest.approx(3 / 8 * alone.kv_seconds)
    assert three.op("kv_append").work.bytes == 3 / 8 * alone.op("kv_append").work.bytes
    for name in ("attention", "o"):
        assert three.op(name).work.total_flops == 24 / 64 * alone.op(name).work.total_flops
    assert three.op("qkv").work.total_flops == 3 / 8 * alone.op("qkv").work.total_flops
    assert three.op("down").work.total_flops == pytest.approx(alone.op("down").work.total_flops / 3)


def test_more_devices_than_kv_heads_hold_copies_of_them():
    """16 devices hold each KV head twice: each has 1 of 8 and 4 of 64 query heads. With 12, some hold a head alone."""
    alone, sixteen, twelve = at(), at(devices=16), at(devices=12)
    for predicted in (sixteen, twelve):
        assert predicted.kv_seconds == pytest.approx(alone.kv_seconds / 8)
    rows = {"sixteen": 4 * 128 + 2 * 128, "twelve": 8 * 128 + 2 * 128}
    assert sixteen.op("qkv").work.total_flops == 80 * 2 * rows["sixteen"] * 8192
    assert twelve.op("qkv").work.total_flops == 80 * 2 * rows["twelve"] * 8192


def test_each_expert_is_cut_evenly():
    """Every device has a part of each expert, whichever are hit. A note says what whole experts would change."""
    mixtral = model("mixtral-8x7b")
    alone, four = at(shape=mixtral, batch=2), at(shape=mixtral, batch=2, devices=4)
    for name, width in (("experts_gate_up", 2 * 14336), ("experts_down", 14336)):
        one, each = alone.op(name).work, four.op(name).work
        assert each.total_flops == one.total_flops / 4
        weights = 32 * expected_experts(mixtral, 2) * 4096 * width * 2
        assert one.bytes == pytest.approx(weights + 32 * 2 * 2 * (4096 + width) * 2, rel=1e-9)
        assert each.bytes == pytest.approx(weights / 4 + 32 * 2 * 2 * (4096 + width / 4) * 2, rel=1e-9)
    assert any("experts whole" in note for note in four.notes)
    assert not any("experts whole" in note for note in alone.notes)


@pytest.mark.parametrize(
    ("name", "even"),
    [
        ("llama-3.1-70b", [1, 2, 4, 8, 16, 32, 64]),
        ("qwen2.5-7b", [1, 2, 4, 28]),  # 7 and 14 of 28 query heads would part the 4 KV heads unevenly
        ("mixtral-8x7b", [1, 2, 4, 8, 16, 32]),
        ("deepseek-v3", [1, 2, 4, 8, 16, 32, 64, 128]),  # the latent is on every device
    ],
)
def test_numbers_of_devices_that_share_evenly(name, even):
    assert [n for n in range(1, 200) if shares_evenly(model(name), n)] == even


def test_sliding_window_makes_the_step_constant():
    mistral = model("mistral-7b")
    assert at(shape=mistral, context=4096).seconds == at(shape=mistral, context=32_768).seconds
    assert at(shape=mistral, context=2048).seconds < at(shape=mistral, context=4096).seconds


def test_mla_attention_by_hand():
    """Absorbed: 128 heads x 2 (576 + 512) FLOP over 576 x 2 B of latent a token: 242 FLOP/B."""
    attention = at(shape=model("deepseek-v3"), context=100_000).op("attention")
    assert attention.intensity == pytest.approx(2 * 128 * 1088 / 1152, rel=0.01)
    assert attention.measured_as == "mla_decode"


@pytest.mark.parametrize("name", sorted(MODELS))
def test_what_measures_an_operation_of_a_step_is_in_the_registry(name):
    ops = at(shape=MODELS[name], context=64, devices=2).ops
    assert {op.measured_as for op in ops} - {""} <= discover().keys()
    for op in ops:
        assert bool(op.stored) == bool(op.measured_as)
        assert not op.weight_bytes or op.stored == "weights"
        assert not op.kv_bytes or op.stored == "kv"


def test_several_tokens_a_pass_share_the_reads():
    one, four = at(), at(q_len=4)
    assert four.kv_seconds == one.kv_seconds
    assert four.weight_seconds == one.weight_seconds
    assert four.op("attention").work.total_flops == 4 * one.op("attention").work.total_flops
    assert four.seconds < 1.01 * one.seconds


def test_efficiency_scales_what_it_names_and_is_said():
    pure = at(batch=16)
    calibrated = at(batch=16, efficiency={"down": 0.9, "attention": 0.5})
    assert calibrated.op("attention").seconds == pytest.approx(2 * pure.op("attention").seconds)
    assert calibrated.op("down").seconds == pytest.approx(pure.op("down").seconds / 0.9)
    assert calibrated.op("gate_up").seconds == pure.op("gate_up").seconds
    assert calibrated.prefill_seconds == pure.prefill_seconds
    assert calibrated.basis.endswith("at measured fractions: down 0.90, attention 0.50")
    assert pure.basis == "datasheet roofline of NVIDIA H100 SXM"
    measured = replace(H100, memory_bandwidth=replace(H100.memory_bandwidth, value=3e12, kind="measured"))
    assert at(device=measured).basis == "measured roofline of NVIDIA H100 SXM"


def test_a_part_without_the_narrow_pipe_multiplies_in_16_bits():
    a100 = at(device=find("a100-80"), weights="fp8")
    assert list(a100.op("gate_up").work.flops) == ["mma_bf16"]
    said = "NVIDIA A100 SXM 80 GB has no published mma_fp8 peak: fp8 weights are multiplied in 16 bits"
    assert said in a100.notes
    assert len(at(weights="fp8").notes) == len(a100.notes) - 1


def test_notes_say_what_is_not_counted():
    (floor,) = at().notes
    assert floor == "a floor: launches, norms, sampling and the latency of links are not counted"
    assert at(efficiency={"down": 0.9}).notes[0] == floor.removeprefix("a floor: ")
    assert "160 all-reduces a step: each microsecond of their latency adds 0.16 ms" in at(devices=8).notes
    assert find("r200").note in at(device=find("r200")).notes


def test_unpublished_numbers_are_named_and_nothing_is_made_of_them():
    with pytest.raises(NotPublished, match="no memory bandwidth of NVIDIA Rubin CPX is published"):
        at(device=find("rubin-cpx"))
    wafer = at(device=find("wse-3"), devices=4)
    assert wafer.missing == ("link", "mma_bf16")
    for name in ("prefill_seconds", "output_to_input_ratio"):
        with pytest.raises(NotPublished, match="link, mma_bf16 of wse-3 is not published: prefill cannot be predicted"):
            getattr(wafer, name)
    assert wafer.op("gate_up").missing == ("mma_bf16",)
    assert wafer.op("all_reduce").bound == "unknown"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 131_073}, r"context 131073 is beyond llama-3.1-70b's longest, 131072"),
        ({"weights": "bf61"}, r"unknown weight precision 'bf61'; did you mean bf16"),
        ({"kv": "fp9"}, r"unknown KV precision 'fp9'; did you mean fp"),
        ({"kv": "w8a16"}, r"unknown KV precision 'w8a16'"),
        ({"batch": 0}, "batch must be at least 1, not 0"),
        ({"devices": 0}, "devices must be at least 1"),
        ({"reserve": 1.0}, "reserve must be a share"),
        ({"efficiency": {"atention": 0.5}}, r"unknown operation 'atention'; did you mean attention"),
        ({"efficiency": {"experts_down": 0.5}}, r"unknown operation 'experts_down'"),
        ({"efficiency": {"attention": 1.5}}, "efficiency of attention must be above 0 and at most 1"),
        ({"efficiency": {"attention": 0.0}}, "efficiency of attention must be above 0 and at most 1"),
    ],
)
def test_bad_requests_say_what_is_wrong(changes, message):
    with pytest.raises(BadRequest, match=message):
        at(**changes)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    weights=st.sampled_from(["bf16", "fp8", "int4"]),
    batch=st.integers(1, 600),
    context=st.integers(1, 4000),
)
def test_more_work_never_takes_less_time_and_larger_batches_never_lower_throughput(name, weights, batch, context):
    given = {"shape": MODELS[name], "weights": weights, "batch": batch, "context": context}
    here, wider, longer = at(**given), at(**given | {"batch": batch + 7}), at(**given | {"context": context + 90})
    assert wider.seconds >= here.seconds
    assert longer.seconds >= here.seconds
    assert wider.tokens_per_second >= here.tokens_per_second * (1 - 1e-12)
    assert here.seconds == pytest.approx(sum(op.seconds for op in here.ops))
    assert here.seconds >= here.weight_seconds + here.kv_seconds - 1e-12
