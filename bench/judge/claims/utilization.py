"""Claims about utilization: what decode leaves unused of a GPU, and what its time depends on."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from statistics import median

from bench.devices import find
from bench.judge import elasticity
from bench.judge.claims import whole_steps
from bench.judge.claims.base import (
    APPROXIMATE,
    ARITHMETIC,
    MEASURED,
    Claim,
    Comparison,
    Published,
    Unmeasured,
    number,
    our_range,
)
from bench.judge.claims.common import (
    H100,
    LLAMA_8B,
    LLAMA_70B,
    WEIGHT_KINDS,
    bandwidth,
    bisect,
    decode,
    measured,
    peak,
    predicted,
    prefill_intensity,
    ridge,
    total_work,
)
from bench.judge.claims.others import Others, by_others, paired, peak_share, side, some
from bench.judge.claims.reading import (
    MeasuredPart,
    batch_of,
    bf16_sweep,
    cache_format,
    flop_rate,
    nominal_peak,
    prompt_seconds,
    require_some,
    seconds,
    weight_format,
)
from bench.predict.step_model import step
from bench.records import Record

LARGE = 16 << 20
"""Bytes from which a case shows how time depends on bytes and FLOP. A smaller case shows the launch."""

# ------------------------------------------------------------------------------------------- I8: hits in the L2 cache

I8_FALL = Published(
    what="fall of the L2 hit rate from prefill to decode", low=0.74, high=0.82, unit="", tolerance=MEASURED
)
L2_HITS = "l2_hit_rate"


def measure_i8(run: MeasuredPart) -> list[Comparison]:
    """Prefill is the GEMMs and attention of a prompt if the run counted these, else any large GEMM."""
    found = (run.find("prefill"), run.find("gemm_peak", kind="gemm"))
    prefill = next((counted for records in found if (counted := [r for r in records if r.counters.get(L2_HITS)])), [])
    decoding = [
        r for op in ("ffn_gemv", "attention_decode") for r in run.find(op) if r.counters.get(L2_HITS) is not None
    ]
    if not prefill or not decoding:
        raise Unmeasured("the run holds no hardware counters of prefill (or a large GEMM) and of a decode operation")
    hits = max(r.counters[L2_HITS] for r in prefill)
    how = f"1 - L2 hit rate of a decode operation / that of {prefill[0].op}, from hardware counters"
    return [
        measured(I8_FALL, 1 - r.counters[L2_HITS] / hits, how, [r, *prefill], op=r.op, case=r.case_id) for r in decoding
    ]


I8 = Claim(
    id="I8",
    text="L2 hit rate falls by 74-82% from prefill to decode",
    plain="The chip's cache helps four fifths less when writing an answer than when reading the question",
    source="A",
    how="M",
    published=(I8_FALL,),
    setting="A prompt, or else a large GEMM, stands for prefill. GEMV and attention stand for decode. The rates come "
    "from hardware counters",
    measure=measure_i8,
)

# ------------------------------------------------------------------------------------- I9: the share of compute in use

I9_SHARE = number("share of the compute peak reached", 0.23, "", APPROXIMATE)
DECODE_BATCHES = (1, 8, 32, 64, 128, 256)


def utilization(batch: int) -> float:
    result = decode(LLAMA_70B, batch=batch, context=2048)
    return total_work(result.ops).total_flops / (result.seconds * peak(find(H100), "mma_bf16"))


def predict_i9() -> list[Comparison]:
    how = "FLOP of a step / (its predicted seconds x peak), 2,048 tokens of context"
    right = round(bisect(lambda batch: utilization(round(batch)) - I9_SHARE.low, 1, 256, within=0.02))
    return [predicted(I9_SHARE, utilization(batch), how, batch=batch) for batch in sorted({*DECODE_BATCHES, right})]


def gemv_utilization(run: MeasuredPart) -> list[tuple[int, float, Record]]:
    """Batch, share of the peak and record of each bf16 layer."""
    top = nominal_peak(run, "mma_bf16")
    return [(batch_of(r), r.flops / (seconds(r) * top), r) for r in bf16_sweep(run)]


def measure_i9(run: MeasuredPart) -> list[Comparison]:
    """Whole steps; else layers."""
    if whole := whole_steps.steps(run, weights="bf16"):
        top, how = nominal_peak(run, "mma_bf16"), "FLOP of a measured step / (its seconds x the part's peak)"
        return [
            measured(I9_SHARE, r.flops / (seconds(r) * top), how, [r], batch=batch_of(r), model=r.case["model"])
            for r in whole
        ]
    how = "FLOP of a bf16 layer / (seconds x the part's peak)"
    return [measured(I9_SHARE, value, how, [r], batch=batch) for batch, value, r in gemv_utilization(run)]


def others_i9(others: Others) -> list[Comparison]:
    """The best share that a published product reaches at each batch."""
    found = []
    for batch in DECODE_BATCHES:
        rows = others.products(H100, kind=WEIGHT_KINDS["bf16"], B=batch)
        if len(rows):
            share = peak_share(rows, H100)
            how = "FLOP / (seconds x the datasheet's peak) of the best published product in bf16"
            found.append(by_others(I9_SHARE, share.max(), how, rows.loc[[share.idxmax()]], batch=batch))
    return require_some(found, "published product in bf16")


I9 = Claim(
    id="I9",
    text="GPUs reach only about 23% of their compute in inference",
    plain="Serving uses only about a quarter of the arithmetic that was paid for",
    source="A",
    how="P M",
    published=(I9_SHARE,),
    setting="Decode of Llama-3.1-70B in bf16 on an H100. The text does not name the batch: it is varied",
    predict=predict_i9,
    measure=measure_i9,
    by_others=others_i9,
)

# ---------------------------------------------------------------------------------- I10: prefill and decode on one GPU

I10_PREFILL = number("share of the peak that prefill reaches", 1.0, "", MEASURED)
I10_WASTE = Published(what="compute wasted where prefill and decode share a GPU", low=0.7, high=0.9, unit="")
PROMPTS = (128, 512, 2048, 8192)
PROMPT, OUTPUT = 1024, 256
"""Tokens of the request whose waste is counted: a chat turn."""
DATASHEET = "the datasheet's peak"


def request_flops() -> tuple[float, float]:
    """FLOP of reading `PROMPT` tokens, causal and with the last token's logits alone, and of writing `OUTPUT` more."""
    result = decode(LLAMA_70B, context=PROMPT)
    return total_work(result.prefill_ops).total_flops, OUTPUT * total_work(result.ops).total_flops


