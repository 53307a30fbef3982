"""Claims about attention: what batching, context and fusion change about it, and which phase stresses the memory."""

from __future__ import annotations

from itertools import product

from bench.devices import find
from bench.judge.claims.base import MEASURED, Claim, Comparison, our_range
from bench.judge.claims.common import (
    DEEPSEEK_V3,
    H100,
    LLAMA_8B,
    LLAMA_70B,
    WEIGHT_KINDS,
    decode,
    measured,
    predicted,
    prefill_intensity,
    ridge,
)
from bench.judge.claims.others import Others, between_batches, by_others, ratio, roof_share, some, where
from bench.judge.claims.reading import MeasuredPart, require_some
from bench.predict.step_work import PRECISIONS, prefill_ops
from bench.records import Record

# ------------------------------------------------------------------------------- I15: attention's own ceiling

I15_TIME = our_range("attention's time per request at batch 64 over batch 16", 1, 1, "x", MEASURED)
SHARED = 0.9
"""Share of the context that all requests have in common, where a prefix is shared."""


def predict_i15() -> list[Comparison]:
    found = []
    for shape in (LLAMA_8B, LLAMA_70B, DEEPSEEK_V3):
        few, many = (decode(shape, batch=batch, context=4096).op("attention").seconds / batch for batch in (16, 64))
        kind = "MLA" if shape.is_mla else "GQA"
        found.append(predicted(I15_TIME, many / few, "attention of a step / batch", attention=kind, prefix="none"))
    few, many = ((1 - SHARED) + SHARED / batch for batch in (16, 64))
    how = "(own tokens + shared tokens / batch) at 64 / at 16"
    found.append(predicted(I15_TIME, many / few, how, attention="GQA", prefix="nine tenths shared"))
    return found


def others_i15(others: Others) -> list[Comparison]:
    found = []
    for op, kind in (("attention_decode", "GQA"), ("mla_decode", "MLA")):
        rows = others.op(op)
        rows = rows[(rows["part"] == H100) & (rows["stored"] == "bf16") & (rows["window"] == 0)]
        both = between_batches(rows, "part", "H_q", "H_kv", "D", "T", "H", low=16, high=64)
        if len(both):
            both = both.assign(seconds_a=4 * both["seconds_a"])
            how = "median over published cases of the time at batch 64 / 4 times that at batch 16"
            found.append(ratio(I15_TIME, both, how, attention=kind, prefix="none"))
    some(others.op("attention_decode"), "attention")
    return found


I15 = Claim(
    id="I15",
    text="attention is a throughput ceiling that FFN batching can't break",
    plain="Serving more users at once makes looking back no cheaper for each of them",
    source="A",
    how="P M V",
    published=(I15_TIME,),
    setting="4,096 tokens and 16-bit caches on an H100. The kind of attention is varied. Requests share a prefix, "
    "or they do not",
    predict=predict_i15,
    by_others=others_i15,
)

# ------------------------------------------------------------------------------------- I16: twice the context

I16_COMPUTE = our_range("attention's compute at twice the context", 4, 4, "x", MEASURED)
I16_TIME = our_range("time of a whole prefill at twice the context", 4, 4, "x", MEASURED)


def attention_flops(context: int) -> float:
    bf16 = PRECISIONS["bf16"]
    ops = prefill_ops(LLAMA_70B, weights=bf16, kv=bf16, context=context, devices=1)
    return next(op for op in ops if op.name == "attention").work.total_flops


def predict_i16() -> list[Comparison]:
    found = []
    for context in (2048, 8192, 32_768, 65_536):
        steps = [decode(LLAMA_70B, context=c) for c in (context, 2 * context)]
        reading = attention_flops(2 * context) / attention_flops(context)
        writing = steps[1].op("attention").work.total_flops / steps[0].op("attention").work.total_flops
        whole = steps[1].prefill_seconds / steps[0].prefill_seconds
        found += [
            predicted(I16_COMPUTE, reading, "FLOP of attention over a prompt", phase="prefill", context=context),
            predicted(I16_COMPUTE, writing, "FLOP of attention of one token", phase="decode", context=context),
            predicted(I16_TIME, whole, "roofline of the whole prompt", phase="whole prefill", context=context),
        ]
    return found


def others_i16(others: Others) -> list[Comparison]:
    """Decode alone: published prefill is not read here."""
    rows = others.op("attention_decode")
    rows = rows[(rows["part"] == H100) & (rows["window"] == 0) & (rows["stored"] == "bf16")]
    keys = ["B", "H_q", "H_kv", "D"]
    found = []
    for context in (8192, 32_768):
        a, b = (where(rows, T=T) for T in (context, 2 * context))
        both = a.merge(b, on=["part", *keys], suffixes=("_a", "_b"))
        if len(both):
            how = "median over published decode attention of the time at twice the context / at the context"
            found.append(ratio(I16_COMPUTE, both, how, phase="decode", context=context))
    some(rows, "attention on an H100")
    return found


