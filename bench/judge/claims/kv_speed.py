"""Claims about time and the KV cache: what the cache saves, and what its precision changes."""

from __future__ import annotations

from itertools import pairwise

from bench.judge.claims.base import APPROXIMATE, Claim, Comparison, Unmeasured, number
from bench.judge.claims.common import LLAMA_70B, bisect, decode, measured, predicted
from bench.judge.claims.reading import MeasuredPart, batch_of, bf16_sweep, seconds

# ------------------------------------------------------------------------------------------- I13: what the cache saves

I13_SPEEDUP = number("speed-up by the KV cache", 5, "x", APPROXIMATE)
I13_LINEAR = number("growth of the time when the output doubles, with the cache", 2, "x", APPROXIMATE)
STEPS = 16
"""Contexts sampled over a generation. The time per token is smooth in the context."""


def generation(tokens: int) -> tuple[float, float]:
    """Seconds to generate `tokens` with the cache, and with the whole sequence computed again for each token."""
    contexts = [max(1, round(tokens * (i + 0.5) / STEPS)) for i in range(STEPS)]
    steps = [decode(LLAMA_70B, context=context) for context in contexts]
    scale = tokens / STEPS
    return scale * sum(s.seconds for s in steps), scale * sum(s.prefill_seconds for s in steps)


def predict_i13() -> list[Comparison]:
    def excess(tokens: float) -> float:
        with_cache, without = generation(round(tokens))
        return without / with_cache - I13_SPEEDUP.low

    found = []
    for tokens in sorted({256, 1024, 4096, 8192, round(bisect(excess, 256, 8192, within=0.05))}):
        with_cache, without = generation(tokens)
        twice, _ = generation(2 * tokens)
        found += [
            predicted(I13_SPEEDUP, without / with_cache, "recomputing every prefix / reading the cache", tokens=tokens),
            predicted(I13_LINEAR, twice / with_cache, "time of twice the tokens / time", tokens=tokens),
        ]
    return found


def measure_i13(run: MeasuredPart) -> list[Comparison]:
    sweep = sorted(bf16_sweep(run), key=batch_of)
    if batch_of(sweep[0]) != 1 or batch_of(sweep[-1]) < 128:
        raise Unmeasured("no layer in bf16 was swept from batch 1 to 128 or more")
    area = sum((seconds(a) + seconds(b)) / 2 * (batch_of(b) - batch_of(a)) for a, b in pairwise(sweep))
    value = area / (seconds(sweep[0]) * (batch_of(sweep[-1]) - 1))
    how = "a layer's time with t tokens, averaged over t, / its time with one: recomputing against caching"
    return [measured(I13_SPEEDUP, value, how, sweep, tokens=batch_of(sweep[-1]))]


I13 = Claim(
    id="I13",
    text="the KV cache turns generation from O(n^2) to O(n), about 5 times faster",
    plain="Remembering what was read makes writing an answer about five times faster",
    source="A",
    how="P M",
    published=(I13_SPEEDUP, I13_LINEAR),
    setting="Llama-3.1-70B in bf16 at H100 bandwidth without a prompt. The text names no length: it is varied",
    predict=predict_i13,
    measure=measure_i13,
    any_part=True,
)
