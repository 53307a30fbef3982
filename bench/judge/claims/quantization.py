"""Claims about quantization: what fewer bits save in memory and time."""

from __future__ import annotations

from statistics import median

import pandas as pd

from bench.devices import find
from bench.judge.claims import whole_steps
from bench.judge.claims.base import MEASURED, Claim, Comparison, Published, Unmeasured, number
from bench.judge.claims.common import (
    H100,
    LLAMA_70B,
    SHORT_CONTEXT,
    WEIGHT_KINDS,
    capacity,
    decode,
    measured,
    peak,
    predicted,
)
from bench.judge.claims.others import KINDS, Others, paired, parts_with, ratio
from bench.judge.claims.reading import (
    MeasuredPart,
    attention,
    by_weight_kind,
    cache_format,
    gemv,
    pairs,
    require_some,
    seconds,
    weight_kind,
)
from bench.predict.step_work import PRECISIONS
from bench.records import Record
from kernels.models import kv_bytes, parameters

LARGE = 64 << 20
"""Bytes in 16 bits from which a case is compared: there a launch takes under a tenth of the time."""


def same_layer_pairs(run: MeasuredPart, kind: str) -> list[tuple[Record, Record]]:
    """Pairs (16-bit, `kind`) of one large layer at batch 1."""
    kinds = by_weight_kind(gemv(run, B=1))
    plain = WEIGHT_KINDS["bf16"]
    records = [r for r in (*kinds.get(plain, []), *kinds.get(kind, [])) if 2 * r.case["N"] * r.case["K"] >= LARGE]
    return pairs(records, weight_kind, plain, kind, "weights", "activations")


def median_ratio(both: list[tuple[Record, Record]]) -> float:
    """Median over pairs of the second's time over the first's."""
    return median(seconds(b) / seconds(a) for a, b in both)


# ------------------------------------------------------------------------------------------- T4: half the weights

T4_TIME = number("latency in INT8 over FP16", 0.5, "x", MEASURED)
T4_ROOM = number("memory left for KV in INT8 over FP16", 2, "x", MEASURED)


def predict_t4() -> list[Comparison]:
    found = []
    for context, batch in ((SHORT_CONTEXT, 1), (2048, 1), (8192, 16), (8192, 64)):
        half, full = (decode(LLAMA_70B, weights=w, batch=batch, context=context).seconds for w in ("w8a16", "bf16"))
        how = "step with 8-bit weights / step with 16-bit weights, cache in bf16"
        found.append(predicted(T4_TIME, half / full, how, the="latency", batch=batch, context=context))
    for key, count in ((H100, 2), (H100, 3), (H100, 4), (H100, 8), ("h200", 2)):
        total = count * capacity(find(key))
        value = (total - parameters(LLAMA_70B)) / (total - 2 * parameters(LLAMA_70B))
        how = "(memory - 1 B a weight) / (memory - 2 B a weight)"
        found.append(predicted(T4_ROOM, value, how, the="room", parts=f"{count} x {find(key).name}"))
    return found


def measure_t4(run: MeasuredPart) -> list[Comparison]:
    """Whole steps; else layers."""
    if whole := whole_steps.in_fewer_bits(run, T4_TIME, ("int8", "fp8")):
        return whole
    found = []
    for kind in (WEIGHT_KINDS["w8a16"], WEIGHT_KINDS["fp8"]):
        layers = same_layer_pairs(run, kind)
        if layers:
            how = f"median over layers of the time with {kind} weights / with 16-bit weights, fastest of each"
            used = [r for pair in layers for r in pair]
            setting = {"the": "latency", "batch": 1, "context": SHORT_CONTEXT}
            found.append(measured(T4_TIME, median_ratio(layers), how, used, **setting))
    return require_some(found, "layer at batch 1 with both 16-bit and 8-bit weights")


