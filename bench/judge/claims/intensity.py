"""Claims about intensity: how many operations decode does for each byte that it reads, and where the roofline bends."""

from __future__ import annotations

import math
from itertools import product

from bench.devices import DEVICES, find
from bench.judge.claims.base import MEASURED, Claim, Comparison, NoPrediction, Published, Unmeasured, number, our_range
from bench.judge.claims.common import (
    DEEPSEEK_V3,
    H100,
    LLAMA_2_7B,
    LLAMA_8B,
    LLAMA_70B,
    WEIGHT_KINDS,
    bisect,
    decode,
    measured,
    predicted,
    prefill_intensity,
    ridge,
    total_work,
)
from bench.judge.claims.reading import (
    MIN_GROWTH,
    MeasuredPart,
    attention,
    batch_of,
    cache_format,
    comparable,
    fastest_by_batch,
    intensity_bracket,
    knee,
    layer_sweeps,
    require_part,
    require_some,
    seconds,
    weight_format,
    weight_kind,
)
from bench.predict.step_work import PRECISIONS, expected_experts
from bench.records import Record
from kernels.models import model

# ------------------------------------------------------------------------------------------- I1: intensity of decode

I1_INTENSITY = Published(what="intensity of decode", low=1, high=2, unit="FLOP/B", tolerance=MEASURED)
STEP_INTENSITY = "FLOP of a whole decode step / its bytes"
SO_FAST = "so fast that its intensity is known without counters"


def step_intensity(weights: str, batch: int) -> float:
    """FLOP per byte of a decode step of Llama-3.1-70B with 4,096 tokens of context."""
    return total_work(decode(LLAMA_70B, weights=weights, batch=batch, context=4096).ops).intensity


def predict_i1() -> list[Comparison]:
    return [
        predicted(I1_INTENSITY, step_intensity(weights, batch), STEP_INTENSITY, weights=kind, batch=batch)
        for (weights, kind), batch in product(WEIGHT_KINDS.items(), (1, 8, 64))
    ]


def bracketed(published: Published, run: MeasuredPart, record: Record, **setting: object) -> list[Comparison]:
    """The intensity that hardware counters give. Without counters, both ends of the bracket that holds it.

    A kernel far from the roof has a wide bracket. A bracket that overlaps the published range without lying inside it
    neither confirms nor refutes the number, so nothing is returned.
    """
    counted = record.counters.get("dram_read"), record.counters.get("dram_written")
    if None not in counted:
        how = "FLOP / DRAM bytes counted by the hardware"
        return [measured(published, record.flops / sum(filter(None, counted)), how, [record], **setting)]
    ends = intensity_bracket(record, run)
    inside = [published.covers(end) for end in ends]
    outside = not any(inside) and (ends[1] < published.low or ends[0] > published.high)
    if not (all(inside) or outside):
        return []
    how = "between FLOP / (seconds x measured read bandwidth) and FLOP / compulsory bytes"
    return [measured(published, end, how, [record], **setting) for end in ends]


def measure_i1(run: MeasuredPart) -> list[Comparison]:
    found = []
    for kind, sweep in layer_sweeps(run, B=(1, 8, 64)).items():
        for record in sweep:
            found += bracketed(I1_INTENSITY, run, record, weights=kind, batch=batch_of(record))
    return require_some(found, f"`ffn_gemv` at batch 1, 8 or 64 {SO_FAST}")


I1 = Claim(
    id="I1",
    text="decode runs at about 1-2 FLOP per byte",
    plain="Generating text does only one or two calculations for each byte it reads",
    source="A B",
    how="P M",
    published=(I1_INTENSITY,),
    setting="Llama-3.1-70B with 4,096 tokens of context. The text names neither batch nor precision: both are varied",
    predict=predict_i1,
    measure=measure_i1,
)

# ----------------------------------------------------------------------------- I2: intensity of decode and of prefill

I2_DECODE = Published(what="intensity of decode at batch 1", low=1, high=8, unit="FLOP/B")
I2_PREFILL = number("intensity of prefill", 95, "FLOP/B", MEASURED)


def predict_i2() -> list[Comparison]:
    right = round(bisect(lambda n: prefill_intensity(n) - I2_PREFILL.low, 8, 8192))
    how = "FLOP of reading a prompt / its bytes"
    return [
        *(
            predicted(I2_DECODE, step_intensity(weights, 1), STEP_INTENSITY, phase="decode", weights=kind)
            for weights, kind in WEIGHT_KINDS.items()
        ),
        *(
            predicted(I2_PREFILL, prefill_intensity(prompt), how, phase="prefill", prompt=prompt)
            for prompt in (right, 512, 2048, 8192)
        ),
    ]


