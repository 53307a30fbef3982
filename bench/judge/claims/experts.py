"""Claims about mixtures of experts: what a batch reads, where it saturates, and what uneven loads cost."""

from __future__ import annotations

import math
import random
from itertools import product

from bench.devices import DEVICES, find
from bench.judge.claims.base import MEASURED, Claim, Comparison, NoPrediction, number, our_range
from bench.judge.claims.common import DEEPSEEK_V3, H100, WEIGHT_KINDS, measured, predicted, ridge
from bench.judge.claims.others import Others, between_batches, ratio, where
from bench.judge.claims.reading import (
    MIN_GROWTH,
    MeasuredPart,
    batch_of,
    comparable,
    fastest_by_batch,
    require_some,
    seconds,
    weight_format,
    weight_kind,
)
from bench.predict.step_work import PRECISIONS, expected_experts
from bench.records import Record
from kernels.common.expert_routing import DEVIATION, chances
from kernels.models import model

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


MODELS = {"mixtral-8x7b": (8, 2, 4096, 14336), "gpt-oss-120b": (128, 4, 2880, 2880), "kimi-k2": (384, 8, 7168, 2048)}
"""E, k, H, F. Tables of 256 experts are left out: routing in groups reuses experts, and rows beat the bandwidth."""


def others_i7(others: Others) -> list[Comparison]:
    """Balanced routing on one H100."""
    found = []
    rows = where(others.op("moe_ffn", cold=False), part=H100, tp=1, routing="balanced")
    for name, (E, k, H, F) in MODELS.items():
        mine = where(rows, E=E, k=k, H=H, F=F)
        both = between_batches(mine, "part", "stored", low=1, high=256)
        if len(both):
            how = "time at batch 256 / time at batch 1, which reads what a dense layer of equal compute reads"
            found.append(ratio(I7_MORE, both, how, model=name))
    return require_some(found, "published MoE layer at batch 1 and 256")


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
    by_others=others_i7,
    any_part=True,
)

# ------------------------------------------------------------------------------------------ I14: uneven experts

I14_IDLE = number("idle share of the parts that wait for the busiest", 0.82, "", MEASURED)


def idle_share(experts: int, parts: int, exponent: float, spread: str) -> float:
    """1 - mean / greatest load over parts that hold whole experts; the r-th expert has a chance of r^-exponent.

    `spread` says how experts are placed: `in turn` (1, 2, 3 ... on part 1, 2, 3 ...) or `in blocks` of neighbours.
    """
    chances = [rank**-exponent for rank in range(1, experts + 1)]
    each = experts // parts
    place = (lambda i: i % parts) if spread == "in turn" else (lambda i: i // each)
    loads = [0.0] * parts
    for i, chance in enumerate(chances):
        loads[place(i)] += chance
    return 1 - sum(loads) / parts / max(loads)


def idle_by_chance(experts: int, parts: int) -> float:
    """The same for chances of experts as published counts have them (`kernels/common/expert_routing.py`)."""
    rng = random.Random(0)
    total = 0.0
    for _ in range(200):
        likely = chances("lognormal", experts, rng)
        rng.shuffle(likely)
        each = experts // parts
        loads = [sum(likely[p * each : (p + 1) * each]) for p in range(parts)]
        total += 1 - sum(loads) / parts / max(loads)
    return total / 200


def predict_i14() -> list[Comparison]:
    found = []
    for parts in (8, 32, 64):
        value = idle_by_chance(256, parts)
        setting = {"chance of expert r": "log-normal, as published counts are", "parts": parts}
        how = f"the same, log-normal chances of deviation {DEVIATION}, mean of 200 draws, seed 0"
        found.append(predicted(I14_IDLE, value, how, **setting, **{"experts placed": "at random"}))
    for exponent, parts, spread in product((0.0, 0.5, 1.0), (8, 32, 64), ("in turn", "in blocks")):
        value = idle_share(256, parts, exponent, spread)
        how = "1 - mean / greatest load over parts with whole experts, many tokens, 256 experts"
        setting = {"chance of expert r": f"r^-{exponent:g}", "parts": parts, "experts placed": spread}
        found.append(predicted(I14_IDLE, value, how, **setting))
    return found


I14 = Claim(
    id="I14",
    text="badly balanced experts leave GPUs up to 82% idle",
    plain="Where all users ask the same few experts, the other machines wait four fifths of the time",
    source="A",
    how="S",
    published=(I14_IDLE,),
    setting="256 experts on 8 to 64 parts. How uneven the choice is and how experts are placed are varied",
    predict=predict_i14,
)
