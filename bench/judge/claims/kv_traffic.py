"""Claims about keeping and moving KV caches: what reading one back costs, and what more memory is worth."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import product

from bench.devices import find
from bench.judge.claims.base import APPROXIMATE, Claim, Comparison, Published, number
from bench.judge.claims.common import H100, LLAMA_8B, LLAMA_70B, decode, predicted
from bench.judge.claims.traces import MOONCAKE, shared_prefixes

# ------------------------------------------------------------------------------- K10: the price of a cached token

K10_READ = number("cost of a cached token over an input token", 0.1, "x", APPROXIMATE)
K10_WRITE = number("cost of writing the cache over an input token", 1.25, "x", APPROXIMATE)


def predict_k10() -> list[Comparison]:
    found = []
    link = find(H100).host_bandwidth
    assert link
    for shape, prompt in product((LLAMA_8B, LLAMA_70B), (2048, 32_768)):
        step = decode(shape, context=prompt)
        moved = step.kv_bytes_per_request / link.value / step.prefill_seconds
        found += [
            predicted(K10_READ, moved, "KV bytes / host link / prefill", the="read", model=shape.name, prompt=prompt),
            predicted(
                K10_WRITE, 1 + moved, "1 + KV bytes / link / prefill", the="write", model=shape.name, prompt=prompt
            ),
        ]
    return found


K10 = Claim(
    id="K10",
    text="a cache read costs 0.1 of an input token, a write 1.25",
    plain="Reading remembered text costs a tenth of reading it anew, and writing it down a quarter more",
    source="A",
    how="P M",
    published=(K10_READ, K10_WRITE),
    setting="Caches in the host's memory beside one H100, in bf16. Model and prompt are varied",
    predict=predict_k10,
    never="the numbers are prices of a vendor; the link and a prompt are measured apart (`host_link`, `prefill`)",
)

# ---------------------------------------------------------------------------------------- K11: blocks of a prefix

K11_HITS = Published(what="hit rate with blocks of 16 tokens over a trie of tokens", low=0.87, high=math.inf, unit="")


def kept_hits(prefixes: Sequence[int], block: int = 16) -> float:
    """Tokens of whole blocks over all tokens of shared prefixes."""
    return sum(n // block * block for n in prefixes) / sum(prefixes)


def predict_k11() -> list[Comparison]:
    """Prefixes of a published trace; and short ones, of which none is published, of lengths that are all alike."""
    how = f"whole blocks / tokens of shared prefixes, simulated, seed 0, prefixes of {MOONCAKE}"
    found = [predicted(K11_HITS, kept_hits(shared_prefixes(10_000)), how, prefixes="conversations (Mooncake)")]
    for low, high in ((8, 64), (50, 200)):
        rng = random.Random(0)
        lengths = [rng.randint(low, high) for _ in range(10_000)]
        how = "whole blocks / tokens of shared prefixes, assumed uniform, seed 0"
        found.append(predicted(K11_HITS, kept_hits(lengths), how, prefixes=f"{low} to {high} tokens (assumed)"))
    return found


K11 = Claim(
    id="K11",
    text="prefix caching by 16-token blocks; a token-level trie is optimal; good prompts hit over 87%",
    plain="Remembering shared beginnings in pieces of 16 words keeps at least 87% of what could be kept",
    source="A",
    how="S",
    published=(K11_HITS,),
    setting="Lost at the end of each shared prefix: its tokens beyond the last whole block; nothing is dropped for "
    "want of memory. Prefixes are those of a published trace, and short ones that are assumed",
    predict=predict_k11,
)

# ------------------------------------------------------------------------------------------------ K12: KV on NVMe

K12_FASTER = number("prefill over reading the cache from NVMe", 75, "x", APPROXIMATE)
NVME = 252e9
"""B/s of a node, as published with the claim."""


def predict_k12() -> list[Comparison]:
    found = []
    for shape, prompt, count in product((LLAMA_8B, LLAMA_70B), (2048, 32_768, 131_071), (1, 8)):
        step = decode(shape, context=prompt, devices=count)
        value = step.prefill_seconds / (step.kv_bytes_per_request / NVME)
        how = "prefill / (KV bytes / 252 GB/s), H100 roofline"
        found.append(predicted(K12_FASTER, value, how, model=shape.name, prompt=prompt, devices=count))
    return found


K12 = Claim(
    id="K12",
    text="KV kept on NVMe: 75 times faster prefill at 252 GB/s a node",
    plain="Fetching remembered text from disks is 75 times faster than reading it anew",
    source="A",
    how="P M",
    published=(K12_FASTER,),
    setting="bf16 on one or eight H100s. Model and prompt are varied",
    predict=predict_k12,
    never="no array of disks with 252 GB/s is at hand, and no operation here reads one",
)

# -------------------------------------------------------------------------------------- K13: 61 GB more memory

K13_BATCH = Published(what="batch on an H200 over an H100", low=2, high=4, unit="x")
K13_COST = Published(what="cost on an H100 over an H200 at these batches", low=2, high=4, unit="x")


def predict_k13() -> list[Comparison]:
    found = []
    for count, context, weights in product((2, 4, 8), (4096, 32_768), ("bf16", "fp8")):
        batches = [
            decode(LLAMA_70B, key, weights=weights, context=context, devices=count).max_batch for key in (H100, "h200")
        ]
        if not all(batches):
            continue
        small, large = (batch or 1 for batch in batches)
        steps = [
            decode(LLAMA_70B, key, weights=weights, batch=batch, context=context, devices=count).seconds / batch
            for key, batch in ((H100, small), ("h200", large))
        ]
        setting = {"parts": count, "context": context, "weights": weights}
        found += [
            predicted(K13_BATCH, large / small, "largest batch of each", **setting),
            predicted(K13_COST, steps[0] / steps[1], "step / batch at one price an hour", **setting),
        ]
    return found


K13 = Claim(
    id="K13",
    text="the H200's 61 GB more give 2 to 4 times larger batches and cut cost linearly",
    plain="More memory alone lets two to four times as many users on, and makes each cheaper by as much",
    source="A",
    how="P",
    published=(K13_BATCH, K13_COST),
    setting="Llama-3.1-70B with its cache in bf16. Linearly: by the same factor. Parts, context and weights are varied",
    predict=predict_k13,
)
