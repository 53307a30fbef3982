"""Claims about models that keep a state instead of a cache: what a token moves, and what that is worth."""

from __future__ import annotations

from itertools import product

from bench.devices import find
from bench.judge.claims.base import APPROXIMATE, MEASURED, Claim, Comparison, number, our_range
from bench.judge.claims.common import H100, LLAMA_8B, bandwidth, decode, predicted
from bench.judge.claims.others import Others, between_batches, by_others, ratio, some, where
from kernels.models import kv_bytes

STATE = 4 * 32 * 128 * 128
"""Bytes of a layer's state of 32 heads of 128 x 128 in fp32, as gated delta nets keep (Qwen3-Next's config has 32)."""

# ------------------------------------------------------------------------------------------ S1: memory of a state

S1_BYTES = our_range("bytes of the state at 131,072 tokens over at 4,096", 1, 1, "x", 0)
S1_TIME = our_range("time per sequence at batch 256 over batch 64", 1, 1, "x", MEASURED)


def predict_s1() -> list[Comparison]:
    cache = kv_bytes(LLAMA_8B, 131_072, 2) / kv_bytes(LLAMA_8B, 4096, 2)
    return [
        predicted(S1_BYTES, 1.0, "a state has one size whatever the context", keeps="a state"),
        predicted(S1_BYTES, cache, "cache at 131,072 tokens / at 4,096", keeps="a KV cache"),
        predicted(S1_TIME, 1.0, "2 x state for each sequence", keeps="a state"),
    ]


def others_s1(others: Others) -> list[Comparison]:
    """Published updates have no context at all. Their time goes with the batch alone."""
    found = []
    for op in ("gated_delta_net", "kda"):
        rows = others.op(op)
        both = between_batches(rows, "part", "H", "D", "N", "stored", low=64, high=256)
        if len(both):
            both = both.assign(seconds_a=4 * both["seconds_a"])
            how = f"median over published updates ({op}) of the time at batch 256 / 4 times that at batch 64"
            found.append(ratio(S1_TIME, both, how, keeps="a state", op=op))
    some(others.op("gated_delta_net"), "a state update")
    return found


S1 = Claim(
    id="S1",
    text="a state-space model decodes with constant memory: a fixed-size state instead of a growing KV cache",
    plain="Some models remember in a note of fixed size, so that long texts cost them nothing more",
    source="A",
    how="P M V",
    published=(S1_BYTES, S1_TIME),
    setting="A state of 32 heads of 128 x 128 against the cache of Llama-3.1-8B. Times are of state updates",
    predict=predict_s1,
    by_others=others_s1,
)

# -------------------------------------------------------------------------------------------- S2: throughput

S2_RATE = number("throughput of a state over that of a cache", 5, "x", APPROXIMATE)


def predict_s2() -> list[Comparison]:
    found = []
    rate = bandwidth(find(H100))
    for context, batch in product((2048, 8192, 32_768, 131_072), (1, 16, 64, 256)):
        weights = decode(LLAMA_8B, batch=batch, context=1).weight_seconds
        cache = batch * kv_bytes(LLAMA_8B, context, 2) / rate
        state = batch * 2 * LLAMA_8B.layers * STATE / rate
        how = "(weights + batch x cache) / (weights + batch x 2 x state), the same weights"
        value = (weights + cache) / (weights + state)
        found.append(predicted(S2_RATE, value, how, of="the model", context=context, batch=batch))
    return found


def others_s2(others: Others) -> list[Comparison]:
    """The layer alone on an H100: attention of 32 heads on 8 KV heads over an update of 32 heads' states."""
    caches = where(others.op("attention_decode"), part=H100, H_q=32, H_kv=8, D=128, stored="bf16", window=0)
    states = where(others.op("gated_delta_net", cold=False), part=H100, H=32, D=128, N=128)
    found = []
    for (context, batch), mine in caches.groupby(["T", "B"]):
        own = where(states, B=batch)
        if len(own) and batch in (16, 64, 256):
            value = mine["seconds"].min() / own["seconds"].min()
            how = "published attention / published update of a gated delta net, the fastest of each"
            used = (mine.nsmallest(1, "seconds"), own.nsmallest(1, "seconds"))
            found.append(by_others(S2_RATE, value, how, *used, of="the layer alone", context=context, batch=batch))
    return found


S2 = Claim(
    id="S2",
    text="state-space models give about 5 times higher throughput",
    plain="Models with a note of fixed size serve five times as many users",
    source="A",
    how="P M V",
    published=(S2_RATE,),
    setting="Llama-3.1-8B's weights in bf16 on an H100 with its cache, or with a state of 32 heads in every layer. "
    "Context and batch are varied",
    predict=predict_s2,
    by_others=others_s2,
)

# ---------------------------------------------------------------------------------------------------- S3: hybrids

S3_SHARE = our_range("share of layers that keep a growing cache", 0, 0.5, "")
S3_BYTES = our_range("cache per token over that of attention in every layer", 0, 0.5, "")

HYBRIDS = {"Jamba-1.5": (32, 4), "Nemotron-H-8B": (52, 4), "Qwen3-Next-80B-A3B": (48, 12)}
"""Layers, and layers with attention, by the config.json of each: attn_layer_period 8, a pattern with 4 attention
layers, full_attention_interval 4."""


def predict_s3() -> list[Comparison]:
    found = []
    for name, (layers, attending) in {**HYBRIDS, LLAMA_8B.name: (LLAMA_8B.layers, LLAMA_8B.layers)}.items():
        how = "layers with attention / layers of its config.json; the others keep a state"
        found += [
            predicted(S3_SHARE, attending / layers, how, model=name),
            predicted(S3_BYTES, attending / layers, "the same, since each attending layer caches as much", model=name),
        ]
    return found


S3 = Claim(
    id="S3",
    text="hybrids put cheap linear layers in most places and attention where all pairs are needed",
    plain="Mixed models look back over the whole text in few of their layers only",
    source="A",
    how="P",
    published=(S3_SHARE, S3_BYTES),
    setting="Three hybrids and a dense model. Most places: at least half of the layers",
    predict=predict_s3,
)