def predict_i10() -> list[Comparison]:
    h100 = find(H100)
    found = []
    for prompt in PROMPTS:
        share = min(1.0, prefill_intensity(prompt) / ridge(h100, "mma_bf16"))
        how = "intensity / ridge, at most 1"
        found.append(predicted(I10_PREFILL, share, how, phase="prefill", prompt=prompt, of=DATASHEET))
    for batch in DECODE_BATCHES:
        result = decode(LLAMA_70B, batch=batch, context=PROMPT)
        busy = result.prefill_seconds + OUTPUT * result.seconds / batch
        waste = 1 - sum(request_flops()) / (peak(h100, "mma_bf16") * busy)
        how = "1 - FLOP of 1,024 tokens in and 256 out / (peak x time of both on one GPU)"
        found.append(predicted(I10_WASTE, waste, how, phase="shared", batch=batch))
    return found


def measure_i10(run: MeasuredPart) -> list[Comparison]:
    """The measured prompts. For the waste, the prompt nearest to `PROMPT` tokens together with decode's weights."""
    top = nominal_peak(run, "mma_bf16")
    tops = {"the best measured GEMM": run.peak("mma_bf16")}
    if run.part and "mma_bf16" in run.part.peaks:
        tops[DATASHEET] = top
    gemms = run.fastest("gemm_peak", kind="gemm", dtype=("bf16", "fp16"))
    found, reasons = [], []
    reached: dict[int, tuple[float, list[Record]]] = {}
    for prompt in PROMPTS:
        try:
            flops, taken, records = prompt_seconds(run, LLAMA_70B, prompt)
        except Unmeasured as error:
            reasons.append(str(error))
            continue
        reached[prompt] = (flops / taken / top, records)
        for of, roof in tops.items():
            how = "FLOP of a layer / (its seconds, from measured projections and attention, x the peak)"
            used = records if of == DATASHEET else [*records, max(gemms, key=flop_rate)]
            found.append(measured(I10_PREFILL, flops / taken / roof, how, used, phase="prefill", prompt=prompt, of=of))
    if not found:
        raise Unmeasured("; ".join(reasons))
    nearest = min(reached, key=lambda prompt: (abs(math.log(prompt / PROMPT)), -prompt))
    reading, prompts = reached[nearest]
    read_flops, written_flops = request_flops()
    for batch, share, record in gemv_utilization(run):
        waste = 1 - (read_flops + written_flops) / (read_flops / reading + written_flops / share)
        how = f"as predicted, from the measured prompt of {nearest:,} tokens and the measured layer"
        found.append(measured(I10_WASTE, waste, how, [*prompts, record], phase="shared", batch=batch))
    return found


