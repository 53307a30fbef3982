"""Claims I: how many operations a byte is worth in decode, and where the roofline bends."""

from __future__ import annotations

import math

from bench.devices import DEVICES, find
from bench.judge.claims.base import (
    MEASURED,
    Claim,
    Comparison,
    Measured,
    NoPrediction,
    Published,
    Unmeasured,
    number,
    our_range,
    seconds,
)
from bench.judge.claims.common import (
    DEEPSEEK_V3,
    H100,
    LLAMA_2_7B,
    LLAMA_8B,
    LLAMA_70B,
    RISE,
    WEIGHT_KINDS,
    about,
    alike,
    attention,
    batch_of,
    bisect,
    by_batch,
    cached,
    decode,
    guess,
    intensity_bracket,
    knee,
    layer_sweeps,
    need_comparisons,
    prefill_intensity,
    ridge,
    seen,
    stored,
    summed,
    weight_kind,
)
from bench.predict.step_work import PRECISIONS, expected_experts
from bench.records import Record
from kernels.models import model

INF = math.inf

# ------------------------------------------------------------------------------------------- I1, I2: intensity

I1_INTENSITY = Published(what="intensity of decode", low=1, high=2, unit="FLOP/B", tolerance=MEASURED)


def predict_i1() -> list[Comparison]:
    return [
        guess(I1_INTENSITY, summed(decode(LLAMA_70B, weights=weights, batch=batch, context=4096).ops).intensity,
              "FLOP of a whole decode step / its bytes", weights=WEIGHT_KINDS[weights], batch=batch)
        for weights in WEIGHT_KINDS
        for batch in (1, 8, 64)
    ]  # fmt: skip


BRACKET = "FLOP / (seconds x measured read bandwidth) to FLOP / compulsory bytes: the truth lies between"


TOLD = "fast enough for its intensity to be told without counters"


def bracketed(published: Published, run: Measured, record: Record, **setting: object) -> list[Comparison]:
    """What hardware counters say, else both ends of the bracket, or nothing where it settles nothing.

    A kernel far from the roof leaves a wide bracket; one that overlaps the published range without lying inside it
    neither confirms nor refutes.
    """
    counted = record.counters.get("dram_read"), record.counters.get("dram_written")
    if None not in counted:
        how = "FLOP / DRAM bytes counted by the hardware"
        return [seen(published, record.flops / sum(filter(None, counted)), how, [record], **setting)]
    ends = intensity_bracket(record, run)
    inside = [published.covers(end) for end in ends]
    beside = not any(inside) and (ends[1] < published.low or ends[0] > published.high)
    if not (all(inside) or beside):
        return []
    return [seen(published, end, BRACKET, [record], **setting) for end in ends]


def measure_i1(run: Measured) -> list[Comparison]:
    found = []
    for kind, sweep in layer_sweeps(run, B=(1, 8, 64)).items():
        for record in sweep:
            found += bracketed(I1_INTENSITY, run, record, weights=kind, batch=batch_of(record))
    return need_comparisons(found, f"`ffn_gemv` at batch 1, 8 or 64 {TOLD}")


I1 = Claim(
    id="I1",
    text="decode runs at about 1-2 FLOP per byte",
    plain="Generating text does only one or two calculations for each byte it reads",
    source="A B",
    how="P M",
    published=(I1_INTENSITY,),
    setting="Llama-3.1-70B at 4,096 tokens of context; batch and precision are not named: both are varied",
    predict=predict_i1,
    measure=measure_i1,
)


I2_DECODE = Published(what="intensity of decode at batch 1", low=1, high=8, unit="FLOP/B")
I2_PREFILL = number("intensity of prefill", 95, "FLOP/B", MEASURED)


def predict_i2() -> list[Comparison]:
    right = round(bisect(lambda n: prefill_intensity(n) - I2_PREFILL.low, 8, 8192))
    decoding = [
        guess(I2_DECODE, summed(decode(LLAMA_70B, weights=weights, context=4096).ops).intensity,
              "FLOP of a whole decode step / its bytes", phase="decode", weights=WEIGHT_KINDS[weights])
        for weights in WEIGHT_KINDS
    ]  # fmt: skip
    prefilling = [
        guess(I2_PREFILL, prefill_intensity(prompt), "FLOP of reading a prompt / its bytes", phase="prefill",
              prompt=prompt)
        for prompt in (right, 512, 2048, 8192)
    ]  # fmt: skip
    return decoding + prefilling


def measure_i2(run: Measured) -> list[Comparison]:
    found = []
    for kind, sweep in layer_sweeps(run, B=1).items():
        found += bracketed(I2_DECODE, run, sweep[0], phase="decode", weights=kind)
    return need_comparisons(found, f"`ffn_gemv` at batch 1 {TOLD}")


