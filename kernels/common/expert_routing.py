"""Which experts tokens are routed to, and what of it reaches the busiest of several parts. Standard library only."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

ROUTINGS = {"uniform": "", "zipf": "-zipf", "lognormal": "-lognorm"}
"""How chances are spread, and what the id of a case says of it."""

DEVIATION = 0.865
"""Of the logarithms of the chances under `lognormal`. It is that of the first 22 counts of tokens for each expert that
github.com/deepseek-ai/EPLB/issues/22 recorded in one layer with 256 experts (10545, 11846, 8542, 33117, 8385, 4892,
24052, 27875, 12287, 21604, 31428, 19248, 13467, 12080, 5198, 1323, 19034, 28040, 44965, 3112, 13323, 4808). The
loads of DeepSeek-V3 on MMLU-Pro fitted a log-normal distribution best: github.com/deepseek-ai/DeepEP/pull/393. The 16
counts in github.com/sgl-project/sglang/pull/5524 deviate by 0.59."""


def chances(kind: str, E: int, rng: random.Random) -> list[float]:
    """How likely each expert is, up to a factor."""
    if kind == "zipf":
        return [1.0 / (rank + 1) for rank in range(E)]
    if kind == "lognormal":
        return sorted((rng.lognormvariate(0.0, DEVIATION) for _ in range(E)), reverse=True)
    return [1.0] * E


def best_of_groups(keys: list[float], groups: int, top_groups: int) -> list[int]:
    """The experts of the best groups, by the sum of the two largest keys of each."""
    each = len(keys) // groups
    scores = [sum(sorted(keys[g * each : (g + 1) * each])[-2:]) for g in range(groups)]
    best = sorted(range(groups), key=scores.__getitem__)[-top_groups:]
    return [e for g in sorted(best) for e in range(g * each, (g + 1) * each)]


@cache
def drawn(
    B: int, E: int, k: int, *, kind: str = "uniform", seed: int = 0, groups: int = 0, top_groups: int = 0
) -> tuple[tuple[int, ...], ...]:
    """The k distinct experts of each of B tokens. Without groups the first expert is the likeliest; with groups, likely
    and unlikely ones are mixed."""
    rng = random.Random(seed)
    if kind == "uniform" and not groups:
        return tuple(tuple(rng.sample(range(E), k)) for _ in range(B))
    likely = chances(kind, E, rng)
    if groups:
        rng.shuffle(likely)
    found = []
    for _ in range(B):
        # the k largest of u^(1/chance): weighted sampling without replacement (Efraimidis and Spirakis, 2006)
        keys = [rng.random() ** (1.0 / chance) for chance in likely]
        among = best_of_groups(keys, groups, top_groups) if groups else range(E)
        found.append(tuple(sorted(among, key=keys.__getitem__)[-k:]))
    return tuple(found)


@cache
def of_busiest(
    tokens: tuple[tuple[int, ...], ...], E: int, parts: int, shared: int, seed: int
) -> tuple[tuple[int], ...]:
    """One row for each (token, expert) pair that reaches the part with the most: the number of the expert there.

    Experts lie on the parts in random order. The shared experts come last; each part has them for its own tokens.
    """
    order = list(range(E))
    random.Random(seed).shuffle(order)
    place = {expert: divmod(at, E // parts) for at, expert in enumerate(order)}
    loads = Counter(place[expert][0] for experts in tokens for expert in experts)
    busiest = max(range(parts), key=lambda part: loads[part])
    routed = [place[e][1] for experts in tokens for e in experts if place[e][0] == busiest]
    own = [E // parts + s for s in range(shared) for _ in range(-(-len(tokens) // parts))]
    return tuple((e,) for e in (*routed, *own))
