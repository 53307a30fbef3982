"""Claims about what makes the KV cache smaller: shared heads, paging and windows."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import pandas as pd

from bench.judge.claims.base import MEASURED, Claim, Comparison, Published, Unmeasured, number, our_range
from bench.judge.claims.common import DEEPSEEK_V3, LLAMA_70B, measured, predicted
from bench.judge.claims.others import Others, ratio, some
from bench.judge.claims.paging_simulation import AZURE_SAMPLE, LOG_SDS, WORKLOADS, Workload, compare_allocators
from bench.judge.claims.paging_simulation import Comparison as Allocators
from bench.judge.claims.reading import MeasuredPart, attention, cache_format, comparable, require_some, seconds
from bench.records import Record
from kernels.models import MODELS, ModelShape, kv_bytes, kv_elements_per_layer, model

# --------------------------------------------------------------------------------------------- K4: MQA, GQA and MLA

K4_MQA = Published(what="shrinkage by MQA", low=8, high=32, unit="x", tolerance=MEASURED)
K4_GQA = Published(what="shrinkage by GQA", low=4, high=8, unit="x", tolerance=MEASURED)
K4_MLA = number("share of the cache that MLA saves", 0.93, "", 0.02)
GROUP = "query heads per KV head"

DEEPSEEK_67B = ModelShape(
    name="deepseek-67b",
    layers=95,
    hidden=8192,
    heads=64,
    kv_heads=8,
    head_dim=128,
    ffn=22016,
    vocab=102400,
    max_context=4096,
    source="config.json of Vivacem/DeepSeek-67B-MMIQC on Hugging Face, a fine-tuned deepseek-ai/deepseek-llm-67b-base",
)
DEEPSEEK_V2 = replace(
    DEEPSEEK_V3,
    name="deepseek-v2",
    layers=60,
    hidden=5120,
    experts=160,
    experts_per_token=6,
    expert_ffn=1536,
    shared_experts=2,
    dense_layers=1,
    ffn=12288,
    vocab=102400,
    source="config.json of deepseek-ai/DeepSeek-V2-Chat on Hugging Face",
)
"""Only the caches of these two models are counted here."""

MHA_OF_V2 = DEEPSEEK_V2.heads * (DEEPSEEK_V2.head_dim + DEEPSEEK_V2.rope_dim + DEEPSEEK_V2.v_head_dim)
"""Elements per token and layer if DeepSeek-V2 cached the keys and values of all its heads."""

LATENT_BITS = (16, 8, 6)
"""DeepSeek deployed V2 with 6 bits "on average": the DeepSeek-V2 paper (arXiv:2405.04434), section 3.2.3. Its abstract
gives the saving, 93.3% of DeepSeek 67B's cache, without the arithmetic."""


