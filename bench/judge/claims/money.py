"""Claims about money and energy: dollars and joules per token."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from statistics import median

from bench.devices import find
from bench.judge.claims import whole_steps
from bench.judge.claims.base import MEASURED, Claim, Comparison, NoPrediction, Published, Unmeasured, number
from bench.judge.claims.common import (
    COMPARED_PARTS,
    H100,
    LLAMA_70B,
    at_least,
    bandwidth,
    capacity,
    decode,
    measured,
    power,
    predicted,
)
from bench.judge.claims.kv import K5_BATCHES
from bench.judge.claims.others import FIELDS, Others, by_others, where
from bench.judge.claims.others import weights_seconds as published_weights
from bench.judge.claims.reading import MeasuredPart, require_part, require_some, seconds, weights_seconds
from kernels.models import active_parameters

# ------------------------------------------------------------------------------------- M1: the price of a batch

M1_HOURLY = 2.50
"""$ an hour, as published with the claim."""

M1_COSTS = {
    batch: number(f"$ per million output tokens at batch {batch}", price, "$", MEASURED)
    for batch, price in ((1, 29.0), (64, 0.45), (256, 0.11))
}


def dollars(hourly: float, step_seconds: float, batch: int) -> float:
    """$ per million tokens."""
    return hourly / 3600 * step_seconds / batch * 1e6


def predict_m1() -> list[Comparison]:
    found = []
    for context, (batch, published) in product((0, 128, 512, 2048, 8192), M1_COSTS.items()):
        step = decode(LLAMA_70B, batch=batch, context=max(1, context)).seconds
        how = "price an hour x step / batch, H100 SXM roofline, its capacity set aside"
        found.append(predicted(published, dollars(M1_HOURLY, step, batch), how, context=context))
    return found


def measure_m1(run: MeasuredPart) -> list[Comparison]:
    """Whole steps; else the time of the weights alone, from the model's measured layers, so the context is 0."""
    require_part(run, H100)
    found, reasons = [], []
    for batch, published in M1_COSTS.items():
        if whole := whole_steps.step_seconds(run, LLAMA_70B, weights="bf16", batch=batch):
            how = f"price an hour x {whole_steps.how(whole[1])} / batch"
            value, context = dollars(M1_HOURLY, whole[0], batch), whole[1].case["T"]
            found.append(measured(published, value, how, [whole[1]], context=context))
            continue
        try:
            step, records = weights_seconds(run, LLAMA_70B, weights="bf16", batch=batch)
        except Unmeasured as error:
            reasons.append(str(error))
            continue
        how = "price an hour x (seconds per weight of measured layers x weights) / batch; no cache"
        found.append(measured(published, dollars(M1_HOURLY, step, batch), how, records, context=0))
    if not found:
        raise Unmeasured("; ".join(reasons))
    return found


def others_m1(others: Others) -> list[Comparison]:
    """The time of the weights alone, from published products, so the context is 0."""
    found = []
    for batch, published in M1_COSTS.items():
        step, rows = published_weights(others, LLAMA_70B, H100, batch)
        how = "price an hour x (median seconds per weight of published products x weights) / batch; no cache"
        found.append(by_others(published, dollars(M1_HOURLY, step, batch), how, rows, context=0))
    return found


M1 = Claim(
    id="M1",
    text="at $2.50 an hour: $29 per million output tokens at batch 1, $0.45 at 64, $0.11 at 256 (70B FP16, H100)",
    plain="A million tokens cost $29 to write for one user at a time, 45 cents for 64 at once and 11 cents for 256",
    source="A",
    how="P M",
    published=tuple(M1_COSTS.values()),
    setting="Llama-3.1-70B in bf16 at one H100's rates, with its capacity set aside. The text does not name the "
    "context: it is varied",
    predict=predict_m1,
    measure=measure_m1,
    by_others=others_m1,
)

# ------------------------------------------------------------------------------- M2: the price at the largest batch

M2_COSTS = {
    key: number(f"$ per million tokens at the largest batch on {name}", price, "$", MEASURED)
    for (key, name), price in zip(COMPARED_PARTS.items(), (7.50, 4.50, 0.65, 0.20), strict=True)
}

PRICES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.5)
"""$ an hour for each part. The prices that clouds asked lie between: $1.39 for an A100, $2.69 for an H100 (RunPod, as
listed by deploybase.ai in March 2026); $7.91 for an H200 (an eighth of AWS p5en.48xlarge, in dstackai/dstack's pull
4110); $12.29 for an H100 before AWS cut prices in 2025 (an eighth of p5.48xlarge's $98.32, as quoted by
disintermediate.global)."""


