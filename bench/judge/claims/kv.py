"""Claims K: how much memory the KV cache takes, and how many requests that leaves room for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product

from bench.devices import find
from bench.judge.claims.base import (
    MEASURED,
    Claim,
    Comparison,
    Measured,
    Published,
    Unmeasured,
    number,
    our_range,
    seconds,
)
from bench.judge.claims.common import (
    DEEPSEEK_V3,
    LLAMA_8B,
    LLAMA_70B,
    alike,
    attention,
    cached,
    capacity,
    guess,
    need_comparisons,
    seen,
)
from bench.judge.claims.paging_simulation import AZURE_SAMPLE, LOG_SDS, WORKLOADS, Workload, compare_allocators
from bench.judge.claims.paging_simulation import Comparison as Allocators
from bench.predict.step_work import PRECISIONS
from bench.records import Record
from kernels.models import MODELS, ModelShape, kv_bytes, kv_elements_per_layer, model, parameters

K, GIB = 1 << 10, 1 << 30
CONTEXTS = {"4K": 4 * K, "32K": 32 * K, "128K": 128 * K, "1M": K * K}

LLAMA_70B_MHA = replace(LLAMA_70B, name="llama-3.1-70b with 64 KV heads", kv_heads=64)
"""The same model as if no KV heads were shared: what a formula with the number of query heads computes."""

HEADS = {"8 (GQA, as in Llama-3.1-70B)": LLAMA_70B, "64 (MHA)": LLAMA_70B_MHA}
CACHES = ("fp8", "bf16", "fp32")
GIGABYTES = {"1e9 B": 1e9, "2^30 B": float(GIB)}
"""What "GB" may have meant."""

OPT_66B = ModelShape(
    name="opt-66b", layers=64, hidden=9216, heads=72, kv_heads=72, head_dim=128, ffn=36864, vocab=50272,
    max_context=2048, source="config.json of facebook/opt-66b on Hugging Face, read in a public repository's copy",
)  # fmt: skip
"""The model that DistServe (arXiv:2401.09670, section 3.3) gives 1.13 GB and 90 Gb/s for: `2^30 B` are meant."""
DEEPSEEK_67B = ModelShape(
    name="deepseek-67b", layers=95, hidden=8192, heads=64, kv_heads=8, head_dim=128, ffn=22016, vocab=102400,
    max_context=4096, source="config.json of Vivacem/DeepSeek-67B-MMIQC on Hugging Face, a fine-tuned "
    "deepseek-ai/deepseek-llm-67b-base",
)  # fmt: skip
DEEPSEEK_V2 = replace(
    DEEPSEEK_V3, name="deepseek-v2", layers=60, hidden=5120, experts=160, experts_per_token=6, expert_ffn=1536,
    shared_experts=2, dense_layers=1, ffn=12288, vocab=102400,
    source="config.json of deepseek-ai/DeepSeek-V2-Chat on Hugging Face",
)  # fmt: skip
"""Shapes of which only the cache is counted here."""


def request_bytes(shape: ModelShape, context: int, cache_type: str) -> float:
    return kv_bytes(shape, context, PRECISIONS[cache_type].bytes)


def settings() -> Iterator[tuple[ModelShape, str, float, dict[str, str]]]:
    """70B with shared or with all KV heads, every cache precision, both meanings of GB."""
    for (heads, shape), kv, (meaning, gigabyte) in product(HEADS.items(), CACHES, GIGABYTES.items()):
        yield shape, kv, gigabyte, {"KV heads": heads, "cache": kv, "GB": meaning}


PER_REQUEST = "layers x 2 x KV heads x head dim x bytes x tokens"

K1_SIZES = {
    name: number(f"KV cache of 70B at {name} tokens", size, "GB")
    for name, size in (("4K", 2.5), ("32K", 20), ("128K", 80), ("1M", 625))
}


def predict_k1() -> list[Comparison]:
    return [
        guess(published, request_bytes(shape, CONTEXTS[name], kv) / gigabyte, PER_REQUEST, **setting)
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
    setting="Llama-3.1-70B (80 layers, head dim 128); KV heads, cache precision and the meaning of GB are varied",
    predict=predict_k1,
)


K2_ABOUT = number("KV cache of a 70B GQA model at 128K, said in one place", 80, "GB")
K2_RANGE = Published(what="KV cache of a 70B GQA model at 128K, said in another", low=40, high=80, unit="GB")


def predict_k2() -> list[Comparison]:
    return [
        guess(published, request_bytes(shape, CONTEXTS["128K"], kv) / gigabyte, PER_REQUEST,
              said=said, cache=setting["cache"], GB=setting["GB"])
        for said, published in (("about 80 GB", K2_ABOUT), ("40-80 GB", K2_RANGE))
        for shape, kv, gigabyte, setting in settings()
        if shape is LLAMA_70B
    ]  # fmt: skip


K2 = Claim(
    id="K2",
    text="a 70B GQA model at 128K needs about 80 GB for KV; elsewhere in the same text 40-80 GB",
    plain="A 70B model needs 40 to 80 GB to remember 128,000 tokens",
    source="A",
    how="P",
    published=(K2_ABOUT, K2_RANGE),
    setting="Llama-3.1-70B with its 8 KV heads; cache precision and the meaning of GB are varied",
    predict=predict_k2,
)


K3_SIZE = number("KV cache at batch 32 and 8K tokens", 640, "GB")


def predict_k3() -> list[Comparison]:
    return [
        guess(K3_SIZE, 32 * request_bytes(shape, 8 * K, kv) / gigabyte, f"32 x {PER_REQUEST}", **setting)
        for shape, kv, gigabyte, setting in settings()
    ]


K3 = Claim(
    id="K3",
    text="batch 32 at 8K context reaches about 640 GB",
    plain="Thirty-two conversations of 8,000 tokens need 640 GB",
    source="A",
    how="P",
    published=(K3_SIZE,),
    setting="a 70B model of 80 layers; KV heads, cache precision and the meaning of GB are varied",
    predict=predict_k3,
)


K4_MQA = Published(what="shrinkage by MQA", low=8, high=32, unit="x", tolerance=MEASURED)
K4_GQA = Published(what="shrinkage by GQA", low=4, high=8, unit="x", tolerance=MEASURED)
K4_MLA = number("share of the cache that MLA saves", 0.93, "", 0.02)
GROUP = "query heads per KV head"

MHA_OF_V2 = DEEPSEEK_V2.heads * (DEEPSEEK_V2.head_dim + DEEPSEEK_V2.rope_dim + DEEPSEEK_V2.v_head_dim)
"""Elements per token and layer if DeepSeek-V2 cached the keys and values of all its heads."""

LATENT_BITS = (16, 8, 6)
"""6 is what DeepSeek deployed V2 with, "on average": the DeepSeek-V2 paper (arXiv:2405.04434), section 3.2.3. Its
abstract gives the saving, 93.3% of DeepSeek 67B's cache, without the arithmetic."""


