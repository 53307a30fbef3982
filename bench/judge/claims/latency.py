"""Claims T: how long a token takes, and what batching, quantization and drafts change about it."""

from __future__ import annotations

import math

from bench.devices import find
from bench.judge.claims.base import MEASURED, Claim, Comparison, Measured, Published, number, our_range, seconds
from bench.judge.claims.common import (
    H100,
    LLAMA_70B,
    SHORT,
    about,
    alike,
    attention,
    batch_of,
    bisect,
    by_batch,
    cache_seconds,
    capacity,
    decode,
    gemv,
    guess,
    layer_sweeps,
    need,
    need_comparisons,
    pairs,
    prompt_seconds,
    seen,
    weights_seconds,
)
from bench.records import Record
from kernels.models import parameters

INF = math.inf
# ------------------------------------------------------------------------------------------------ T1, T2: a token

ASIDE, ALONE = "set aside", "that of one part"
"""Whether the memory of one part must hold the model whose bytes it streams."""
T1_TIME = number("time per token", 41.8e-3, "s", MEASURED)
T1_FITS = Published(what="16-bit weights of 70B over the memory of one part", low=0, high=1, unit="x", tolerance=0)
T2_TIMES = {
    "a100-80": number("time per token on an A100", 70e-3, "s", MEASURED),
    "h200": number("time per token on an H200", 29e-3, "s", MEASURED),
    "b200": number("time per token on a B200", 17.5e-3, "s", MEASURED),
}
TOKEN = "weights and cache of a step / memory bandwidth"


def token(key: str, published: Published) -> list[Comparison]:
    """The time of a token with the capacity set aside, and again on the part as it is, where it must fit."""
    value = decode(LLAMA_70B, key, context=SHORT).seconds
    room = 2 * parameters(LLAMA_70B) / capacity(find(key))
    return [
        guess(published, value, TOKEN, capacity=ASIDE),
        guess(published, value, TOKEN, capacity=ALONE, part=find(key).name),
        guess(T1_FITS, room, "2 B a weight / memory", capacity=ALONE, part=find(key).name),
    ]


def predict_t1() -> list[Comparison]:
    return token(H100, T1_TIME)


LAYERS = "seconds per weight of the model's measured layers x its weights"


def measured_token(run: Measured, key: str, published: Published) -> list[Comparison]:
    """The same time at both settings: whether the model fits is not measured."""
    value, records = weights_seconds(run, LLAMA_70B, weights="bf16", batch=1)
    return [
        seen(published, value, LAYERS, records, capacity=ASIDE),
        seen(published, value, LAYERS, records, capacity=ALONE, part=find(key).name),
    ]


def measure_t1(run: Measured) -> list[Comparison]:
    about(run, H100)
    return measured_token(run, H100, T1_TIME)


T1 = Claim(
    id="T1",
    text="70B FP16 on an H100: 140 GB over 3.35 TB/s = 41.8 ms per token, about 24 token/s",
    plain="An H100 writes 24 tokens a second with a 70B model, since it must read 140 GB for each",
    source="A",
    how="P M",
    published=(T1_TIME, T1_FITS),
    setting="Llama-3.1-70B, batch 1, 128 tokens of context; with the capacity set aside, and on one part as it is",
    predict=predict_t1,
    measure=measure_t1,
)


def predict_t2() -> list[Comparison]:
    return [comparison for key, published in T2_TIMES.items() for comparison in token(key, published)]


def across_t2(runs: list[Measured]) -> list[Comparison]:
    found = []
    for run in runs:
        if run.part and run.part.key in T2_TIMES:
            found += measured_token(run, run.part.key, T2_TIMES[run.part.key])
    return need_comparisons(found, "A100 80 GB, H200 or B200")


T2 = Claim(
    id="T2",
    text="the same on A100 2.0 TB/s 70 ms, H200 4.8 TB/s 29 ms, B200 8.0 TB/s 17.5 ms",
    plain="A token of a 70B model takes 70 ms on an A100, 29 ms on an H200 and 17.5 ms on a B200",
    source="A",
    how="P X",
    published=(*T2_TIMES.values(), T1_FITS),
    setting="as T1",
    predict=predict_t2,
    across=across_t2,
)