I2 = Claim(
    id="I2",
    text="decode at batch 1 runs at 1-8 FLOP/B, prefill at about 95 FLOP/B",
    plain="Writing an answer does 1 to 8 calculations per byte read, reading the question about 95",
    source="A",
    how="P M",
    published=(I2_DECODE, I2_PREFILL),
    setting="Llama-3.1-70B; the prompt's length is not named: varied, and solved for",
    predict=predict_i2,
    measure=measure_i2,
)


# ------------------------------------------------------------------------------------- I3, I4: ridge, crossing

I3_RIDGE = number("ridge point of the H100", 295, "FLOP/B", MEASURED)


def predict_i3() -> list[Comparison]:
    return [guess(I3_RIDGE, ridge(find(H100), "mma_bf16"), "dense bf16 peak / memory bandwidth", ceilings="datasheet")]


def measure_i3(run: Measured) -> list[Comparison]:
    about(run, H100)
    value = run.peak("mma_bf16") / run.ceilings.read_roof
    used = [*run.fastest("stream", kind="read"), *run.fastest("gemm_peak")]
    return [seen(I3_RIDGE, value, "best measured bf16 GEMM / best measured read", used, ceilings="measured")]


I3 = Claim(
    id="I3",
    text="the H100's ridge point is about 295 op/B (990 TFLOP/s over 3.35 TB/s)",
    plain="An H100 must do 295 calculations per byte read before its arithmetic is the limit",
    source="A",
    how="P M",
    published=(I3_RIDGE,),
    setting="H100 SXM, dense bf16; once with the datasheet's ceilings, once with those reached",
    predict=predict_i3,
    measure=measure_i3,
)


I4_BATCH = number("batch at which a decode FFN passes the H100's ridge", 150, "requests", MEASURED)


def predict_i4() -> list[Comparison]:
    found = []
    for weights, kind in WEIGHT_KINDS.items():
        crossing = decode(LLAMA_70B, weights=weights).op("gate_up").crossing_batch
        how = "smallest batch at which gate and up compute longer than they read"
        found.append(guess(I4_BATCH, crossing or INF, how, weights=kind))
    return found


def measure_i4(run: Measured) -> list[Comparison]:
    about(run, H100)
    found, reasons = [], []
    for kind, sweep in layer_sweeps(run).items():
        try:
            how = "batch at which the time of a layer turns from constant to proportional"
            found.append(seen(I4_BATCH, knee(sweep), how, sweep, weights=kind))
        except Unmeasured as error:
            reasons.append(f"{kind}: {error}")
    if not found:
        raise Unmeasured("; ".join(reasons) or "the run holds no `ffn_gemv`")
    return found


I4 = Claim(
    id="I4",
    text="decode FFN needs a batch above about 150 to pass the H100's ridge",
    plain="An H100 must serve more than about 150 users at once before its arithmetic is the limit",
    source="A",
    how="P M",
    published=(I4_BATCH,),
    setting="gate and up of Llama-3.1-70B on an H100 SXM; the precision is not named: varied",
    predict=predict_i4,
    measure=measure_i4,
)


# --------------------------------------------------------------------------------------------- I5: attention

I5_INTENSITY = Published(what="intensity of attention", low=0.5, high=1, unit="FLOP/B")


