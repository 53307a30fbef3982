"""Claims about latency: how long a token takes, and what batching, prompts and drafts change about it."""

from __future__ import annotations

import math
from itertools import product

from bench.devices import find
from bench.judge.claims import whole_steps
from bench.judge.claims.base import MEASURED, Claim, Comparison, Published, number, our_range
from bench.judge.claims.common import H100, LLAMA_70B, SHORT_CONTEXT, bisect, capacity, decode, measured, predicted
from bench.judge.claims.others import Others, between_batches, by_others, ratio, side, where
from bench.judge.claims.others import cache_seconds as published_cache
from bench.judge.claims.others import weights_seconds as published_weights
from bench.judge.claims.reading import (
    MeasuredPart,
    attention,
    batch_of,
    cache_seconds,
    comparable,
    fastest_by_batch,
    gemv,
    layer_sweeps,
    pairs,
    prompt_seconds,
    require_part,
    require_some,
    seconds,
    weights_seconds,
)
from bench.records import Record
from kernels.models import parameters

# --------------------------------------------------------------------------------------- T1: a token on an H100

ASIDE, ALONE = "set aside", "that of one part"
"""Whether the memory of one part must hold the model whose bytes it streams."""
T1_TIME = number("time per token", 41.8e-3, "s", MEASURED)
T1_FITS = Published(what="16-bit weights of 70B over the memory of one part", low=0, high=1, unit="x", tolerance=0)


def predict_token(key: str, published: Published) -> list[Comparison]:
    """The time of a token with the capacity set aside, and again on the part as it is, where the model must fit."""
    value = decode(LLAMA_70B, key, context=SHORT_CONTEXT).seconds
    part = find(key)
    room = 2 * parameters(LLAMA_70B) / capacity(part)
    how = "weights and cache of a step / memory bandwidth"
    return [
        predicted(published, value, how, capacity=ASIDE),
        predicted(published, value, how, capacity=ALONE, part=part.name),
        predicted(T1_FITS, room, "2 B a weight / memory", capacity=ALONE, part=part.name),
    ]


def measure_token(run: MeasuredPart, key: str, published: Published) -> list[Comparison]:
    """The same measured time at both settings, because a run does not measure whether the model fits."""
    if whole := whole_steps.step_seconds(run, LLAMA_70B, weights="bf16", batch=1):
        value, records, how = whole[0], [whole[1]], whole_steps.how(whole[1])
    else:
        value, records = weights_seconds(run, LLAMA_70B, weights="bf16", batch=1)
        how = "seconds per weight of the model's measured layers x its weights"
    return [
        measured(published, value, how, records, capacity=ASIDE),
        measured(published, value, how, records, capacity=ALONE, part=find(key).name),
    ]


def others_token(others: Others, key: str, published: Published) -> list[Comparison]:
    """The published time per weight at batch 1, at both settings."""
    value, rows = published_weights(others, LLAMA_70B, key, 1)
    how = "median seconds per weight of published products x the model's weights"
    return [
        by_others(published, value, how, rows, capacity=ASIDE),
        by_others(published, value, how, rows, capacity=ALONE, part=find(key).name),
    ]


def measure_t1(run: MeasuredPart) -> list[Comparison]:
    require_part(run, H100)
    return measure_token(run, H100, T1_TIME)


T1 = Claim(
    id="T1",
    text="70B FP16 on an H100: 140 GB over 3.35 TB/s = 41.8 ms per token, about 24 token/s",
    plain="An H100 writes 24 tokens a second with a 70B model, because it must read 140 GB for each",
    source="A",
    how="P M",
    published=(T1_TIME, T1_FITS),
    setting="Llama-3.1-70B, batch 1, 128 tokens of context: once with the part's capacity set aside, and once on one "
    "part as it is",
    predict=lambda: predict_token(H100, T1_TIME),
    measure=measure_t1,
    by_others=lambda others: others_token(others, H100, T1_TIME),
)

# ------------------------------------------------------------------------------------- T2: a token on other GPUs

T2_TIMES = {
    "a100-80": number("time per token on an A100", 70e-3, "s", MEASURED),
    "h200": number("time per token on an H200", 29e-3, "s", MEASURED),
    "b200": number("time per token on a B200", 17.5e-3, "s", MEASURED),
}