def others_i10(others: Others) -> list[Comparison]:
    """A prompt as long as the largest published batch, by its products alone."""
    rows = others.products(H100, kind=WEIGHT_KINDS["bf16"], B=256)
    share = peak_share(some(rows, "a bf16 product of 256 rows"), H100)
    how = "FLOP / (seconds x peak) of the best published product with as many rows as the prompt has tokens"
    used = rows.loc[[share.idxmax()]]
    return [by_others(I10_PREFILL, share.max(), how, used, phase="prefill", prompt=256, of=DATASHEET)]


I10 = Claim(
    id="I10",
    text="prefill can approach 100% of compute, decode leaves it severely underused; sharing one GPU wastes 70-90%",
    plain="Reading the question keeps all of a GPU's arithmetic busy, and doing both on one GPU wastes 70 to 90% of it",
    source="A",
    how="P M",
    published=(I10_PREFILL, I10_WASTE),
    setting="Llama-3.1-70B in bf16 on an H100, 1,024 tokens in and 256 out. Prompt, batch and what counts as the peak "
    "are varied",
    predict=predict_i10,
    measure=measure_i10,
    by_others=others_i10,
)

# --------------------------------------------------------------------------------------- I11: the effect of more FLOP/s

I11_TIME = our_range("time with twice the FLOP/s over time", 1, 1, "x", ARITHMETIC)
SLACK = elasticity.TOLERANCE
I11_FLOPS = our_range("elasticity of time to FLOPs", -SLACK, SLACK, "")
I11_BYTES = our_range("elasticity of time to bytes", 1 - SLACK, 1 + SLACK, "")


def predict_i11() -> list[Comparison]:
    part = find(H100)
    faster = replace(part, peaks={pipe: replace(q, value=2 * q.value) for pipe, q in part.peaks.items()})
    found = []
    for batch in (1, 64, 256, 512):
        now, then = (
            step(LLAMA_70B, device=d, batch=batch, context=2048, crossings=False).seconds for d in (part, faster)
        )
        found.append(predicted(I11_TIME, then / now, "step with all peaks doubled / step", batch=batch))
    return found


def measure_i11(run: MeasuredPart) -> list[Comparison]:
    """Elasticities of each of our implementations over the decode cases that are large enough."""
    found, reasons = [], []
    how = "exponent in log t = a + e_b log bytes + e_f log FLOP, either end of its 95% interval"
    for op, most in (("ffn_gemv", 64), ("attention_decode", 1 << 20)):
        usable = [r for r in run.find(op) if r.ours and r.bytes >= LARGE and batch_of(r) <= most]
        for impl in sorted({r.impl for r in usable}):
            records = [r for r in usable if r.impl == impl and weight_format(r) == cache_format(r) == "bf16"]
            try:
                result = elasticity.of_records(records)
            except elasticity.NotIdentified as error:
                reasons.append(f"{op} {impl}: {error}")
                continue
            for published, interval in ((I11_FLOPS, result.flops), (I11_BYTES, result.bytes)):
                for end in (interval.low, interval.high):
                    found.append(measured(published, end, how, records, op=op, impl=impl))
    if not found:
        raise Unmeasured("; ".join(reasons) or "the run holds no decode cases of ours above 16 MiB")
    return found