def measure_i2(run: MeasuredPart) -> list[Comparison]:
    found = []
    for kind, sweep in layer_sweeps(run, B=1).items():
        found += bracketed(I2_DECODE, run, sweep[0], phase="decode", weights=kind)
    return require_some(found, f"`ffn_gemv` at batch 1 {SO_FAST}")


I2 = Claim(
    id="I2",
    text="decode at batch 1 runs at 1-8 FLOP/B, prefill at about 95 FLOP/B",
    plain="Writing an answer does 1 to 8 calculations per byte read, and reading the question does about 95",
    source="A",
    how="P M",
    published=(I2_DECODE, I2_PREFILL),
    setting="Llama-3.1-70B. The text does not name the prompt's length: it is varied, and solved for",
    predict=predict_i2,
    measure=measure_i2,
)

# ---------------------------------------------------------------------------------------- I3: the H100's ridge point

I3_RIDGE = number("ridge point of the H100", 295, "FLOP/B", MEASURED)


def predict_i3() -> list[Comparison]:
    value = ridge(find(H100), "mma_bf16")
    return [predicted(I3_RIDGE, value, "dense bf16 peak / memory bandwidth", ceilings="datasheet")]


def measure_i3(run: MeasuredPart) -> list[Comparison]:
    require_part(run, H100)
    value = run.peak("mma_bf16") / run.ceilings.read_roof
    used = [*run.fastest("stream", kind="read"), *run.fastest("gemm_peak")]
    return [measured(I3_RIDGE, value, "best measured bf16 GEMM / best measured read", used, ceilings="measured")]


I3 = Claim(
    id="I3",
    text="the H100's ridge point is about 295 op/B (990 TFLOP/s over 3.35 TB/s)",
    plain="An H100 must do 295 calculations per byte read before its arithmetic is the limit",
    source="A",
    how="P M",
    published=(I3_RIDGE,),
    setting="H100 SXM, dense bf16: once with the datasheet's ceilings, once with the measured ones",
    predict=predict_i3,
    measure=measure_i3,
)

# ------------------------------------------------------------------------------- I4: the batch that crosses the ridge

I4_BATCH = number("batch at which a decode FFN passes the H100's ridge", 150, "requests", MEASURED)


def predict_i4() -> list[Comparison]:
    found = []
    for weights, kind in WEIGHT_KINDS.items():
        crossing = decode(LLAMA_70B, weights=weights).op("gate_up").crossing_batch
        how = "smallest batch at which gate and up compute longer than they read"
        found.append(predicted(I4_BATCH, crossing or math.inf, how, weights=kind))
    return found


def measure_i4(run: MeasuredPart) -> list[Comparison]:
    require_part(run, H100)
    found, reasons = [], []
    for kind, sweep in layer_sweeps(run).items():
        try:
            how = "batch at which the time of a layer turns from constant to proportional"
            found.append(measured(I4_BATCH, knee(sweep), how, sweep, weights=kind))
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
    setting="Gate and up of Llama-3.1-70B on an H100 SXM. The text does not name the precision: it is varied",
    predict=predict_i4,
    measure=measure_i4,
)

# --------------------------------------------------------------------------------------- I5: intensity of attention

I5_INTENSITY = Published(what="intensity of attention", low=0.5, high=1, unit="FLOP/B")
GROUP = "query heads per KV head"


def predict_i5() -> list[Comparison]:
    found = []
    shapes = (LLAMA_2_7B, LLAMA_8B, LLAMA_70B)
    for shape, kv, batch in product(shapes, ("fp32", "bf16", "fp8"), (1, 16, 64, 256)):
        value = decode(shape, kv=kv, batch=batch, context=4096).op("attention").intensity
        how = "4 H_q D FLOP / 2 H_kv D cached elements, per token"
        group = shape.heads // shape.kv_heads
        found.append(predicted(I5_INTENSITY, value, how, cache=kv, batch=batch, **{GROUP: group}))
    return found


def measure_i5(run: MeasuredPart) -> list[Comparison]:
    found = []
    for record in attention(run):
        group = record.case["H_q"] // record.case["H_kv"]
        setting = {"cache": cache_format(record), "batch": batch_of(record), GROUP: group}
        found += bracketed(I5_INTENSITY, run, record, **setting)
    return require_some(found, f"`attention_decode` {SO_FAST}")


I5 = Claim(
    id="I5",
    text="attention's intensity stays at 0.5-1 op/B whatever the batch, a ceiling that batching can't lift",
    plain="Looking back at the conversation does between half a calculation and one per byte, however many users "
    "are served at once",
    source="A",
    how="P M",
    published=(I5_INTENSITY,),
    setting="4,096 tokens of context. Heads per KV head, cache precision and batch are varied",
    predict=predict_i5,
    measure=measure_i5,
)

# --------------------------------------------------------------------------- I6: the batch that saturates the experts