def predict_t2() -> list[Comparison]:
    return [comparison for key, published in T2_TIMES.items() for comparison in predict_token(key, published)]


def across_t2(runs: list[MeasuredPart]) -> list[Comparison]:
    found = []
    for run in runs:
        if run.part and run.part.key in T2_TIMES:
            found += measure_token(run, run.part.key, T2_TIMES[run.part.key])
    return require_some(found, "A100 80 GB, H200 or B200")


def others_t2(others: Others) -> list[Comparison]:
    return [c for key, published in T2_TIMES.items() for c in others_token(others, key, published)]


T2 = Claim(
    id="T2",
    text="the same on A100 2.0 TB/s 70 ms, H200 4.8 TB/s 29 ms, B200 8.0 TB/s 17.5 ms",
    plain="A token of a 70B model takes 70 ms on an A100, 29 ms on an H200 and 17.5 ms on a B200",
    source="A",
    how="P X",
    published=(*T2_TIMES.values(), T1_FITS),
    setting="As in T1: batch 1, 128 tokens of context, with the part's capacity set aside and on one part as it is",
    predict=predict_t2,
    across=across_t2,
    by_others=others_t2,
)

# ------------------------------------------------------------------------------------------- T3: one more request

T3_ADDED = our_range("time added by one more request", 0, 0.05, "")


def predict_t3() -> list[Comparison]:
    found = []
    for context, batch in product((SHORT_CONTEXT, 2048, 8192, 32768, 131072), (1, 16, 64)):
        now, then = (decode(LLAMA_70B, batch=b, context=context).seconds for b in (batch, batch + 1))
        how = "step with one more request / step - 1"
        found.append(predicted(T3_ADDED, then / now - 1, how, timed="whole step", context=context, batch=batch))
    return found


def added(few: Record, many: Record) -> float:
    """Share of time that each request adds, between two batches."""
    return (seconds(many) / seconds(few) - 1) / (batch_of(many) - batch_of(few))


def measure_t3(run: MeasuredPart) -> list[Comparison]:
    """Whole steps; else weights at batches up to 64, and attention, whose time each request adds anew."""
    if whole := whole_steps.added_by_a_request(run, T3_ADDED):
        return whole
    found = []
    how = "(time at the larger batch / time at the smaller - 1) / requests between"
    for kind, records in layer_sweeps(run).items():
        sweep = sorted((r for r in records if batch_of(r) <= 64), key=batch_of)
        if len(sweep) > 1:
            used = (sweep[0], sweep[-1])
            found.append(measured(T3_ADDED, added(*used), how, used, timed="weights", weights=kind))
    for group in comparable(attention(run), "B"):
        sweep = sorted(fastest_by_batch(group).values(), key=batch_of)
        if len(sweep) > 1:
            case = group[0].case
            setting = {"timed": "attention", "context": case["T"], "model": case["model"]}
            found.append(measured(T3_ADDED, added(*sweep[:2]), how, sweep[:2], **setting))
    return require_some(found, "two batches of one layer")


def others_t3(others: Others) -> list[Comparison]:
    found = []
    how = "median of (time at the larger batch / time at the smaller - 1) / requests between"
    for kind, rows in others.products(H100).groupby("kind"):
        both = between_batches(rows, "part", "N", "K", "stored", "activations", low=1, high=64)
        if len(both):
            value = float((both["seconds_b"] / both["seconds_a"] - 1).median()) / 63
            found.append(
                by_others(T3_ADDED, value, how, side(both, "a"), side(both, "b"), timed="weights", weights=kind)
            )
    caches = others.op("attention_decode")
    caches = caches[(caches["part"] == H100) & (caches["window"] == 0) & (caches["stored"] == "bf16")]
    for context in (4096, 32768):
        both = between_batches(where(caches, T=context), "part", "H_q", "H_kv", "D", low=16, high=64)
        if len(both):
            value = float((both["seconds_b"] / both["seconds_a"] - 1).median()) / 48
            used = (side(both, "a"), side(both, "b"))
            found.append(by_others(T3_ADDED, value, how, *used, timed="attention", context=context))
    return require_some(found, "published rows at two batches of one layer")