def predict_m2() -> list[Comparison]:
    """One price for all parts, with the largest batches that K5 publishes and with those that fit."""
    found = []
    for source, price in product(("as published", "as fits, 8 KV heads in bf16"), PRICES):
        for key, published in M2_COSTS.items():
            batch = K5_BATCHES[key]
            if source != "as published":
                batch = decode(LLAMA_70B, key, batch=1, context=4096, devices=2).max_batch or 0
            if not batch:
                continue
            step = decode(LLAMA_70B, key, batch=batch, context=4096, devices=2).seconds
            how = "2 parts x price an hour x step of two parts / batch, 4,096 tokens of context"
            setting = {"batch": source, "$ an hour": f"{price:g}"}
            found.append(predicted(published, dollars(2 * price, step, batch), how, **setting))
    return found


M2 = Claim(
    id="M2",
    text="cost per million tokens at max batch: A100 $7.50, H100 $4.50, H200 $0.65, B200 $0.20",
    plain="A million tokens cost $7.50 on an A100, $4.50 on an H100, 65 cents on an H200 and 20 cents on a B200",
    source="A",
    how="P",
    published=tuple(M2_COSTS.values()),
    setting="Llama-3.1-70B in bf16 on two parts with 4,096 tokens. The text names no prices: all parts get the "
    "same price, which is varied",
    predict=predict_m2,
)

# --------------------------------------------------------------------------------------- M3: a formula for the cost

M3_RATIO = number("cost by the formula over cost by the model", 1.0, "x", 0.1)


def predict_m3() -> list[Comparison]:
    """The formula divides prefill by the batch too, but a prompt above the ridge gains nothing from a batch."""
    found = []
    for prompt, output in ((128, 1024), (1024, 256), (8192, 256)):
        for hit, batch in product((0.0, 0.5, 0.99), (1, 16, 64)):
            step = decode(LLAMA_70B, batch=batch, context=prompt)
            unread = (1 - hit) * step.prefill_seconds
            truth = unread + output * step.seconds / batch
            formula = (unread + output * step.seconds) / batch
            how = "((1 - hit) prefill + decode) / batch, over (1 - hit) prefill + decode / batch"
            setting = {"request": f"{prompt} in and {output} out", "hit rate": f"{hit:g}", "batch": batch}
            found.append(predicted(M3_RATIO, formula / truth, how, **setting))
    return found


M3 = Claim(
    id="M3",
    text="cost per token = ((1 - hit rate) x prefill cost + decode cost) / batch",
    plain="Serving many users at once divides the whole cost among them",
    source="A",
    how="P",
    published=(M3_RATIO,),
    setting="Llama-3.1-70B in bf16 on an H100's roofline. Prompt, output, hit rate and batch are varied",
    predict=predict_m3,
)

# ------------------------------------------------------------------------------------ M4: what a prefix cache saves

M4_SAVED = number("prefill GPUs saved by a hit rate of 56.3%", 0.45, "")
HIT_RATE, PREFILL_SHARE = 0.563, 0.8
"""As published with the claim."""


def predict_m4() -> list[Comparison]:
    return [
        predicted(M4_SAVED, HIT_RATE, "hit rate: work not done by prefill GPUs", share="of the prefill GPUs"),
        predicted(M4_SAVED, HIT_RATE * PREFILL_SHARE, "hit rate x prefill's share of the cycles", share="of all GPUs"),
    ]


M4 = Claim(
    id="M4",
    text="a 56.3% prefix hit rate saves about 45% of prefill GPUs where prefill is 80% of the cycles",
    plain="Remembering common beginnings saves about 45% of the chips that read questions",
    source="A",
    how="P",
    published=(M4_SAVED,),
    setting="The hit rate is the share of prefill work that is saved, counted against the prefill GPUs and all GPUs",
    predict=predict_m4,
)

# ------------------------------------------------------------------------------------------- M5: joules per token

M5_GPU = Published(what="energy of a GPU per token", low=10, high=30, unit="J")
M5_LPU = Published(what="energy of LPUs per token", low=1, high=3, unit="J")
M5_BATCHES = (1, 2, 3, 8, 64)


def predict_m5() -> list[Comparison | NoPrediction]:
    """Rated power x the roofline's time. A part draws less power than its rating and takes more time."""
    found: list[Comparison | NoPrediction] = []
    for batch in M5_BATCHES:
        value = power(find(H100)) * decode(LLAMA_70B, batch=batch, context=128).seconds / batch
        how = "rated power x step / batch, Llama-3.1-70B in bf16 at one H100's rates"
        found.append(predicted(M5_GPU, value, how, machine="GPU", batch=batch))
    try:
        lpu = find("groq-lpu")
        chips = math.ceil(active_parameters(LLAMA_70B) / capacity(lpu))
        step = active_parameters(LLAMA_70B) / (chips * bandwidth(lpu))
        how = (
            f"a lower bound: power of {chips} chips that hold the model in 8 bits x the least time, "
            "with all of them reading at once"
        )
        found.append(at_least(M5_LPU, chips * power(lpu) * step, how, machine="LPU", batch=1))
    except NoPrediction as missing:
        found.append(missing)
    return found