I11 = Claim(
    id="I11",
    text="more FLOP/s alone would not speed decode up",
    plain="A chip with faster arithmetic and the same memory would not write answers any faster",
    source="A",
    how="M",
    published=(I11_TIME, I11_FLOPS, I11_BYTES),
    setting="Predicted with all peaks doubled. Measured with FLOPs changed at fixed bytes, and bytes at fixed FLOPs",
    predict=predict_i11,
    measure=measure_i11,
    any_part=True,
)

# -------------------------------------------------------------------------------- I12: time and bandwidth across GPUs

I12_RATIO = our_range("ratio of times over inverse ratio of bandwidths", 1, 1, "x", MEASURED)
DECODE_OPS = ("ffn_gemv", "attention_decode", "moe_ffn", "mla_decode")


def predict_i12() -> list[Comparison]:
    found = []
    for key, batch in product(("a100-80", "h200", "b200"), (1, 64, 512)):
        times = [decode(LLAMA_8B, k, batch=batch, context=2048).seconds for k in (H100, key)]
        value = times[0] / times[1] * bandwidth(find(H100)) / bandwidth(find(key))
        how = "time on the H100 / time on the part x inverse ratio of their bandwidths"
        found.append(predicted(I12_RATIO, value, how, part=find(key).name, batch=batch))
    return found


def across_i12(runs: list[MeasuredPart]) -> list[Comparison]:
    first, *others = runs
    found = []
    for other, op in product(others, DECODE_OPS):
        roofs = first.ceilings.read_roof / other.ceilings.read_roof
        theirs = {r.case_id: r for r in other.fastest(op)}
        pairs = [(r, theirs[r.case_id]) for r in first.fastest(op) if r.case_id in theirs and r.bytes >= LARGE]
        if pairs:
            value = median(seconds(a) / seconds(b) * roofs for a, b in pairs)
            how = "median over common cases of the time ratio x the ratio of measured read bandwidths"
            used = [r for pair in pairs for r in pair]
            found.append(measured(I12_RATIO, value, how, used, parts=f"{first.device} and {other.device}", op=op))
    return require_some(found, "common decode cases above 16 MiB")


def others_i12(others: Others) -> list[Comparison]:
    """The H100 against parts of other bandwidth, by operation and stored type. The H200 has the same chip."""
    found = []
    for key, op in product(("a100-80", "h200", "b200"), DECODE_OPS):
        rows = others.op(op)
        first, second = rows[rows["part"] == H100], rows[rows["part"] == key]
        both = paired(first, second, "part")
        for stored, mine in both[both["B"] <= 64].groupby("stored", observed=True):
            if len(mine) >= 10:
                roofs = bandwidth(find(H100)) / bandwidth(find(key))
                value = float((mine["seconds_a"] / mine["seconds_b"]).median()) * roofs
                how = "median over common published cases up to batch 64 of the time ratio x the ratio of bandwidths"
                used = (side(mine.assign(part_a=H100), "a"), side(mine.assign(part_b=key), "b"))
                setting = {"parts": f"{find(H100).name} and {find(key).name}", "op": op, "stored": stored}
                found.append(by_others(I12_RATIO, value, how, *used, **setting))
    return require_some(found, "published cases common to an H100 and another part")


I12 = Claim(
    id="I12",
    text="memory bandwidth, not compute, binds inference: time follows bandwidth across devices",
    plain="From one chip to the next, speed goes with memory bandwidth",
    source="A C D",
    how="X M",
    published=(I12_RATIO,),
    setting="Predicted for Llama-3.1-8B in bf16 against an H100 with the batch varied. Measured on common cases",
    predict=predict_i12,
    across=across_i12,
    by_others=others_i12,
)
