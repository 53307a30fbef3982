"""Claims about the KV cache: how much memory it takes, and how many requests that leaves room for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from bench.devices import find
from bench.judge.claims.base import Claim, Comparison, Published, number, our_range
from bench.judge.claims.common import COMPARED_PARTS, DEEPSEEK_V3, LLAMA_8B, LLAMA_70B, capacity, predicted
from bench.predict.step_work import PRECISIONS
from kernels.models import ModelShape, kv_bytes, model, parameters

K = 1 << 10
CONTEXTS = {"4K": 4 * K, "32K": 32 * K, "128K": 128 * K, "1M": K * K}

LLAMA_70B_MHA = replace(LLAMA_70B, name="llama-3.1-70b with 64 KV heads", kv_heads=64)
"""The same model if it shared no KV heads, which is what a formula with the number of query heads computes."""

HEADS = {"8 (GQA, as in Llama-3.1-70B)": LLAMA_70B, "64 (MHA)": LLAMA_70B_MHA}
CACHES = ("fp8", "bf16", "fp32")
GIGABYTES = {"1e9 B": 1e9, "2^30 B": float(1 << 30)}
"""What "GB" may have meant."""

PER_REQUEST = "layers x 2 x KV heads x head dim x bytes x tokens"


def request_bytes(shape: ModelShape, context: int, cache_type: str) -> float:
    return kv_bytes(shape, context, PRECISIONS[cache_type].bytes)


def settings() -> Iterator[tuple[ModelShape, str, float, dict[str, str]]]:
    """70B with 8 and with 64 KV heads, in every cache precision, with both meanings of GB."""
    for (heads, shape), kv, (meaning, gigabyte) in product(HEADS.items(), CACHES, GIGABYTES.items()):
        yield shape, kv, gigabyte, {"KV heads": heads, "cache": kv, "GB": meaning}


# ------------------------------------------------------------------------------------------- K1: the cache of a 70B

K1_SIZES = {
    name: number(f"KV cache of 70B at {name} tokens", size, "GB")
    for name, size in (("4K", 2.5), ("32K", 20), ("128K", 80), ("1M", 625))
}


def predict_k1() -> list[Comparison]:
    return [
        predicted(published, request_bytes(shape, CONTEXTS[name], kv) / gigabyte, PER_REQUEST, **setting)
        for shape, kv, gigabyte, setting in settings()
        for name, published in K1_SIZES.items()
    ]


K1 = Claim(
    id="K1",
    text="70B KV cache: 2.5 GB at 4K tokens, 20 GB at 32K, 80 GB at 128K, 625 GB at 1M",
    plain="A 70B model needs 2.5 GB to remember 4,000 tokens, 20 GB for 32,000, 80 GB for 128,000 and 625 GB for a "
    "million",
    source="A",
    how="P",
    published=tuple(K1_SIZES.values()),
    setting="Llama-3.1-70B (80 layers, head dim 128). KV heads, cache precision and the meaning of GB are varied",
    predict=predict_k1,
)

# ----------------------------------------------------------------------------------- K2: two sizes for one same cache

K2_ABOUT = number("KV cache of a 70B GQA model at 128K, said in one place", 80, "GB")
K2_RANGE = Published(what="KV cache of a 70B GQA model at 128K, said in another", low=40, high=80, unit="GB")


def predict_k2() -> list[Comparison]:
    found = []
    for said, published in (("about 80 GB", K2_ABOUT), ("40-80 GB", K2_RANGE)):
        for kv, (meaning, gigabyte) in product(CACHES, GIGABYTES.items()):
            value = request_bytes(LLAMA_70B, CONTEXTS["128K"], kv) / gigabyte
            found.append(predicted(published, value, PER_REQUEST, said=said, cache=kv, GB=meaning))
    return found


K2 = Claim(
    id="K2",
    text="a 70B GQA model at 128K needs about 80 GB for KV; elsewhere in the same text 40-80 GB",
    plain="A 70B model needs 40 to 80 GB to remember 128,000 tokens",
    source="A",
    how="P",
    published=(K2_ABOUT, K2_RANGE),
    setting="Llama-3.1-70B with its 8 KV heads. Cache precision and the meaning of GB are varied",
    predict=predict_k2,
)

# ------------------------------------------------------------------------------------------- K3: the cache of a batch

K3_SIZE = number("KV cache at batch 32 and 8K tokens", 640, "GB")


def predict_k3() -> list[Comparison]:
    return [
        predicted(K3_SIZE, 32 * request_bytes(shape, 8 * K, kv) / gigabyte, f"32 x {PER_REQUEST}", **setting)
        for shape, kv, gigabyte, setting in settings()
    ]


K3 = Claim(
    id="K3",
    text="batch 32 at 8K context reaches about 640 GB",
    plain="Thirty-two conversations of 8,000 tokens need 640 GB",
    source="A",
    how="P",
    published=(K3_SIZE,),
    setting="A 70B model of 80 layers. KV heads, cache precision and the meaning of GB are varied",
    predict=predict_k3,
)

# ----------------------------------------------------------------------------------- K5: the batch that memory allows

K5_SMALL = Published(what="batch at 2K tokens in 20 GB", low=3, high=4, unit="requests", tolerance=0)
K5_BATCHES = dict(zip(COMPARED_PARTS, (4, 4, 15, 25), strict=True))
K5_LARGE = {
    key: number(f"largest batch at 4K tokens on two {COMPARED_PARTS[key]}", batch, "requests", 0.1)
    for key, batch in K5_BATCHES.items()
}


def predict_k5() -> list[Comparison]:
    found = []
    weights = 2 * parameters(LLAMA_70B)
    for (heads, shape), kv in product(HEADS.items(), CACHES):
        setting = {"KV heads": heads, "cache": kv}
        found.append(predicted(K5_SMALL, 20e9 // request_bytes(shape, 2 * K, kv), "20 GB / KV per request", **setting))
        for key, published in K5_LARGE.items():
            free = 2 * capacity(find(key)) - weights
            how = "(memory of two parts - 16-bit weights) / KV per request"
            found.append(predicted(published, max(0, free // request_bytes(shape, 4 * K, kv)), how, **setting))
    return found


K5 = Claim(
    id="K5",
    text="two H100s with 20 GB free hold batch 3-4 at 2K context; max batch at 4K on two GPUs: A100 4, H100 4, "
    "H200 15, B200 25",
    plain="Two A100 or H100 hold 4 users of a 70B model at once, two H200 hold 15 and two B200 hold 25",
    source="A",
    how="P",
    published=(K5_SMALL, *K5_LARGE.values()),
    setting="Llama-3.1-70B with 16-bit weights and no memory kept back. KV heads and cache precision are varied",
    predict=predict_k5,
)

# ------------------------------------------------------------------------------------ K7: moving a request's cache

K7_SIZE = number("KV cache of a request of 512 tokens", 1.13, "GB")
K7_LINK = Published(what="link for 10 such requests a second", low=90e9, high=math.inf, unit="bit/s", tolerance=0)

OPT_66B = ModelShape(
    name="opt-66b",
    layers=64,
    hidden=9216,
    heads=72,
    kv_heads=72,
    head_dim=128,
    ffn=36864,
    vocab=50272,
    max_context=2048,
    source="config.json of facebook/opt-66b on Hugging Face, read in a public repository's copy",
)
"""DistServe (arXiv:2401.09670, section 3.3) gives 1.13 GB and 90 Gb/s for this model. It means `2^30 B`."""


def predict_k7() -> list[Comparison]:
    found = []
    shapes = (OPT_66B, LLAMA_70B, LLAMA_70B_MHA, model("llama-3.1-405b"), DEEPSEEK_V3)
    for shape, kv, (meaning, gigabyte) in product(shapes, ("fp8", "bf16"), GIGABYTES.items()):
        size = request_bytes(shape, 512, kv)
        setting = {"model": shape.name, "cache": kv, "GB": meaning}
        found += [
            predicted(K7_SIZE, size / gigabyte, PER_REQUEST, **setting),
            predicted(K7_LINK, 10 * 8 * size, "10 requests a second x 8 bits", **setting),
        ]
    return found


K7 = Claim(
    id="K7",
    text="one 512-token request of a large model carries about 1.13 GB of KV; 10 such a second need over 90 Gb/s",
    plain="A short conversation takes 1.13 GB, and moving ten a second between machines needs a 90 Gb/s link",
    source="A",
    how="P",
    published=(K7_SIZE, K7_LINK),
    setting="The text does not name the model. Models, cache precision and the meaning of GB are varied",
    predict=predict_k7,
)

# ------------------------------------------------------------------------------------------------- K9: long contexts

K9_SIZE = our_range("KV cache of a long request", 10, 100, "GB")


def predict_k9() -> list[Comparison]:
    found = []
    for shape in (LLAMA_8B, LLAMA_70B, model("llama-3.1-405b"), DEEPSEEK_V3):
        for name, context in CONTEXTS.items():
            if context <= shape.max_context:
                value = request_bytes(shape, context, "bf16") / 1e9
                found.append(predicted(K9_SIZE, value, PER_REQUEST, model=shape.name, context=name))
    return found


K9 = Claim(
    id="K9",
    text="KV of long contexts takes tens of GB per request and limits how many users a GPU serves",
    plain="Remembering one long conversation takes tens of GB",
    source="D",
    how="P",
    published=(K9_SIZE,),
    setting="A bf16 cache. Tens: 10 to 100 GB. The model and the context, up to what the model takes, are varied",
    predict=predict_k9,
)