I6_BATCH = number("batch that saturates 256 experts, top 8", 3840, "requests")
EXPERTS, TOP_K = 256, 8


def saturating_batch(device: str, weights: str) -> float:
    """Each expert gets batch x top-k / experts tokens, and ridge x bytes per weight / 2 tokens saturate it."""
    precision = PRECISIONS[weights]
    return ridge(find(device), precision.pipe) * precision.bytes / 2 * EXPERTS / TOP_K


def predict_i6() -> list[Comparison]:
    found = []
    for (key, part), (weights, kind) in product(DEVICES.items(), WEIGHT_KINDS.items()):
        try:
            value = saturating_batch(key, weights)
        except NoPrediction:
            continue
        how = "ridge x bytes per weight / 2 tokens an expert x 256 / 8, experts equally likely"
        found.append(predicted(I6_BATCH, value, how, part=part.name, weights=kind))
    return found


def moe_sweeps(run: MeasuredPart) -> list[list[Record]]:
    """Each MoE layer in each precision, swept over ascending batches. The sweep with the most batches comes first."""
    groups = comparable(run.fastest("moe_ffn", routing="uniform"), "B")
    return sorted((sorted(fastest_by_batch(g).values(), key=batch_of) for g in groups), key=len, reverse=True)


def measure_i6(run: MeasuredPart) -> list[Comparison]:
    found = []
    for sweep in moe_sweeps(run):
        case = sweep[0].case
        if (case["E"], case["k"]) != (EXPERTS, TOP_K):
            continue
        full = [r for r in sweep if (1 - TOP_K / EXPERTS) ** batch_of(r) < 0.01]
        if len(full) > 1 and seconds(full[-1]) >= MIN_GROWTH * seconds(full[0]):
            value = batch_of(full[-1]) * seconds(full[0]) / seconds(full[-1])
            how = "batch at which the time turns proportional to the batch, among batches that read every expert"
            found.append(measured(I6_BATCH, value, how, full, part=run.name, weights=weight_kind(full[0])))
    return require_some(found, "`moe_ffn` of 256 experts, top 8, swept to where its time follows the batch")


I6 = Claim(
    id="I6",
    text="a 256-expert top-8 MoE saturates only at a batch of about 3,840",
    plain="A model of 256 experts keeps a chip's arithmetic busy only from about 3,840 users at once",
    source="A",
    how="P M",
    published=(I6_BATCH,),
    setting="The text names neither part nor precision: every part with published numbers is tried in five precisions",
    predict=predict_i6,
    measure=measure_i6,
)

# ------------------------------------------------------------------------------- I7: the experts that a batch reads

I7_FEW = our_range("share of experts read at batch 1", 0, 0.1, "")
I7_ALL = our_range("share of experts read at batch 256", 0.99, 1, "")
I7_MORE = our_range("bytes at batch 256 over a dense layer's of equal compute", 1.5, math.inf, "x")


def predict_i7() -> list[Comparison]:
    found = []
    for shape in (DEEPSEEK_V3, model("gpt-oss-120b"), model("mixtral-8x7b")):
        hit = expected_experts(shape, 256)
        how = "E (1 - (1 - k/E)^batch) experts, all equally likely"
        found += [
            predicted(I7_FEW, shape.experts_per_token / shape.experts, how, model=shape.name),
            predicted(I7_ALL, hit / shape.experts, how, model=shape.name),
            predicted(I7_MORE, hit / shape.experts_per_token, "experts read / top-k", model=shape.name),
        ]
    return found


def measure_i7(run: MeasuredPart) -> list[Comparison]:
    found = []
    for sweep in moe_sweeps(run):
        one, many = sweep[0], min(sweep, key=lambda r: abs(math.log(batch_of(r) / 256)))
        if batch_of(one) == 1 and batch_of(many) >= 64:
            how = (
                f"time at batch {batch_of(many)}, the nearest to 256, / time at batch 1, which reads what a dense "
                f"layer of equal compute reads; weights in {weight_format(many)}"
            )
            found.append(measured(I7_MORE, seconds(many) / seconds(one), how, [one, many], model=one.case.get("model")))
    return require_some(found, "`moe_ffn` from batch 1 to 64 or more")


I7 = Claim(
    id="I7",
    text="MoE at small batch reads few experts; at large batch it reads them all and moves more bytes than a "
    "dense layer of equal compute",
    plain="A model of experts reads at most a tenth of its experts for one user and 99% of them for 256 users, and "
    "then moves at least 1.5 times the bytes of a plain model that calculates as much",
    source="A",
    how="P M",
    published=(I7_FEW, I7_ALL, I7_MORE),
    setting="Batch 1 against 256. Few: at most a tenth. All: at least 99%. More: at least half as much again",
    predict=predict_i7,
    measure=measure_i7,
)
