"""Claims about intensity: how many operations decode does for each byte that it reads, and where the roofline bends."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

from bench.devices import find
from bench.judge.claims.base import MEASURED, Claim, Comparison, Published, Unmeasured, number
from bench.judge.claims.common import (
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
from bench.judge.claims.others import Others, between_batches, bracket, by_others, side
from bench.judge.claims.reading import (
    MIN_GROWTH,
    MeasuredPart,
    attention,
    batch_of,
    cache_format,
    intensity_bracket,
    knee,
    layer_sweeps,
    require_part,
    require_some,
)
from bench.records import Record

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


def step_bracket(others: Others, published: Published, kind: str, at: int, **setting: object) -> list[Comparison]:
    """The bracket of published products on an H100 in these weights and at this batch; nothing without such rows."""
    rows = others.products(H100, kind=kind, B=at)
    return bracket(published, rows, weights=kind, **setting) if len(rows) else []


def others_i1(others: Others) -> list[Comparison]:
    found = []
    for kind, batch in product(WEIGHT_KINDS.values(), (1, 8, 64)):
        found += step_bracket(others, I1_INTENSITY, kind, batch, batch=batch)
    return require_some(found, f"published product at batch 1, 8 or 64 {SO_FAST}")


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
    by_others=others_i1,
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


def others_i2(others: Others) -> list[Comparison]:
    return [c for kind in WEIGHT_KINDS.values() for c in step_bracket(others, I2_DECODE, kind, 1, phase="decode")]


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
    setting="Llama-3.1-70B. The text does not name the prompt's length: it is varied, and the "
    "length that gives the published number is tried too",
    predict=predict_i2,
    measure=measure_i2,
    by_others=others_i2,
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
        crossing = decode(LLAMA_70B, weights=weights, crossings=True).op("gate_up").crossing_batch
        how = "smallest batch at which gate and up compute longer than they read"
        found.append(predicted(I4_BATCH, crossing or math.inf, how, weights=kind))
    return found


def others_i4(others: Others) -> list[Comparison]:
    """A sweep that ends before its time has grown has its knee beyond its last batch: a lower bound."""
    found = []
    for kind, rows in others.products(H100).groupby("kind"):
        for low, high in ((1, 256), (2, 256), (4, 192), (1, 192), (1, 128)):
            both = between_batches(rows, "N", "K", "stored", "activations", low=low, high=high)
            if len(both) < 3:
                continue
            growth = float((both["seconds_b"] / both["seconds_a"]).median())
            how = "median over products of batch x time at the smallest batch / time there, as in a run"
            used = (side(both.assign(part=H100), "a"), side(both.assign(part=H100), "b"))
            value = high / growth
            if growth >= MIN_GROWTH:
                found.append(by_others(I4_BATCH, value, how, *used, weights=kind))
            else:
                how = f"time grows {growth:.2f} times up to batch {high}: the knee lies beyond that over this"
                found.append(replace(by_others(I4_BATCH, value, how, *used, weights=kind), bound="lower"))
            break
    return require_some(found, "published sweep of a product over its batch")


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
    by_others=others_i4,
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


def others_i5(others: Others) -> list[Comparison]:
    rows = others.op("attention_decode")
    rows = rows[(rows["part"] == H100) & (rows["window"] == 0)]
    found = []
    for (group, kv, batch), mine in rows.groupby([rows["H_q"] // rows["H_kv"], "stored", "B"], observed=True):
        if group in (1, 4, 8) and batch in (1, 16, 64, 256):
            found += bracket(I5_INTENSITY, mine, cache=kv, batch=batch, **{GROUP: group})
    return require_some(found, f"published attention {SO_FAST}")


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
    by_others=others_i5,
    any_part=True,
)