# ------------------------------------------------------------------------------------------------- T3, T8: batches

T3_ADDED = our_range("time added by one more request", 0, 0.05, "")


def predict_t3() -> list[Comparison]:
    found = []
    for context in (SHORT, 2048, 8192, 32768, 131072):
        for batch in (1, 16, 64):
            now, then = (decode(LLAMA_70B, batch=b, context=context).seconds for b in (batch, batch + 1))
            how = "step with one more request / step - 1"
            found.append(guess(T3_ADDED, then / now - 1, how, part="whole step", context=context, batch=batch))
    return found


def added(pair: tuple[Record, Record]) -> float:
    """Share of time that each request adds, between two batches."""
    few, many = pair
    return (seconds(many) / seconds(few) - 1) / (batch_of(many) - batch_of(few))


def measure_t3(run: Measured) -> list[Comparison]:
    """Weights at batches up to 64, and attention, whose time is every request's own."""
    found = []
    how = "(time at the larger batch / time at the smaller - 1) / requests between"
    for kind, records in layer_sweeps(run).items():
        sweep = sorted((r for r in records if batch_of(r) <= 64), key=batch_of)
        if len(sweep) > 1:
            pair = (sweep[0], sweep[-1])
            found.append(seen(T3_ADDED, added(pair), how, pair, part="weights", weights=kind))
    for group in alike(attention(run), "B"):
        sweep = sorted(by_batch(group).values(), key=batch_of)
        if len(sweep) > 1:
            pair = (sweep[0], sweep[1])
            found.append(seen(T3_ADDED, added(pair), how, pair, part="attention",
                              context=group[0].case["T"], model=group[0].case["model"]))  # fmt: skip
    return need_comparisons(found, "two batches of one layer")


T3 = Claim(
    id="T3",
    text="below saturation one more request in the batch is nearly free",
    plain="Serving one more user at the same time takes at most 5% longer",
    source="A",
    how="P M",
    published=(T3_ADDED,),
    setting="Llama-3.1-70B in bf16 at H100 rates; nearly free: at most 5% more time; context and batch are varied",
    predict=predict_t3,
    measure=measure_t3,
)


T8_RATE = our_range("tokens per second at batch 64 over batch 1", 1, INF, "x")
T8_TIME = our_range("time per token at batch 64 over batch 1", 1.05, INF, "x")


def predict_t8() -> list[Comparison]:
    found = []
    for context in (SHORT, 2048, 8192, 32768):
        one, many = (decode(LLAMA_70B, batch=b, context=context).seconds for b in (1, 64))
        found += [
            guess(T8_RATE, 64 * one / many, "64 x step at 1 / step at 64", context=context),
            guess(T8_TIME, many / one, "step at 64 / step at 1", context=context),
        ]
    return found


def measure_t8(run: Measured) -> list[Comparison]:
    """A layer's weights and attention at the batches measured of both; the context is the attention's."""
    weights, records = {}, {}
    for batch in (1, 64):
        weights[batch], records[batch] = weights_seconds(run, LLAMA_70B, weights="bf16", batch=batch)
    per_token, record = cache_seconds(run, LLAMA_70B)
    context = record.case["T"]
    times = {batch: weights[batch] + batch * context * per_token for batch in (1, 64)}
    used = [*records[1], *records[64], record]
    how = "measured layers x weights, plus measured attention per request x batch"
    return [
        seen(T8_RATE, 64 * times[1] / times[64], how, used, context=context),
        seen(T8_TIME, times[64] / times[1], how, used, context=context),
    ]


T8 = Claim(
    id="T8",
    text="larger batches raise throughput and lengthen each request's latency",
    plain="Serving 64 users at once writes more in total than serving one, and makes each wait at least 5% longer",
    source="D",
    how="P M",
    published=(T8_RATE, T8_TIME),
    setting="Llama-3.1-70B in bf16 at H100 rates, batch 64 against 1; longer: by 5% at least; context varied",
    predict=predict_t8,
    measure=measure_t8,
)


# ------------------------------------------------------------------------------------------- T9, T10: inputs, drafts