def measure_m5(run: MeasuredPart) -> list[Comparison]:
    """Mean board power while a whole step ran, or else the model's layers, x the time of a token.

    A record's power is that of its case, measured over all implementations in turn, not over the fastest alone.
    """
    found = []
    for batch in M5_BATCHES:
        whole = whole_steps.step_seconds(run, LLAMA_70B, weights="bf16", batch=batch)
        if whole and (watts := whole[1].telemetry.get("power_w")):
            how = f"measured board power x {whole_steps.how(whole[1])} / batch"
            found.append(measured(M5_GPU, watts * whole[0] / batch, how, [whole[1]], machine="GPU", batch=batch))
            continue
        try:
            step, records = weights_seconds(run, LLAMA_70B, weights="bf16", batch=batch)
        except Unmeasured:
            continue
        powered = [r for r in records if r.telemetry.get("power_w")]
        if powered:
            spent = sum(seconds(r) for r in powered)
            watts = sum(r.telemetry["power_w"] * seconds(r) for r in powered) / spent
            how = (
                "measured board power x (seconds per weight of measured layers x weights) / batch; the power is the "
                "case's, over all its implementations in turn"
            )
            found.append(measured(M5_GPU, watts * step / batch, how, powered, machine="GPU", batch=batch))
    return require_some(found, "`ffn_gemv` of llama-3.1-70b in bf16 with the board's power read while it ran")


def others_m5(others: Others) -> list[Comparison]:
    """Whole servers of Llama-3.1-70B in fp8: rated power x published time, the most that a token can have taken."""
    rows = others.servers
    rows = where(rows[rows["model"].str.contains("Llama-3.1-70B")], part=H100, stored="fp8")
    found = []
    for batch, mine in rows.groupby("B"):
        watts = power(find(H100)) * mine["tp"]
        value = float((watts * mine["seconds"] / mine["B"]).median())
        how = "rated power of all parts x published time per token / batch: at most this, since boards draw less"
        compared = by_others(M5_GPU, value, how, mine, machine="GPU", batch=batch, weights="fp8, whole servers")
        found.append(replace(compared, bound="upper"))
    return require_some(found, "published server of Llama-3.1-70B on an H100")


M5 = Claim(
    id="M5",
    text="GPUs spend 10-30 J per token, an LPU 1-3",
    plain="A GPU spends 10 to 30 joules on a token, and chips with all their memory on the chip (LPUs) spend 1 to 3",
    source="A",
    how="P M",
    published=(M5_GPU, M5_LPU),
    setting="Llama-3.1-70B in bf16. The text does not name the batch: it is varied. The model in 8 bits fills the LPUs",
    predict=predict_m5,
    measure=measure_m5,
    by_others=others_m5,
)

# ---------------------------------------------------------------------------------------- M6: what software saves

M6_RATIO = Published(what="slowest over fastest implementation", low=2, high=10, unit="x", tolerance=0)
JUDGED = ("decode_step", "ffn_gemv", "ffn_block", "moe_ffn", "attention_decode", "mla_decode")
LARGE = 16 << 20
"""Bytes from which cases are compared. Smaller cases differ by their launches."""


def measure_m6(run: MeasuredPart) -> list[Comparison]:
    """The median, over an operation's cases, of the slowest implementation's time over the fastest's."""
    found = []
    for op in JUDGED:
        groups: dict[str, list[float]] = {}
        used = [r for r in run.find(op) if r.bytes >= LARGE]
        for record in used:
            groups.setdefault(record.case_id, []).append(seconds(record))
        ratios = [max(times) / min(times) for times in groups.values() if len(times) > 1]
        if ratios:
            how = "median over cases of the slowest correct implementation / the fastest"
            found.append(measured(M6_RATIO, median(ratios), how, used, op=op))
    return require_some(found, "case of at least 16 MiB with two implementations")


def others_m6(others: Others) -> list[Comparison]:
    """Engines on an H100, case by case: the slowest's time over the fastest's."""
    found = []
    for op in JUDGED:
        rows = others.every(op)
        rows = rows[rows["part"] == H100]
        groups = rows.groupby(["routing", *FIELDS], observed=True)["seconds"]
        ratios = (groups.max() / groups.min())[groups.size() > 1]
        if len(ratios):
            how = "median over published cases of the slowest engine, version or kernel / the fastest"
            found.append(by_others(M6_RATIO, ratios.median(), how, rows, op=op))
    return require_some(found, "published case of two engines")


M6 = Claim(
    id="M6",
    text="software alone cuts inference cost 2-10 times on the same hardware",
    plain="Better programs alone make the same machine two to ten times cheaper to use",
    source="D",
    how="M",
    published=(M6_RATIO,),
    setting="The slowest correct implementation of an operation stands for naive software",
    measure=measure_m6,
    by_others=others_m6,
)