def predict_i5() -> list[Comparison]:
    return [
        guess(I5_INTENSITY, decode(shape, kv=kv, batch=batch, context=4096).op("attention").intensity,
              "4 H_q D FLOP / 2 H_kv D cached elements, per token", cache=kv, batch=batch,
              **{"query heads per KV head": shape.heads // shape.kv_heads})
        for shape in (LLAMA_2_7B, LLAMA_8B, LLAMA_70B)
        for kv in ("fp32", "bf16", "fp8")
        for batch in (1, 16, 64, 256)
    ]  # fmt: skip


def measure_i5(run: Measured) -> list[Comparison]:
    found = []
    for record in attention(run):
        group = record.case["H_q"] // record.case["H_kv"]
        found += bracketed(I5_INTENSITY, run, record, cache=cached(record), batch=record.case["B"],
                           **{"query heads per KV head": group})  # fmt: skip
    return need_comparisons(found, f"`attention_decode` {TOLD}")


I5 = Claim(
    id="I5",
    text="attention's intensity stays at 0.5-1 op/B whatever the batch, a ceiling that batching can't lift",
    plain="Looking back at the conversation does half a calculation to one per byte, however many users share it",
    source="A",
    how="P M",
    published=(I5_INTENSITY,),
    setting="4,096 tokens of context; heads per KV head, cache precision and batch are varied",
    predict=predict_i5,
    measure=measure_i5,
)


# --------------------------------------------------------------------------------------------------- I6, I7: MoE

I6_BATCH = number("batch that saturates 256 experts, top 8", 3840, "requests")
EXPERTS, TOP_K = 256, 8


def saturating_batch(device: str, weights: str) -> float:
    """Every expert gets batch x top-k / experts tokens and saturates at ridge x bytes per weight / 2 of them."""
    precision = PRECISIONS[weights]
    return ridge(find(device), precision.pipe) * precision.bytes / 2 * EXPERTS / TOP_K


def predict_i6() -> list[Comparison]:
    found = []
    for key, part in DEVICES.items():
        for weights, kind in WEIGHT_KINDS.items():
            try:
                value = saturating_batch(key, weights)
            except NoPrediction:
                continue
            how = "ridge x bytes per weight / 2 tokens an expert x 256 / 8, experts equally likely"
            found.append(guess(I6_BATCH, value, how, part=part.name, weights=kind))
    return found


def moe_sweeps(run: Measured) -> list[list[Record]]:
    """Records of one MoE layer in one precision, ascending in batch, layers with most batches first."""
    groups = alike(run.fastest("moe_ffn", routing="uniform"), "B")
    return sorted((sorted(by_batch(g).values(), key=batch_of) for g in groups), key=len, reverse=True)


def measure_i6(run: Measured) -> list[Comparison]:
    found = []
    for sweep in moe_sweeps(run):
        case = sweep[0].case
        if (case["E"], case["k"]) != (EXPERTS, TOP_K):
            continue
        full = [r for r in sweep if (1 - TOP_K / EXPERTS) ** batch_of(r) < 0.01]
        if len(full) < 2:
            continue
        if seconds(full[-1]) >= RISE * seconds(full[0]):
            value = batch_of(full[-1]) * seconds(full[0]) / seconds(full[-1])
            how = "batch at which the time with every expert read turns proportional"
            found.append(seen(I6_BATCH, value, how, full, part=run.name, weights=weight_kind(full[0])))
    return need_comparisons(found, "`moe_ffn` of 256 experts, top 8, swept to where its time follows the batch")


I6 = Claim(
    id="I6",
    text="a 256-expert top-8 MoE saturates only at a batch of about 3,840",
    plain="A model of 256 experts keeps a chip's arithmetic busy only from about 3,840 users at once",
    source="A",
    how="P M",
    published=(I6_BATCH,),
    setting="neither part nor precision is named: every part with published numbers, four precisions",
    predict=predict_i6,
    measure=measure_i6,
)


I7_FEW = our_range("share of experts read at batch 1", 0, 0.1, "")
I7_ALL = our_range("share of experts read at batch 256", 0.99, 1, "")
I7_MORE = our_range("bytes at batch 256 over a dense layer's of equal compute", 1.5, INF, "x")


def predict_i7() -> list[Comparison]:
    found = []
    for shape in (DEEPSEEK_V3, model("gpt-oss-120b"), model("mixtral-8x7b")):
        hit = expected_experts(shape, 256)
        how = "E (1 - (1 - k/E)^batch) experts, each as likely as another"
        found += [
            guess(I7_FEW, shape.experts_per_token / shape.experts, how, model=shape.name),
            guess(I7_ALL, hit / shape.experts, how, model=shape.name),
            guess(I7_MORE, hit / shape.experts_per_token, "experts read / top-k", model=shape.name),
        ]
    return found


def measure_i7(run: Measured) -> list[Comparison]:
    found = []
    for sweep in moe_sweeps(run):
        one, many = sweep[0], min(sweep, key=lambda r: abs(math.log(batch_of(r) / 256)))
        if batch_of(one) == 1 and batch_of(many) >= 64:
            how = (
                f"time at batch {batch_of(many)}, the nearest to 256, / time at batch 1, which reads what a dense "
                f"layer of equal compute does; weights in {stored(many)}"
            )
            found.append(seen(I7_MORE, seconds(many) / seconds(one), how, [one, many], model=one.case.get("model")))
    return need_comparisons(found, "`moe_ffn` from batch 1 to 64 or more")


I7 = Claim(
    id="I7",
    text="MoE at small batch reads few experts; at large batch it reads them all and moves more bytes than a "
    "dense layer of equal compute",
    plain="A model of experts reads at most a tenth of them for one user, 99% for 256, and then at least half as "
    "much again as a plain one",
    source="A",
    how="P M",
    published=(I7_FEW, I7_ALL, I7_MORE),
    setting="batch 1 against 256; few: at most a tenth; all: 99%; more: half as much again",
    predict=predict_i7,
    measure=measure_i7,
)