T9_RATIO = Published(what="cost of an output token over an input token", low=4, high=8, unit="x")
PROMPT = 2048


def predict_t9() -> list[Comparison]:
    def ratio(batch: float) -> float:
        return decode(LLAMA_70B, batch=round(batch), context=PROMPT).output_to_input_ratio

    middle = (T9_RATIO.low * T9_RATIO.high) ** 0.5
    right = round(bisect(lambda batch: middle - ratio(batch), 1, 256, within=0.02))
    how = "(step / batch) / (time of reading a prompt of 2,048 tokens / its tokens)"
    return [guess(T9_RATIO, ratio(batch), how, batch=batch) for batch in sorted({1, 16, right, 64, 128, 256})]


def measure_t9(run: Measured) -> list[Comparison]:
    """A step at each batch measured against a prompt, both of 2,048 tokens and per token."""
    _, reading, prompt = prompt_seconds(run, LLAMA_70B, PROMPT)
    per_token, cache = cache_seconds(run, LLAMA_70B)
    layers = need(gemv(run, weights="bf16", model=LLAMA_70B.name), f"`ffn_gemv` of {LLAMA_70B.name} in bf16")
    how = "(measured layers / batch + measured attention to 2,048 tokens) / (measured prompt of 2,048 tokens / 2,048)"
    found = []
    for batch in sorted(set(map(batch_of, layers))):
        weights, records = weights_seconds(run, LLAMA_70B, weights="bf16", batch=batch)
        ratio = (weights / batch + PROMPT * per_token) / (reading / PROMPT)
        found.append(seen(T9_RATIO, ratio, how, [*records, cache, *prompt], batch=batch))
    return found


T9 = Claim(
    id="T9",
    text="output tokens cost 4-8 times input tokens, because of the hardware",
    plain="Writing a token costs the machine 4 to 8 times what reading one does",
    source="A",
    how="P M",
    published=(T9_RATIO,),
    setting="Llama-3.1-70B in bf16 at H100 rates, 2,048 tokens of context; the batch is not named: varied",
    predict=predict_t9,
    measure=measure_t9,
)


DRAFT = 4
T10_TIME = our_range(f"time of verifying {DRAFT} tokens over one", 0, 1.2, "x")


def predict_t10() -> list[Comparison]:
    found = []
    for batch in (1, 16, 64, 128, 256):
        one, several = (decode(LLAMA_70B, batch=batch, context=PROMPT, q_len=q).seconds for q in (1, DRAFT))
        found.append(
            guess(T10_TIME, several / one, "step with 4 tokens a request / with one", part="whole step", batch=batch)
        )
    return found


def measure_t10(run: Measured) -> list[Comparison]:
    """Attention with a draft of 2 to 8 tokens, and weights at 4 times the batch."""
    found = []
    for drafted in range(2, 9):
        records = attention(run, q_len=(1, drafted))
        for base, record in pairs(records, lambda r: r.case["q_len"], 1, drafted, "q_len"):
            how = "attention with a draft / with one query token"
            found.append(seen(T10_TIME, seconds(record) / seconds(base), how, [record, base],
                              part="attention", batch=batch_of(record), draft=drafted))  # fmt: skip
    for kind, records in layer_sweeps(run).items():
        sweep = {batch_of(r): r for r in records}
        for batch, record in sweep.items():
            if DRAFT * batch in sweep:
                pair = (sweep[DRAFT * batch], record)
                how = "layer at 4 times the batch / at the batch"
                value = seconds(pair[0]) / seconds(record)
                found.append(seen(T10_TIME, value, how, pair, part="weights", batch=batch, draft=DRAFT, weights=kind))
    return need_comparisons(found, "attention with a draft, or layer at one batch and four times it")


T10 = Claim(
    id="T10",
    text="speculative decoding verifies several drafted tokens in parallel in one pass",
    plain="Checking four guessed tokens takes at most a fifth longer than writing one",
    source="D",
    how="P M",
    published=(T10_TIME,),
    setting="Llama-3.1-70B in bf16 at H100 rates, 4 tokens a request; at most a fifth more time; batch varied",
    predict=predict_t10,
    measure=measure_t10,
)