def published_pairs(others: Others, kind: str) -> pd.DataFrame:
    """Products at batch 1 in 16 bits (a) and in `kind` (b), of each part that has both."""
    found = []
    for part in ("h100-sxm", "a100-80"):
        for stored in dict.fromkeys(s for (s, _), words in KINDS.items() if words == kind):
            plain = others.products(part, kind=WEIGHT_KINDS["bf16"], B=1)
            few = others.products(part, kind=kind, B=1, stored=stored)
            found.append(paired(plain, few, "stored", "activations"))
    return pd.concat(found)


def others_t4(others: Others) -> list[Comparison]:
    found = []
    for kind in (WEIGHT_KINDS["w8a16"], WEIGHT_KINDS["fp8"]):
        layers = published_pairs(others, kind)
        if len(layers):
            how = f"median over published products of the time with {kind} weights / with 16-bit weights"
            found.append(ratio(T4_TIME, layers, how, the="latency", batch=1, context=SHORT_CONTEXT))
    return require_some(found, "published product at batch 1 with both 16-bit and 8-bit weights")


T4 = Claim(
    id="T4",
    text="FP16 to INT8 halves decode latency and doubles the memory left for KV",
    plain="Storing the model in half the bits halves the time per token and doubles the room for users",
    source="A",
    how="P M",
    published=(T4_TIME, T4_ROOM),
    setting="Llama-3.1-70B with quantized weights and its cache in bf16. Batch, context and the number of parts are "
    "varied",
    predict=predict_t4,
    measure=measure_t4,
    by_others=others_t4,
    any_part=True,
)

# ------------------------------------------------------------------------------------- T5: the size of 4-bit weights

T5_SIZE = number("weights of a 70B model in INT4", 35e9, "B")


def predict_t5() -> list[Comparison]:
    how = "parameters of Llama-3.1-70B x bits / 8"
    return [
        predicted(T5_SIZE, parameters(LLAMA_70B) * bits / 8, how, scales=scales)
        for scales, bits in (("not counted", 4), ("16 bits for every 128 weights", 4 + 16 / 128))
    ]


T5 = Claim(
    id="T5",
    text="INT4 brings a 70B model to 35 GB",
    plain="With 4 bits a weight, a 70B model takes 35 GB",
    source="A",
    how="P",
    published=(T5_SIZE,),
    setting="Llama-3.1-70B, 70.6 billion parameters, without and with the scales of groups of 128",
    predict=predict_t5,
)

# ------------------------------------------------------------------------------------------------ T6: an FP8 cache

T6_SIZE = number("cache in FP8 over the cache in 16 bits", 0.5, "x")
T6_TIME = number("attention time with the cache in FP8 over 16 bits", 0.5, "x", MEASURED)


def predict_t6() -> list[Comparison]:
    size = kv_bytes(LLAMA_70B, 8192, 1) / kv_bytes(LLAMA_70B, 8192, 2)
    half, full = (decode(LLAMA_70B, kv=kv, batch=16, context=8192).op("attention").seconds for kv in ("fp8", "bf16"))
    return [
        predicted(T6_SIZE, size, "1 B / 2 B an element"),
        predicted(T6_TIME, half / full, "attention of a step with an fp8 cache / with a bf16 cache"),
    ]


def measure_t6(run: MeasuredPart) -> list[Comparison]:
    both = pairs(attention(run), cache_format, "bf16", "fp8", "kv")
    large = [pair for pair in both if pair[0].bytes >= LARGE]
    whole = whole_steps.attention_in_fewer_bits(run, T6_TIME, LARGE)
    if not large and not whole:
        raise Unmeasured("the run holds no large `attention_decode` with its cache both in bf16 and in fp8")
    how = "median over cases of the time with an fp8 cache / a bf16 cache, fastest of each"
    alone = [measured(T6_TIME, median_ratio(large), how, [r for pair in large for r in pair])] if large else []
    return [*alone, *whole]