T3 = Claim(
    id="T3",
    text="below saturation one more request in the batch is nearly free",
    plain="Serving one more user at the same time takes at most 5% longer",
    source="A",
    how="P M",
    published=(T3_ADDED,),
    setting="Llama-3.1-70B in bf16 at H100 rates. Nearly free: at most 5% more time. Context and batch are varied",
    predict=predict_t3,
    measure=measure_t3,
    by_others=others_t3,
    any_part=True,
)

# ------------------------------------------------------------------------------------------ T8: throughput or latency

T8_RATE = our_range("tokens per second at batch 64 over batch 1", 1, math.inf, "x")
T8_TIME = our_range("time per token at batch 64 over batch 1", 1.05, math.inf, "x")


def predict_t8() -> list[Comparison]:
    found = []
    for context in (SHORT_CONTEXT, 2048, 8192, 32768):
        one, many = (decode(LLAMA_70B, batch=b, context=context).seconds for b in (1, 64))
        found += [
            predicted(T8_RATE, 64 * one / many, "64 x step at 1 / step at 64", context=context),
            predicted(T8_TIME, many / one, "step at 64 / step at 1", context=context),
        ]
    return found


def measure_t8(run: MeasuredPart) -> list[Comparison]:
    """Whole steps; else a layer's weights at both batches, and attention to the measured context for each request."""
    if whole := whole_steps.two_batches(run, T8_RATE, T8_TIME, 1, 64):
        return whole
    weights, records = {}, {}
    for batch in (1, 64):
        weights[batch], records[batch] = weights_seconds(run, LLAMA_70B, weights="bf16", batch=batch)
    per_token, record = cache_seconds(run, LLAMA_70B)
    context = record.case["T"]
    times = {batch: weights[batch] + batch * context * per_token for batch in (1, 64)}
    used = [*records[1], *records[64], record]
    how = "measured layers x weights, plus measured attention per request x batch"
    return [
        measured(T8_RATE, 64 * times[1] / times[64], how, used, context=context),
        measured(T8_TIME, times[64] / times[1], how, used, context=context),
    ]


def others_t8(others: Others) -> list[Comparison]:
    """A model's weights at both batches, and attention to 4,096 tokens for each request."""
    weights = {batch: published_weights(others, LLAMA_70B, H100, batch) for batch in (1, 64)}
    per_token, cache = published_cache(others, LLAMA_70B, H100, 4096)
    times = {batch: value + batch * 4096 * per_token for batch, (value, _) in weights.items()}
    used = [weights[1][1], weights[64][1], cache]
    how = "published seconds per weight x weights, plus published attention per request x batch"
    return [
        by_others(T8_RATE, 64 * times[1] / times[64], how, *used, context=4096),
        by_others(T8_TIME, times[64] / times[1], how, *used, context=4096),
    ]


T8 = Claim(
    id="T8",
    text="larger batches raise throughput and lengthen each request's latency",
    plain="Serving 64 users at once writes more in total than serving one, and makes each wait at least 5% longer",
    source="D",
    how="P M",
    published=(T8_RATE, T8_TIME),
    setting="Llama-3.1-70B in bf16 at H100 rates, batch 64 against 1. Longer: by at least 5%. The context is varied",
    predict=predict_t8,
    measure=measure_t8,
    by_others=others_t8,
    any_part=True,
)

# -------------------------------------------------------------------------------------- T9: output over input tokens

T9_RATIO = Published(what="cost of an output token over an input token", low=4, high=8, unit="x")
PROMPT = 2048


def predict_t9() -> list[Comparison]:
    def ratio(batch: float) -> float:
        return decode(LLAMA_70B, batch=round(batch), context=PROMPT).output_to_input_ratio

    middle = (T9_RATIO.low * T9_RATIO.high) ** 0.5
    right = round(bisect(lambda batch: middle - ratio(batch), 1, 256, within=0.02))
    how = "(step / batch) / (time of reading a prompt of 2,048 tokens / its tokens)"
    return [predicted(T9_RATIO, ratio(batch), how, batch=batch) for batch in sorted({1, 16, right, 64, 128, 256})]


