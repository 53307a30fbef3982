"""Claims about tricks of serving: 4-bit caches, one-change savings, drafts, continuous batches, split phases."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from bench.devices import find
from bench.judge.claims import whole_steps
from bench.judge.claims.base import APPROXIMATE, Claim, Comparison, number, our_range
from bench.judge.claims.common import H100, LLAMA_70B, decode, predicted
from bench.judge.claims.others import Others, paired, ratio, some
from bench.judge.claims.reading import MeasuredPart, require_some
from bench.judge.claims.traces import AZURE, MOONCAKE, OUTPUTS, PROMPTS, draw

# ------------------------------------------------------------------------------------------- T11: an NVFP4 cache

T11_SIZE = number("NVFP4 over FP8", 0.5, "x")


def predict_t11() -> list[Comparison]:
    how = "(4 bits + an 8-bit scale for 16 elements) / 8 bits"
    return [predicted(T11_SIZE, (4 + 8 / 16) / 8, how, what="size")]


def others_t11(others: Others) -> list[Comparison]:
    """Nobody published attention over an NVFP4 cache; products with weights in the same two formats on a B200."""
    rows = others.op("ffn_gemv")
    rows = rows[(rows["part"] == "b200") & (rows["B"] <= 16)]
    both = paired(rows[rows["stored"] == "fp8"], rows[rows["stored"] == "nvfp4"], "stored", "activations")
    both = some(both, "a product in nvfp4 and in fp8 on a B200")
    how = "median over products up to batch 16 of the time with nvfp4 weights / with fp8 weights, as a stand-in"
    return [ratio(T11_SIZE, both, how, what="time to read, weights on a B200")]


T11 = Claim(
    id="T11",
    text="NVFP4 halves an FP8 KV cache again",
    plain="4 bits a number instead of 8 halve what is remembered once more",
    source="A",
    how="P M",
    published=(T11_SIZE,),
    setting="Bits with scales. Times are of weights in the same formats, since no cache was published",
    predict=predict_t11,
    by_others=others_t11,
)

# ---------------------------------------------------------------------------------- T12: the cost of INT8 at large

T12_COST = number("cost in FP16 over INT8 at the largest batch", 4, "x", APPROXIMATE)


def largest_batch(weights: str, key: str, count: int, context: int) -> int:
    return decode(LLAMA_70B, key, weights=weights, batch=1, context=context, devices=count).max_batch or 0


def predict_t12() -> list[Comparison]:
    found = []
    for (key, count), context in product(((H100, 2), (H100, 4), (H100, 8), ("h200", 2), ("h200", 4)), (2048, 8192)):
        costs = []
        for weights in ("bf16", "w8a16"):
            batch = largest_batch(weights, key, count, context)
            if batch:
                step = decode(LLAMA_70B, key, weights=weights, batch=batch, context=context, devices=count)
                costs.append(step.seconds / batch)
        if len(costs) == 2:
            how = "step / batch at the largest batch with 16-bit weights / with 8-bit weights"
            found.append(
                predicted(T12_COST, costs[0] / costs[1], how, parts=f"{count} x {find(key).name}", context=context)
            )
    return found


T12 = Claim(
    id="T12",
    text="FP16 to INT8 is a 4 times lower cost from one change",
    plain="Half the bits make a token four times cheaper, because twice the users fit and each step is half as long",
    source="A",
    how="P M",
    published=(T12_COST,),
    setting="Llama-3.1-70B with its cache in bf16, at the batch that fills the memory. Parts and context are varied",
    predict=predict_t12,
    never="a run measures operations, not the largest batch of a served model",
)

# ------------------------------------------------------------------------------------------- T13: does a draft pay

T13_GAIN = our_range("tokens per second with drafts over without", 1, math.inf, "x")
DRAFTS, DRAFT_COST = 4, 0.05
"""Drafted tokens a step, and what drafting one costs of a step."""


def gain(accepted: float, verifying: float) -> float:
    """Tokens that a round of drafts and their verification gives, over the steps that it takes as long as."""
    return (1 - accepted ** (DRAFTS + 1)) / (1 - accepted) / (DRAFTS * DRAFT_COST + verifying)


def predict_t13() -> list[Comparison]:
    found = []
    for accepted, batch in product((0.6, 0.8), (1, 16, 64, 128, 256)):
        one, several = (decode(LLAMA_70B, batch=batch, context=2048, q_len=q).seconds for q in (1, DRAFTS + 1))
        value = gain(accepted, several / one)
        how = "(1 - a^5) / (1 - a) / (4 x draft cost + verifying 5 tokens / one)"
        found.append(predicted(T13_GAIN, value, how, accepted=f"{accepted:g}", batch=batch))
    return found


def measure_t13(run: MeasuredPart) -> list[Comparison]:
    """Steps that verify five tokens. No draft model runs here: its cost is that of the prediction."""
    found = []
    for each in whole_steps.verifying(run, T13_GAIN, DRAFTS + 1):
        for accepted in (0.6, 0.8):
            how = f"(1 - a^5) / (1 - a) / (4 x assumed draft cost + verifying 5 tokens / one); verifying: {each.how}"
            setting = {name: said for name, said in each.setting.items() if name != "draft"}
            setting["accepted"] = f"{accepted:g}"
            found.append(replace(each, value=gain(accepted, each.value), how=how, setting=setting))
    return require_some(found, "`decode_step` at one batch and at five times it")


T13 = Claim(
    id="T13",
    text="speculative decoding pays because drafted tokens are verified in parallel",
    plain="Guessing ahead and checking the guesses together is faster than writing word by word",
    source="D",
    how="P M",
    published=(T13_GAIN,),
    setting="Llama-3.1-70B in bf16 at H100 rates, 4 drafts that cost a twentieth of a step each. Acceptance and batch "
    "are varied",
    predict=predict_t13,
    measure=measure_t13,
    any_part=True,
)

# ----------------------------------------------------------------------------------- T14: continuous batching

T14_WASTE = our_range("share of a static batch's slots that wait for its longest request", 0.25, 1, "")


def static_waste(batch: int, outputs: Sequence[int], seed: int = 0) -> float:
    """1 - mean / longest output, averaged over 400 batches whose outputs are drawn from these."""
    rng = random.Random(seed)
    total = 0.0
    for _ in range(400):
        lengths = draw(outputs, batch, rng)
        total += 1 - sum(lengths) / batch / max(lengths)
    return total / 400


def predict_t14() -> list[Comparison]:
    found = []
    for batch, (requests, outputs) in product((4, 16, 64), OUTPUTS.items()):
        source = MOONCAKE if "Mooncake" in requests else AZURE
        how = f"simulated: 1 - mean / longest output of a batch, seed 0, outputs of {source}"
        found.append(predicted(T14_WASTE, static_waste(batch, outputs), how, batch=batch, requests=requests))
    return found


T14 = Claim(
    id="T14",
    text="continuous batching raises utilisation",
    plain="Letting new users in as soon as others are done saves at least a quarter of the machine",
    source="D",
    how="S",
    published=(T14_WASTE,),
    setting="Raises: a static batch wastes at least a quarter. Outputs are drawn from published traces. Batch and "
    "requests are varied",
    predict=predict_t14,
)

# ------------------------------------------------------------------------------------ T15: prefill on its own parts

T15_RATE = number("throughput of DistServe over its baseline", 4.48, "x")
T15_LATENCY = number("tighter latency of DistServe", 10.2, "x")
T15_SPLIT = number("throughput of Splitwise over its baseline", 1.4, "x")

REQUESTS = 200

SELDOM = 1e-3
"""Requests a second of which hardly any meets another."""

Request = tuple[float, int]
"""Seconds in which its prompt is read, and how many tokens it gets."""


def times(rate: float, requests: Sequence[Request], step: tuple[float, float], seed: int = 0) -> tuple[float, float]:
    """The 90th percentiles of a simulated server: of times to the first token, and of times per further token.

    Requests come at random. A prompt is read alone and goes before all decode steps. `step` holds the seconds of a step
    without sequences, and those that each sequence adds.
    """
    rng, arrivals, now = random.Random(seed), [], 0.0
    for _ in requests:
        now += rng.expovariate(rate)
        arrivals.append(now)
    now, steps, waiting = 0.0, 0, 0
    running: list[tuple[int, int, float]] = []
    first, each = [], []
    while waiting < len(requests) or running:
        if waiting < len(requests) and (arrivals[waiting] <= now or not running):
            prefill, tokens = requests[waiting]
            now = max(now, arrivals[waiting]) + prefill
            first.append(now - arrivals[waiting])
            heapq.heappush(running, (steps + tokens, tokens, now))
            waiting += 1
            continue
        now += step[0] + step[1] * len(running)
        steps += 1
        while running and running[0][0] <= steps:
            _, tokens, began = heapq.heappop(running)
            each.append((now - began) / tokens)
    last = len(requests) * 9 // 10
    return sorted(first)[last], sorted(each)[last]


def most_requests(requests: Sequence[Request], step: tuple[float, float], first: float, each: float) -> float:
    """The most requests in a second with both limits kept."""

    def kept(rate: float) -> bool:
        found = times(rate, requests, step)
        return found[0] <= first and found[1] <= each

    low, high = SELDOM, 1e3
    for _ in range(16):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def apart_over_together(requests: Sequence[Request], step: tuple[float, float], first: float, each: float) -> float:
    """How many more requests are served if servers that read prompts and servers that write answers are as many as
    their rates ask for."""
    together = most_requests(requests, step, first, each)
    reading = most_requests(requests, (0.0, 0.0), first, each)
    writing = most_requests([(0.0, tokens) for _, tokens in requests], step, first, each)
    return 1 / (1 / reading + 1 / writing) / together


def predict_t15() -> list[Comparison]:
    """Prompts and outputs are drawn apart: what a trace's long prompts are answered with is left out."""
    found = []
    for kind, prompts in PROMPTS.items():
        rng = random.Random(0)
        drawn = list(zip(draw(prompts, REQUESTS, rng), draw(OUTPUTS[kind], REQUESTS, rng), strict=True))
        context = round(sum(prompt + tokens / 2 for prompt, tokens in drawn) / REQUESTS)
        few, many = (decode(LLAMA_70B, batch=batch, context=context, devices=4) for batch in (1, 65))
        more = (many.seconds - few.seconds) / 64
        step = few.seconds - more, more
        reading = {n: decode(LLAMA_70B, batch=1, context=n, devices=4).prefill_seconds for n in set(prompts)}
        requests = [(reading[prompt], tokens) for prompt, tokens in drawn]
        for first, each in ((0.2, 0.03), (0.5, 0.05), (1.0, 0.1)):
            if times(SELDOM, requests, step)[0] > first:
                continue  # a tenth of the prompts take longer, even if each has a server of its own
            ratio = apart_over_together(requests, step, first, each)
            how = "requests a second and part within both limits for nine of ten, apart / together: simulated, seed 0, "
            how += f"prompts and outputs of {AZURE}"
            limits = {"limit of the first token": f"{first:g} s", "limit of each": f"{each:g} s"}
            found += [predicted(published, ratio, how, requests=kind, **limits) for published in (T15_RATE, T15_SPLIT)]
    return found


T15 = Claim(
    id="T15",
    text="disaggregated prefill: DistServe 4.48 times the throughput or 10.2 times tighter latency; Splitwise 1.4 "
    "times at 20% lower cost",
    plain="Reading questions on other machines than those that write answers serves up to four times as many users",
    source="A",
    how="S M",
    published=(T15_RATE, T15_LATENCY, T15_SPLIT),
    setting="Llama-3.1-70B in bf16 on four H100s a server. Requests come at random, with the lengths of code and of "
    "conversations at Azure. The limits of the first token and of each further one are varied. Moving a cache is free",
    predict=predict_t15,
    never="it needs a served model under load, with and without prefill beside it; no operation here runs a server",
)