def others_t6(others: Others) -> list[Comparison]:
    """By part, since the conversion of 8-bit numbers costs each generation something else."""
    rows = others.op("attention_decode")
    found = []
    for part in parts_with(rows, ("h100-sxm", "h200", "b200")):
        mine = rows[(rows["part"] == part) & (rows["window"] == 0)]
        both = paired(mine[mine["stored"] == "bf16"], mine[mine["stored"] == "fp8"], "stored", "activations")
        if len(both):
            how = "median over published cases of the time with an fp8 cache / a bf16 cache"
            found.append(ratio(T6_TIME, both, how, device=find(part).name))
    return require_some(found, "published attention with its cache both in bf16 and in fp8")


T6 = Claim(
    id="T6",
    text="an FP8 KV cache halves the cache",
    plain="Storing what is remembered in half the bits halves its size and the time to read it",
    source="A",
    how="P M",
    published=(T6_SIZE, T6_TIME),
    setting="Llama-3.1-70B, batch 16, 8,192 tokens, against a 16-bit cache. Scales are not counted",
    predict=predict_t6,
    measure=measure_t6,
    by_others=others_t6,
    any_part=True,
)

# ---------------------------------------------------------------------------------- T7: memory and compute in few bits

T7_MEMORY = Published(what="memory of 16-bit weights over quantized ones", low=2, high=4, unit="x")
T7_COMPUTE = Published(what="arithmetic rate over bf16's", low=2, high=4, unit="x")
T7_TIME = Published(
    what="time of a layer with 16-bit weights over quantized ones", low=2, high=4, unit="x", tolerance=MEASURED
)
QUANTIZED = ("fp8", "w8a16", "int4")


def predict_t7() -> list[Comparison]:
    def gate_up(weights: str) -> float:
        return decode(LLAMA_70B, weights=weights, context=SHORT_CONTEXT).op("gate_up").seconds

    found = []
    for name in QUANTIZED:
        kind, precision = WEIGHT_KINDS[name], PRECISIONS[name]
        rate = peak(find(H100), precision.pipe) / peak(find(H100), "mma_bf16")
        time = gate_up("bf16") / gate_up(name)
        found += [
            predicted(T7_MEMORY, 2 / precision.bytes, "2 B / bytes a weight", weights=kind),
            predicted(T7_COMPUTE, rate, "peaks of the H100", weights=kind),
            predicted(T7_TIME, time, "gate and up of Llama-3.1-70B at batch 1", weights=kind),
        ]
    return found


def measure_t7(run: MeasuredPart) -> list[Comparison]:
    found = []
    for kind in map(WEIGHT_KINDS.__getitem__, QUANTIZED):
        layers = same_layer_pairs(run, kind)
        if layers:
            how = "median over layers of the time with 16-bit weights / with quantized ones, at batch 1"
            used = [r for pair in layers for r in pair]
            found.append(measured(T7_TIME, 1 / median_ratio(layers), how, used, weights=kind))
    return require_some(found, "layer at batch 1 with both 16-bit and quantized weights")


def others_t7(others: Others) -> list[Comparison]:
    found = []
    for kind in map(WEIGHT_KINDS.__getitem__, QUANTIZED):
        layers = published_pairs(others, kind)
        if len(layers):
            how = "median over published products of the time with 16-bit weights / with quantized ones, at batch 1"
            found.append(ratio(T7_TIME, layers, how, upside_down=True, weights=kind))
    return require_some(found, "published product at batch 1 with both 16-bit and quantized weights")


T7 = Claim(
    id="T7",
    text="quantization cuts memory and compute 2-4 times",
    plain="Storing and computing in fewer bits saves a factor of two to four",
    source="D",
    how="P M",
    published=(T7_MEMORY, T7_COMPUTE, T7_TIME),
    setting="Against bf16 on an H100. The bits of weights and of arithmetic are varied",
    predict=predict_t7,
    measure=measure_t7,
    by_others=others_t7,
)
