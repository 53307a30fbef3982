"""Memory, prices and energy of a decode step, against arithmetic written out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.devices import find
from bench.predict.step_model import step
from kernels.models import ModelShape, kv_bytes, model

LLAMA = model("llama-3.1-70b")
READ_PER_STEP = 69_501_714_432
"""All weights of Llama-3.1-70B without its embedding table."""


def at(**changes):
    given = {"device": find("h100-sxm"), "batch": 1, "context": 4096}
    return step(changes.pop("shape", LLAMA), **(given | changes))


# Memory (K1 to K5, K7, K9)

GIB = 2**30


@pytest.mark.parametrize(
    ("context", "gib"), [(4096, 1.25), (32_768, 10), (131_072, 40)]
)  # 320 KiB a token; the published 2.5, 20 and 80 GB are twice that, as in fp32
def test_kv_of_a_70b_model(context, gib):
    predicted = at(context=context)
    assert predicted.kv_bytes_per_request == gib * GIB
    assert at(context=context, kv="fp32").kv_bytes_per_request == 2 * gib * GIB
    scales = context * 80 * 2 * 8 * 4 / 16  # fp32, one for 16 tokens of a head of K or of V
    assert at(context=context, kv="fp8").kv_bytes_per_request == gib * GIB / 2 + scales


def test_batch_32_at_8k_takes_640_gib_without_grouped_heads():
    assert 32 * kv_bytes(LLAMA, 8192, 2) == 80 * GIB
    assert 32 * kv_bytes(replace(LLAMA, kv_heads=64), 8192, 2) == 640 * GIB


def test_grouping_divides_the_cache():
    every_head = kv_bytes(replace(LLAMA, kv_heads=64), 4096, 2)
    assert every_head / kv_bytes(LLAMA, 4096, 2) == 8
    assert every_head / kv_bytes(replace(LLAMA, kv_heads=1), 4096, 2) == 64
    deepseek = model("deepseek-v3")  # 576 cached elements against 128 heads x (192 + 128)
    saved = 1 - kv_bytes(deepseek, 1, 2) / (61 * 128 * (192 + 128) * 2)
    assert saved == pytest.approx(0.986, abs=1e-3)


def test_largest_batch_by_hand():
    """B200: (180 GB x 0.9 - 141.1 GB) / 1.342 GB = 15.6; two H100s, no reserve: (160 - 141.1) / 0.671 = 28.2."""
    assert at(device=find("b200")).max_batch == 15
    assert at(devices=2, context=2048, reserve=0.0).max_batch == 28
    assert 20e9 // kv_bytes(replace(LLAMA, kv_heads=64), 2048, 2) == 3  # the published 3 to 4 leave grouping out
    alone = at()
    assert (alone.max_batch, alone.fits) == (0, False)
    assert at(device=find("b200"), batch=15).fits
    assert not at(device=find("b200"), batch=16).fits


def test_512_tokens_of_opt_66b_and_the_link_they_need():
    """64 layers x 2 x 9216 x 2 B = 2.36 MB a token, 1.125 GiB; ten a second: 10 x 1.13 x 8 = 90 Gb/s."""
    attention = {"layers": 64, "hidden": 9216, "heads": 72, "kv_heads": 72, "head_dim": 128}
    rest = {"ffn": 36864, "vocab": 50272, "max_context": 2048, "source": "config.json of facebook/opt-66b"}
    opt = ModelShape(name="opt-66b", **attention, **rest)
    assert kv_bytes(opt, 512, 2) == 1.125 * GIB
    assert 10 * 8 * kv_bytes(opt, 512, 2) > 90e9


def test_long_contexts_bound_the_users_of_a_gpu():
    """B200, 70B in fp8: (162 - 70.6) GB / 42.9 GB at 128 K = 2 users; 68 at 4 K."""
    assert at(device=find("b200"), weights="fp8", context=131_072).max_batch == 2
    assert at(device=find("b200"), weights="fp8", context=4096).max_batch == 68


# Money and energy (M1 to M3, M5)


@pytest.mark.parametrize(("batch", "published"), [(1, 29), (64, 0.45), (256, 0.11)])
def test_dollars_per_million_tokens_without_kv(batch, published):
    """41.5 ms / batch x 2.50 $/h / 3600 s: the published prices leave out the KV cache, and activations (5% at 256)."""
    predicted = at(batch=batch, context=1)
    by_hand = 2.5 / 3600 * 0.04149 / batch * 1e6
    assert predicted.dollars_per_million_tokens(2.5) == pytest.approx(published, rel=0.08)
    assert predicted.dollars_per_million_tokens(2.5) == pytest.approx(by_hand, rel=0.06)


def test_kv_raises_the_price_at_large_batches():
    """256 x 1.342 GB / 3.35 TB/s = 103 ms on 41.5: 3.5 times the published $0.11."""
    assert at(batch=256).dollars_per_million_tokens(2.5) == pytest.approx(0.39, rel=0.03)


def test_price_at_the_largest_batch_is_that_of_all_devices():
    alone, pair = at(batch=4), at(batch=4, devices=2)
    assert pair.dollars_per_million_tokens(2.5) == pytest.approx(
        2 * alone.dollars_per_million_tokens(2.5) * pair.seconds / alone.seconds
    )


def test_prefill_is_paid_per_token_and_does_not_share_a_batch():
    """(1 - hit rate) x prefill + decode: only the decode term falls with the batch."""
    one, many = at(batch=1), at(batch=64)
    assert one.dollars_per_million_input_tokens(2.5) == many.dollars_per_million_input_tokens(2.5)
    for predicted in (one, at(devices=2)):
        by_hand = predicted.devices * 2.5 / 3600 * predicted.prefill_seconds / 4096 * 1e6
        assert predicted.dollars_per_million_input_tokens(2.5) == pytest.approx(by_hand)
    assert one.output_to_input_ratio > 100
    assert 5 < many.output_to_input_ratio < 10


def test_joules_are_rated_power_times_time():
    predicted = at(batch=64)
    assert predicted.joules_per_token_at_rated_power == pytest.approx(700 * predicted.seconds / 64)
    assert at(devices=2).power_watts == 1400
    tpu = at(device=find("tpu-v5p"))
    assert (tpu.joules_per_token_at_rated_power, tpu.missing) == (None, ("power",))