def predict_k4() -> list[Comparison]:
    plain = [shape for shape in MODELS.values() if shape.attention_layers and not shape.is_mla]
    found = [
        predicted(K4_MQA, heads, "query heads / 1 KV head", kind="MQA", **{GROUP: heads})
        for heads in sorted({shape.heads for shape in plain})
    ]
    found += [
        predicted(K4_GQA, group, "query heads / KV heads", kind="GQA", **{GROUP: group})
        for group in sorted({shape.heads // shape.kv_heads for shape in plain if shape.kv_heads < shape.heads})
    ]
    latent = kv_elements_per_layer(DEEPSEEK_V2) * DEEPSEEK_V2.layers
    against = {
        "the same model with all heads cached": MHA_OF_V2 * DEEPSEEK_V2.layers,
        "DeepSeek 67B, which has GQA": kv_elements_per_layer(DEEPSEEK_67B) * DEEPSEEK_67B.layers,
    }
    for (name, elements), bits in product(against.items(), LATENT_BITS):
        how = "1 - latent elements x bits / (cached elements x 16)"
        value = 1 - latent * bits / (16 * elements)
        found.append(predicted(K4_MLA, value, how, kind="MLA", against=name, bits=bits))
    return found


LARGE = 64 << 20
"""Bytes from which an attention case is compared across head counts: there a launch costs under a tenth of the time."""


def measure_k4(run: MeasuredPart) -> list[Comparison]:
    """Attention time per query head and cached token, against multi-head attention."""

    def cost(record: Record) -> float:
        case = record.case
        return seconds(record) / (case["B"] * case["T"] * case["H_q"] * case["D"])

    best: dict[int, Record] = {}
    for record in attention(run):
        group = record.case["H_q"] // record.case["H_kv"]
        large = record.bytes >= LARGE and cache_format(record) == "bf16"
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
            found.append(measured(published, value, how, [best[1], record], kind=kind, **{GROUP: group}))
    return found


K4 = Claim(
    id="K4",
    text="MQA shrinks the cache 8-32 times, GQA 4-8 times, MLA by 93%",
    plain="Sharing what is remembered between attention heads shrinks it 8 to 32 times (MQA) or 4 to 8 times (GQA), "
    "and compressing it (MLA) shrinks it by 93%",
    source="A",
    how="P M",
    published=(K4_MQA, K4_GQA, K4_MLA),
    setting="The head counts of every known model. MLA is DeepSeek-V2's. Measured as attention time per query head",
    predict=predict_k4,
    measure=measure_k4,
    any_part=True,
)

# ---------------------------------------------------------------------------------------------------- K6: paging

K6_CONTIGUOUS = Published(what="KV memory wasted by contiguous allocation", low=0.6, high=0.8, unit="")
"""The PagedAttention paper (arXiv:2309.06180, section 1) found that 20.4 to 38.2% of the memory held tokens."""
K6_PAGED = Published(what="KV memory wasted by paging", low=0, high=0.04, unit="", tolerance=0)
K6_MORE = Published(what="requests served at a time with pages over those without", low=2, high=4, unit="x")
PAGE = 16


@cache
def allocations() -> tuple[tuple[str, str, Allocators], ...]:
    """The requests of a trace, then each workload with a published middle at each assumed spread; seed 0."""
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
                predicted(K6_CONTIGUOUS, contiguous.waste, how, **setting),
                predicted(K6_PAGED, paged.waste, how, **setting),
                predicted(K6_MORE, paged.running / contiguous.running, how, **setting),
            ]
    return found


K6 = Claim(
    id="K6",
    text="contiguous allocation wastes 60-80% of KV memory, paging under 4%, so 2-4 times more requests fit",
    plain="Giving each user memory in one piece wastes 60 to 80% of it, and giving it in small pages wastes under 4%, "
    "so that two to four times as many users fit",
    source="A",
    how="S",
    published=(K6_CONTIGUOUS, K6_PAGED, K6_MORE),
    setting="OPT-13B's cache on an A100 of 40 GB, as in the PagedAttention paper. Lengths are drawn from a trace, and "
    "from lognormals around published middles, whose spread is not published and is varied",
    predict=predict_k6,
)

# ------------------------------------------------------------------------------------------------ K8: sliding windows

K8_GROWTH = our_range("growth of the cache (or of attention's time) beyond the window", 1, 1, "x", MEASURED)
EVERY_LAYER = "every layer"


def predict_k8() -> list[Comparison]:
    found = []
    for shape in (model("mistral-7b"), model("gemma-3-27b"), model("gpt-oss-120b"), LLAMA_70B):
        growth = kv_bytes(shape, 4 << 20, 2) / kv_bytes(shape, 8 << 10, 2)
        windowed = {0: "no layer", shape.layers: EVERY_LAYER}.get(shape.windowed_layers, "some layers")
        found.append(predicted(K8_GROWTH, growth, f"cache at 4M tokens / at 8K, {shape.name}", windowed=windowed))
    return found


def measure_k8(run: MeasuredPart) -> list[Comparison]:
    """Time of windowed attention at the longest context over the shortest, both longer than the window."""
    found = []
    windowed = [r for r in run.fastest("attention_decode", q_len=1) if 0 < r.case["window"] < r.case["T"]]
    for group in comparable(windowed, "T"):
        ordered = sorted(group, key=lambda r: r.case["T"])
        short, long = ordered[0], ordered[-1]
        if long.case["T"] > short.case["T"]:
            how = "attention time at the longest context / at the shortest, same window"
            value = seconds(long) / seconds(short)
            found.append(measured(K8_GROWTH, value, how, [short, long], windowed=EVERY_LAYER))
    return require_some(found, "windowed `attention_decode` at two contexts beyond the window")


def others_k8(others: Others) -> list[Comparison]:
    """Windowed attention on an H100: the longest context over the shortest beyond the window, 16 times or more."""
    rows = others.op("attention_decode", cold=False)
    rows = rows[(rows["part"] == "h100-sxm") & (rows["window"] > 0) & (rows["T"] >= 2 * rows["window"])]
    ordered = rows.sort_values("T")
    groups = ordered.groupby(["B", "H_q", "H_kv", "D", "window", "stored"], observed=True)
    both = pd.merge(groups.first(), groups.last(), left_index=True, right_index=True, suffixes=("_a", "_b"))
    both = some(both[both["T_b"] >= 16 * both["T_a"]], "windowed attention at two contexts")
    how = "median over published cases of the time at the longest context / at the shortest, same window"
    return [ratio(K8_GROWTH, both, how, windowed=EVERY_LAYER)]


K8 = Claim(
    id="K8",
    text="a sliding window of about 4,096 tokens with sink tokens decodes at constant memory out to millions",
    plain="A model that looks back only 4,096 tokens needs no more memory however long the text gets",
    source="A",
    how="P M",
    published=(K8_GROWTH,),
    setting="The cache at 4M tokens against 8K, for models with a window in every layer, in some and in none",
    predict=predict_k8,
    measure=measure_k8,
    by_others=others_k8,
    any_part=True,
)
