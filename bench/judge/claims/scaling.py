"""Claims about several GPUs: what communication costs."""

from __future__ import annotations

import math
from itertools import product

from bench.judge.claims.base import Claim, Comparison, our_range
from bench.judge.claims.common import DEEPSEEK_V3, H100, LLAMA_70B, decode, predicted
from bench.judge.claims.others import Others, by_others, some, where

# ---------------------------------------------------------------------------------------- X1: all-reduces

X1_SHARE = our_range("share of a step in all-reduces", 0.1, 1, "")
LAYERS = LLAMA_70B.layers


def predict_x1() -> list[Comparison]:
    """Bytes over the link alone. Latency is not in the datasheet."""
    found = []
    for devices, batch, weights in product((2, 4, 8), (1, 16, 64), ("bf16", "fp8")):
        step = decode(LLAMA_70B, weights=weights, batch=batch, context=2048, devices=devices)
        value = step.op("all_reduce").seconds / step.seconds
        how = "bytes of 160 all-reduces over the link / step, without any latency"
        setting = {"devices": devices, "batch": batch, "weights": weights, "counted": "bytes"}
        found.append(predicted(X1_SHARE, value, how, **setting))
    return found


def others_x1(others: Others) -> list[Comparison]:
    """The published all-reduce of a step's messages beside the floor of the rest of the step."""
    rows = where(others.op("all_reduce", cold=False), part=H100, stored="bf16")
    some(rows, "an all-reduce among H100s")
    found = []
    for devices, batch, weights in product((2, 4, 8), (1, 16, 64), ("bf16", "fp8")):
        size = 2 ** round(math.log2(batch * LLAMA_70B.hidden))
        mine = where(rows, tp=devices, N=size)
        if len(mine):
            step = decode(LLAMA_70B, weights=weights, batch=batch, context=2048, devices=devices)
            rest = step.seconds - step.op("all_reduce").seconds
            best = mine.nsmallest(1, "seconds")
            reduces = 2 * LAYERS * float(best["seconds"].iloc[0])
            how = "160 x the fastest published all-reduce of [batch, 8192] / (that + the floor of all else)"
            setting = {"devices": devices, "batch": batch, "weights": weights, "counted": "measured"}
            found.append(by_others(X1_SHARE, reduces / (reduces + rest), how, best, **setting))
    return found


X1 = Claim(
    id="X1",
    text="scaling over GPUs is held back by communication",
    plain="Several machines that share a model spend at least a tenth of their time talking to each other",
    source="D",
    how="P M V",
    published=(X1_SHARE,),
    setting="Llama-3.1-70B on H100s with NVLink, 2,048 tokens. Held back: at least a tenth of a step. Devices, batch "
    "and precision are varied",
    predict=predict_x1,
    by_others=others_x1,
)

# ------------------------------------------------------------------------------------------- X2: all-to-all

X2_CARD = our_range("all-to-all over a network card over the experts' time", 1, math.inf, "x")
X2_NVLINK = our_range("all-to-all over NVLink over the experts' time", 0, 0.5, "x")
CARD = 50e9
"""B/s of a 400 Gb/s network card for each GPU."""
NVLINK = 450e9


def exchange(batch: int, rate: float) -> float:
    """Seconds to send fp8 activations to k experts and to get bf16 results back, for the tokens of one GPU."""
    shape = DEEPSEEK_V3
    return batch * shape.experts_per_token * shape.hidden * (1 + 2) / rate


def predict_x2() -> list[Comparison]:
    found = []
    for batch, devices in product((16, 64, 128, 256), (32, 64)):
        hit = min(1.0, batch * DEEPSEEK_V3.experts_per_token / (DEEPSEEK_V3.experts / devices))
        each = 3 * DEEPSEEK_V3.hidden * DEEPSEEK_V3.expert_ffn
        time = hit * DEEPSEEK_V3.experts / devices * each / 3.35e12
        setting = {"tokens of a GPU": batch, "GPUs": devices, "experts' time": "floor"}
        how = "dispatch in fp8 and combine in bf16 / the bytes of the local experts over the bandwidth"
        found += [
            predicted(X2_CARD, exchange(batch, CARD) / time, how, **setting),
            predicted(X2_NVLINK, exchange(batch, NVLINK) / time, how, **setting),
        ]
    return found


def others_x2(others: Others) -> list[Comparison]:
    """The published time of DeepSeek-V3's experts on one H100 that holds all of them, shared among the GPUs."""
    rows = where(others.every("moe_ffn"), part=H100, E=256, k=8, H=7168, F=2048, tp=1)
    rows = some(rows[rows["stored"].isin(("fp8", "fp8_block"))], "DeepSeek-V3's experts in fp8 on an H100")
    found = []
    for (tokens, mine), devices in product(rows[rows["B"] >= 64].groupby("B"), (32, 64)):
        best = mine.nsmallest(1, "seconds")
        time = float(best["seconds"].iloc[0]) / devices
        setting = {"tokens of a GPU": tokens, "GPUs": devices, "experts' time": "published"}
        how = "dispatch in fp8 and combine in bf16 / the fastest published time of all experts over the GPUs"
        for published, rate in ((X2_CARD, CARD), (X2_NVLINK, NVLINK)):
            found.append(by_others(published, exchange(int(tokens), rate) / time, how, best, **setting))
    return found


X2 = Claim(
    id="X2",
    text="MoE's all-to-all needs NVLink or a switched fabric",
    plain="Machines that share a model of experts need fast cables: over a network it takes longer than the work",
    source="A",
    how="P V",
    published=(X2_CARD, X2_NVLINK),
    setting="DeepSeek-V3 in fp8 on H100s: NVLink at 450 GB/s against a network card of 50 GB/s for each GPU. Needs: "
    "over the card it takes longer than the experts, over NVLink at most half as long",
    predict=predict_x2,
    by_others=others_x2,
)