def predict_k4() -> list[Comparison]:
    plain = [shape for shape in MODELS.values() if not shape.is_mla]
    found = [
        guess(K4_MQA, heads, "query heads / 1 KV head", kind="MQA", **{GROUP: heads})
        for heads in sorted({shape.heads for shape in plain})
    ]
    found += [
        guess(K4_GQA, group, "query heads / KV heads", kind="GQA", **{GROUP: group})
        for group in sorted({shape.heads // shape.kv_heads for shape in plain if shape.kv_heads < shape.heads})
    ]
    latent = kv_elements_per_layer(DEEPSEEK_V2) * DEEPSEEK_V2.layers
    against = {
        "the same model with all heads cached": MHA_OF_V2 * DEEPSEEK_V2.layers,
        "DeepSeek 67B, which has GQA": kv_elements_per_layer(DEEPSEEK_67B) * DEEPSEEK_67B.layers,
    }
    found += [
        guess(K4_MLA, 1 - latent * bits / (16 * elements), "1 - latent elements x bits / (cached elements x 16)",
              kind="MLA", against=name, bits=bits)
        for name, elements in against.items()
        for bits in LATENT_BITS
    ]  # fmt: skip
    return found


LARGE = 64 << 20
"""Least bytes of an attention case whose time is compared across head counts: launches cost under a tenth."""


def measure_k4(run: Measured) -> list[Comparison]:
    """Attention time per query head and cached token, against multi-head attention."""

    def cost(record: Record) -> float:
        case = record.case
        return seconds(record) / (case["B"] * case["T"] * case["H_q"] * case["D"])

    best: dict[int, Record] = {}
    for record in attention(run):
        group = record.case["H_q"] // record.case["H_kv"]
        large = record.bytes >= LARGE and cached(record) == "bf16"
        if large and (group not in best or cost(record) < cost(best[group])):
            best[group] = record
    if 1 not in best or len(best) < 2:
        raise Unmeasured("the run holds no large `attention_decode` in bf16 both with and without shared KV heads")
    how = "time per query head and token of multi-head attention / the same with shared KV heads"
    found = []
    for group, record in best.items():
        if group > 1:
            kind, published = ("MQA", K4_MQA) if record.case["H_kv"] == 1 else ("GQA", K4_GQA)
            value = cost(best[1]) / cost(record)
            found.append(seen(published, value, how, [best[1], record], kind=kind, **{GROUP: group}))
    return found


K4 = Claim(
    id="K4",
    text="MQA shrinks the cache 8-32 times, GQA 4-8 times, MLA by 93%",
    plain="Sharing what is remembered between attention heads shrinks it 8 to 32 times (MQA) or 4 to 8 (GQA), and "
    "storing it compressed (MLA) by 93%",
    source="A",
    how="P M",
    published=(K4_MQA, K4_GQA, K4_MLA),
    setting="head counts of every known model; MLA is DeepSeek-V2's; measured as attention time per query head",
    predict=predict_k4,
    measure=measure_k4,
)


K5_SMALL = Published(what="batch at 2K tokens in 20 GB", low=3, high=4, unit="requests", tolerance=0)
K5_LARGE = {
    key: number(f"largest batch at 4K tokens on two {name}", batch, "requests", 0.1)
    for key, name, batch in (
        ("a100-80", "A100", 4), ("h100-sxm", "H100", 4), ("h200", "H200", 15), ("b200", "B200", 25),
    )
}  # fmt: skip


def predict_k5() -> list[Comparison]:
    found = []
    weights = 2 * parameters(LLAMA_70B)
    for (heads, shape), kv in product(HEADS.items(), CACHES):
        setting = {"KV heads": heads, "cache": kv}
        found.append(guess(K5_SMALL, 20e9 // request_bytes(shape, 2 * K, kv), "20 GB / KV per request", **setting))
        for key, published in K5_LARGE.items():
            free = 2 * capacity(find(key)) - weights
            how = "(memory of two parts - 16-bit weights) / KV per request"
            found.append(guess(published, max(0, free // request_bytes(shape, 4 * K, kv)), how, **setting))
    return found


K5 = Claim(
    id="K5",
    text="two H100s with 20 GB free hold batch 3-4 at 2K context; max batch at 4K on two GPUs: A100 4, H100 4, "
    "H200 15, B200 25",
    plain="Two A100 or H100 hold 4 users of a 70B model at once, two H200 15 and two B200 25",
    source="A",
    how="P",
    published=(K5_SMALL, *K5_LARGE.values()),
    setting="Llama-3.1-70B with 16-bit weights, no memory kept back; KV heads and cache precision are varied",
    predict=predict_k5,
)


K6_CONTIGUOUS = Published(what="KV memory wasted by contiguous allocation", low=0.6, high=0.8, unit="")
"""The PagedAttention paper (arXiv:2309.06180, section 1) found 20.4 to 38.2% of the memory to hold tokens."""
K6_PAGED = Published(what="KV memory wasted by paging", low=0, high=0.04, unit="", tolerance=0)
K6_MORE = Published(what="requests served at a time, paged over contiguous", low=2, high=4, unit="x")
PAGE = 16


@cache
def allocations() -> tuple[tuple[str, str, Allocators], ...]:
    """Requests of a trace, then every workload known by its middle at every assumed spread of its lengths; seed 0."""
    workloads: list[tuple[Workload, str]] = [(AZURE_SAMPLE, "as traced")]
    workloads += [(make(sd), f"{sd:g}") for make in WORKLOADS for sd in LOG_SDS]
    return tuple((workload.name, spread, compare_allocators(workload, pages=(PAGE,))) for workload, spread in workloads)


def predict_k6() -> list[Comparison]:
    found = []
    for workload, spread, result in allocations():
        paged = result.paged[PAGE]
        for kind, contiguous in (("longest request", result.reserved), ("exact length, known", result.contiguous)):
            setting = {"workload": workload, "log-sd of lengths": spread, "reserved": kind}
            how = "simulated on a real free list: 15,700 slots, at most 2,048 tokens, always a queue, pages of 16"
            found += [
                guess(K6_CONTIGUOUS, contiguous.waste, how, **setting),
                guess(K6_PAGED, paged.waste, how, **setting),
                guess(K6_MORE, paged.running / contiguous.running, how, **setting),
            ]
    return found


K6 = Claim(
    id="K6",
    text="contiguous allocation wastes 60-80% of KV memory, paging under 4%, so 2-4 times more requests fit",
    plain="Handing out memory in one piece wastes 60 to 80% of it, in small pages under 4%, so that two to four "
    "times as many users fit",
    source="A",
    how="S",
    published=(K6_CONTIGUOUS, K6_PAGED, K6_MORE),
    setting="OPT-13B's cache on an A100 of 40 GB, as in the PagedAttention paper; lengths drawn from a trace, and "
    "lognormal around published middles with their spread (not published) varied",
    predict=predict_k6,
)


K7_SIZE = number("KV cache of a request of 512 tokens", 1.13, "GB")
K7_LINK = Published(what="link for 10 such requests a second", low=90e9, high=math.inf, unit="bit/s", tolerance=0)


def predict_k7() -> list[Comparison]:
    found = []
    shapes = (OPT_66B, LLAMA_70B, LLAMA_70B_MHA, model("llama-3.1-405b"), DEEPSEEK_V3)
    for shape, kv, (meaning, gigabyte) in product(shapes, ("fp8", "bf16"), GIGABYTES.items()):
        size = request_bytes(shape, 512, kv)
        setting = {"model": shape.name, "cache": kv, "GB": meaning}
        found += [
            guess(K7_SIZE, size / gigabyte, PER_REQUEST, **setting),
            guess(K7_LINK, 10 * 8 * size, "10 requests a second x 8 bits", **setting),
        ]
    return found


K7 = Claim(
    id="K7",
    text="one 512-token request of a large model carries about 1.13 GB of KV; 10 such a second need over 90 Gb/s",
    plain="A short conversation takes 1.13 GB, and moving ten a second between machines needs a 90 Gb/s link",
    source="A",
    how="P",
    published=(K7_SIZE, K7_LINK),
    setting="the model is not named: models, cache precision and the meaning of GB are varied",
    predict=predict_k7,
)


K8_GROWTH = our_range("growth of the cache (or of attention's time) beyond the window", 1, 1, "x", MEASURED)
EVERY_LAYER = "every layer"


def predict_k8() -> list[Comparison]:
    found = []
    for shape in (model("mistral-7b"), model("gemma-3-27b"), model("gpt-oss-120b"), LLAMA_70B):
        growth = request_bytes(shape, 4 * K * K, "bf16") / request_bytes(shape, 8 * K, "bf16")
        windowed = {0: "no layer", shape.layers: EVERY_LAYER}.get(shape.windowed_layers, "some layers")
        found.append(guess(K8_GROWTH, growth, f"cache at 4M tokens / at 8K, {shape.name}", windowed=windowed))
    return found


def measure_k8(run: Measured) -> list[Comparison]:
    """Time of windowed attention at the longest context over the shortest, both beyond the window."""
    found = []
    windowed = [r for r in run.fastest("attention_decode", q_len=1) if 0 < r.case["window"] < r.case["T"]]
    for group in alike(windowed, "T"):
        short, *_, long = [*sorted(group, key=lambda r: r.case["T"])] if len(group) > 1 else [None, None]
        if short and long and long.case["T"] > short.case["T"]:
            how = "attention time at the longest context / at the shortest, same window"
            found.append(seen(K8_GROWTH, seconds(long) / seconds(short), how, [short, long], windowed=EVERY_LAYER))
    return need_comparisons(found, "windowed `attention_decode` at two contexts beyond the window")


K8 = Claim(
    id="K8",
    text="a sliding window of about 4,096 tokens with sink tokens decodes at constant memory out to millions",
    plain="A model that looks back only 4,096 tokens needs no more memory however long the text gets",
    source="A",
    how="P M",
    published=(K8_GROWTH,),
    setting="cache at 4M tokens against 8K; models with a window in every, some and no layer",
    predict=predict_k8,
    measure=measure_k8,
)


K9_SIZE = our_range("KV cache of a long request", 10, 100, "GB")


def predict_k9() -> list[Comparison]:
    return [
        guess(K9_SIZE, request_bytes(shape, CONTEXTS[name], "bf16") / 1e9, PER_REQUEST, model=shape.name, context=name)
        for shape in (LLAMA_8B, LLAMA_70B, model("llama-3.1-405b"), DEEPSEEK_V3)
        for name in CONTEXTS
        if CONTEXTS[name] <= shape.max_context
    ]


K9 = Claim(
    id="K9",
    text="KV of long contexts takes tens of GB per request and limits how many users a GPU serves",
    plain="Remembering one long conversation takes tens of GB",
    source="D",
    how="P",
    published=(K9_SIZE,),
    setting="bf16 cache; tens: 10 to 100 GB; model and context (up to what the model takes) are varied",
    predict=predict_k9,
)