I16 = Claim(
    id="I16",
    text="doubling the context quadruples attention's compute",
    plain="Twice the text takes four times the work of looking back",
    source="A",
    how="P M",
    published=(I16_COMPUTE, I16_TIME),
    setting="Llama-3.1-70B in bf16. The phase and the context are varied",
    predict=predict_i16,
    by_others=others_i16,
)

# ------------------------------------------------------------------------ I19: which phase stresses the memory

I19_DECODE = our_range("share of the bandwidth that decode uses", 0.8, 1, "", 0.02)
I19_PREFILL = our_range("share of the bandwidth that prefill uses", 0, 0.5, "")


def predict_i19() -> list[Comparison]:
    found = []
    for batch in (1, 16, 64):
        step = decode(LLAMA_70B, batch=batch, context=4096)
        used = (step.weight_seconds + step.kv_seconds) / step.seconds
        found.append(predicted(I19_DECODE, used, "bytes / (time x bandwidth)", phase="decode", of="step", batch=batch))
    for prompt in (512, 2048, 8192):
        used = min(1.0, ridge(find(H100), "mma_bf16") / prefill_intensity(prompt))
        found.append(predicted(I19_PREFILL, used, "ridge / intensity", phase="prefill", prompt=prompt))
    return found


def others_i19(others: Others) -> list[Comparison]:
    """The best published row of each operation says what the memory gives, the median what engines reach."""
    found = []
    tables = {
        "products": others.products(H100, kind=WEIGHT_KINDS["bf16"], B=(1, 16, 64)),
        "attention": where(others.op("attention_decode"), part=H100, stored="bf16"),
    }
    for (name, rows), which in product(tables.items(), ("best row", "median row")):
        if len(rows):
            share = roof_share(rows)
            value = share.max() if which == "best row" else share.median()
            how = "compulsory bytes / (published time x datasheet bandwidth)"
            used = rows.loc[[share.idxmax()]] if which == "best row" else rows
            found.append(by_others(I19_DECODE, value, how, used, phase="decode", of=f"{name}, {which}"))
    some(tables["products"], "a bf16 product on an H100")
    return found


I19 = Claim(
    id="I19",
    text="prefill leaves HBM underused, decode stresses it fully",
    plain="Reading the question hardly uses the memory, and writing the answer uses all of it",
    source="A",
    how="P M V",
    published=(I19_DECODE, I19_PREFILL),
    setting="Llama-3.1-70B in bf16 on an H100. Fully: at least 80%. Underused: at most half. Published rows: cold ones",
    predict=predict_i19,
    by_others=others_i19,
)

# ------------------------------------------------------------------------------------ I20: what fusion saves

I20_BYTES = our_range("bytes of attention with scores written out over the fused way", 2, float("inf"), "x")


def predict_i20() -> list[Comparison]:
    found = []
    shape = LLAMA_8B
    for phase, context in product(("prefill", "decode"), (512, 2048, 8192)):
        queries = context if phase == "prefill" else 1
        scores = 2 * 2 * shape.heads * queries * context  # written and read in 16 bits
        once = 2 * 2 * (shape.kv_heads * context + shape.heads * queries) * shape.head_dim
        how = "(Q, K, V, O and scores written and read) / (Q, K, V, O)"
        found.append(predicted(I20_BYTES, (once + 2 * scores) / once, how, phase=phase, context=context))
    return found


UNFUSED = "torch-math"
"""PyTorch's attention in separate products. It also copies keys and values to fp32, which the fused ways do not."""


def measure_i20(run: MeasuredPart) -> list[Comparison]:
    """DRAM bytes of the unfused way over those of the fused way that moves least, where both were counted."""
    counted: dict[str, dict[str, tuple[float, Record]]] = {}
    for record in run.find("attention_decode"):
        read, written = record.counters.get("dram_read"), record.counters.get("dram_written")
        if read is not None and written is not None:
            counted.setdefault(record.case_id, {})[record.impl] = read + written, record
    found = []
    for case, impls in counted.items():
        fused = [each for impl, each in impls.items() if impl != UNFUSED]
        if UNFUSED in impls and fused:
            (size, whole), (least, record) = impls[UNFUSED], min(fused, key=lambda each: each[0])
            how = f"DRAM bytes of {UNFUSED}, with its fp32 copies / of {record.impl}, hardware counters"
            found.append(measured(I20_BYTES, size / least, how, [whole, record], phase="decode", case=case))
    what = f"case of `attention_decode` with DRAM bytes counted of {UNFUSED} and of a fused way"
    return require_some(found, what)


I20 = Claim(
    id="I20",
    text="FlashAttention reduces attention's memory",
    plain="Never writing down the table of all pairs saves most of the memory traffic of looking back",
    source="D",
    how="P M",
    published=(I20_BYTES,),
    setting="Llama-3.1-8B's heads in 16 bits; scores and probabilities are written and read once. Reduces: by half",
    predict=predict_i20,
    measure=measure_i20,
)