def measure_t9(run: MeasuredPart) -> list[Comparison]:
    """The time per token of a step at each measured batch over that of a prompt, both with 2,048 tokens."""
    _, reading, prompt = prompt_seconds(run, LLAMA_70B, PROMPT)
    per_token, cache = cache_seconds(run, LLAMA_70B)
    layers = gemv(run, weights="bf16", model=LLAMA_70B.name)
    require_some(layers, f"`ffn_gemv` of {LLAMA_70B.name} in bf16")
    how = "(measured layers / batch + measured attention to 2,048 tokens) / (measured prompt of 2,048 tokens / 2,048)"
    found = []
    for batch in sorted(set(map(batch_of, layers))):
        weights, records = weights_seconds(run, LLAMA_70B, weights="bf16", batch=batch)
        ratio = (weights / batch + PROMPT * per_token) / (reading / PROMPT)
        found.append(measured(T9_RATIO, ratio, how, [*records, cache, *prompt], batch=batch))
    return found


T9 = Claim(
    id="T9",
    text="output tokens cost 4-8 times input tokens, because of the hardware",
    plain="Writing a token costs the machine 4 to 8 times as much as reading one",
    source="A",
    how="P M",
    published=(T9_RATIO,),
    setting="Llama-3.1-70B in bf16 at H100 rates with 2,048 tokens of context. The text does not name the batch: it "
    "is varied",
    predict=predict_t9,
    measure=measure_t9,
)

# ------------------------------------------------------------------------------------------- T10: verifying drafts

DRAFT = 4
T10_TIME = our_range(f"time of verifying {DRAFT} tokens over one", 0, 1.2, "x")


def predict_t10() -> list[Comparison]:
    found = []
    for batch in (1, 16, 64, 128, 256):
        one, several = (decode(LLAMA_70B, batch=batch, context=PROMPT, q_len=q).seconds for q in (1, DRAFT))
        how = "step with 4 tokens a request / with one"
        found.append(predicted(T10_TIME, several / one, how, timed="whole step", batch=batch))
    return found


def measure_t10(run: MeasuredPart) -> list[Comparison]:
    """Whole steps; attention with a draft of 2 to 8 tokens, and weights at 4 times the batch."""
    found = whole_steps.verifying(run, T10_TIME, DRAFT)
    how = "attention with a draft / with one query token"
    for drafted in range(2, 9):
        records = attention(run, q_len=(1, drafted))
        for base, record in pairs(records, lambda r: r.case["q_len"], 1, drafted, "q_len"):
            setting = {"timed": "attention", "batch": batch_of(record), "draft": drafted}
            found.append(measured(T10_TIME, seconds(record) / seconds(base), how, [record, base], **setting))
    how = "layer at 4 times the batch / at the batch"
    for kind, records in layer_sweeps(run).items():
        sweep = {batch_of(r): r for r in records}
        for batch, base in sweep.items():
            if wider := sweep.get(DRAFT * batch):
                setting = {"timed": "weights", "batch": batch, "draft": DRAFT, "weights": kind}
                found.append(measured(T10_TIME, seconds(wider) / seconds(base), how, [wider, base], **setting))
    return require_some(found, "attention with a draft, or step or layer at one batch and four times it")


def others_t10(others: Others) -> list[Comparison]:
    """Weights at 4 times the batch. Published attention has one query token."""
    found = []
    for kind, rows in others.products(H100).groupby("kind"):
        for batch in (1, 16, 64):
            both = between_batches(rows, "part", "N", "K", "stored", "activations", low=batch, high=DRAFT * batch)
            if len(both):
                how = "median over products of the time at 4 times the batch / at the batch"
                found.append(ratio(T10_TIME, both, how, timed="weights", batch=batch, draft=DRAFT, weights=kind))
    return require_some(found, "published products at one batch and four times it")


T10 = Claim(
    id="T10",
    text="speculative decoding verifies several drafted tokens in parallel in one pass",
    plain="Checking four guessed tokens takes at most a fifth longer than writing one",
    source="D",
    how="P M",
    published=(T10_TIME,),
    setting="Llama-3.1-70B in bf16 at H100 rates, 4 tokens a request. At most a fifth longer. The batch is varied",
    predict=predict_t10,
    measure=measure_t10,
    by_others=others_t10,
    any_part=True,
)
