"""The settings at which values are compared, and how to say in words which of them are meant. Pure."""

from __future__ import annotations

from collections.abc import Sequence

Setting = dict[str, str]
"""The factors at which a value was computed or measured, such as `{"weights": "bf16", "batch": "8"}`."""

MAX_LISTED = 4
"""Blocks of settings that are listed before the rest is only counted."""


PHRASES = {
    "kind": "{}",
    "phase": "{}",
    "model": "{}",
    "workload": "{}",
    "prompt": "a prompt of {} tokens",
    "context": "a context of {} tokens",
    "tokens": "{} tokens",
    "bits": "{} bits",
    "query heads per KV head": "{} query heads per KV head",
    "chance of expert r": "a chance of {} of expert r",
    "cache": "a cache in {}",
    "devices": "{} devices",
    "device": "on {}",
    "part": "on {}",
    "parts": "on {}",
    "timed": "the time of {}",
    "keeps": "a model that keeps {}",
    "GPUs": "{} GPUs",
    "tokens of a GPU": "{} tokens for each GPU",
    "log-sd of lengths": "lengths whose logarithms deviate by {}",
    "reserved": "memory reserved for the {}",
    "accepted": "a chance of {} that a draft is accepted",
    "$ an hour": "a price of ${} an hour",
    "$ per million": "a price of ${} per million tokens",
    "hit rate": "a hit rate of {}",
    "request": "a request of {}",
    "prefixes": "prefixes of {}",
    "said": "the text's number {}",
    "GB": "a GB of {}",
    "tier": "the tier {}",
    "link": "the link {}",
    "windowed": "a window in {}",
    "H100 batch": "on the H100 the {}",
}
"""How to say the values of a factor. Others are said as they are: `batch 64`, `weights bf16`."""

WORDS = {
    ("capacity", "set aside"): "where the part's memory may be too small for the weights",
    ("prefix", "none"): "without a shared prefix",
    ("timed", "weights"): "the time of the weights",
    ("timed", "whole step"): "the time of a whole step",
    ("of", "the model"): "the throughput of the model",
    ("of", "the layer alone"): "the throughput of the layer alone",
    ("parts", "1"): "on 1 part",
    ("query heads per KV head", "1"): "1 query head per KV head",
    ("counted", "measured"): "by measured times",
    ("counted", "bytes"): "by bytes alone",
    ("experts' time", "floor"): "experts that take their floor",
    ("H100 batch", "largest that fits"): "on the H100 the largest batch that fits",
}
"""How to say one value of a factor where the rule of `PHRASES` gives no good words."""


def describe(some: Sequence[Setting], everywhere: Sequence[Setting]) -> str:
    """`weights bf16 or fp8, batch 1 to 64 (tried 1, 8, 64; next tried: 256) | weights fp32`: blocks of settings that
    together are exactly these.

    A block names only the factors that tell its settings apart from the others.
    """
    blocks = _blocks(some, everywhere)
    more = f" | and {len(blocks) - MAX_LISTED} more" if len(blocks) > MAX_LISTED else ""
    return " | ".join(blocks[:MAX_LISTED]) + more


def _values(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """The values of each factor: numbers in ascending order, others in the order in which they appear."""
    factors = dict.fromkeys(name for setting in settings for name in setting)
    values = {f: list(dict.fromkeys(s[f] for s in settings if f in s)) for f in factors}
    return {f: sorted(v, key=float) if all(map(_is_number, v)) else v for f, v in values.items()}


def phrase(factor: str, values: Sequence[str], tried: Sequence[str] = ()) -> str:
    """`batch 1 to 256 (tried 1, 64, 256; next tried: 512)`, `a context of 128 tokens`, `weights fp8, int8 or int4`.

    Neighbours among three or more numbers that were tried are a range. It is followed by the numbers that were tried
    beside it, so that a reader knows between which the condition ends.
    """
    said = [_grouped(value) for value in values]
    words, beside = " or ".join(filter(None, (", ".join(said[:-1]), said[-1]))), ""
    if _is_range(values, tried):
        first, last = tried.index(values[0]), tried.index(values[-1])
        around = [_grouped(tried[i]) for i in (first - 1, last + 1) if 0 <= i < len(tried)]
        notes = [f"tried {', '.join(said)}"] if len(values) > 2 else []
        notes += [f"next tried: {', '.join(around)}"] if around else []
        words = said[0] if len(values) == 1 else f"{said[0]} to {said[-1]}"
        beside = f" ({'; '.join(notes)})" if notes else ""
    if factor == "parts" and words[-1].isdigit():
        words += " parts"
    said_alone = WORDS.get((factor, values[0])) if len(values) == 1 else None
    return (said_alone or PHRASES.get(factor, f"{factor} {{}}").format(words)) + beside


def _grouped(value: str) -> str:
    """A number with commas between thousands; other values as they are."""
    return f"{float(value):,.10g}" if _is_number(value) else value


def _is_range(values: Sequence[str], tried: Sequence[str]) -> bool:
    """Whether the values are neighbours among three or more numbers that were tried."""
    if len(tried) < 3 or not all(map(_is_number, tried)):
        return False
    return tried.index(values[-1]) - tried.index(values[0]) == len(values) - 1


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _distinguishing(some: Sequence[Setting], everywhere: Sequence[Setting]) -> dict[str, list[str]] | None:
    """Factors and values that select exactly these settings. None if they do not form one block."""
    chosen, every = _values(some), _values(everywhere)
    factors = {f: chosen[f] for f in chosen if len(chosen[f]) < len(every[f])}
    block = [s for s in everywhere if all(s.get(f) in values for f, values in factors.items())]
    return factors if len(block) == len(some) else None


def _blocks(some: Sequence[Setting], everywhere: Sequence[Setting]) -> list[str]:
    """One description if the settings form a block. Else one for each part, split by the factor with fewest parts."""
    factors = _distinguishing(some, everywhere)
    if factors is not None:
        tried = _values(everywhere)
        return [", ".join(phrase(factor, values, tried[factor]) for factor, values in factors.items())]
    splits = {f: list(dict.fromkeys(s.get(f) for s in everywhere)) for f in _values(everywhere)}
    splits = {f: values for f, values in splits.items() if len(values) > 1}
    shared = {f: values for f, values in splits.items() if None not in values}
    return min((_split(some, everywhere, f, values) for f, values in (shared or splits).items()), key=len)


def _split(
    some: Sequence[Setting], everywhere: Sequence[Setting], factor: str, values: Sequence[str | None]
) -> list[str]:
    blocks = []
    for value in values:
        mine = [s for s in some if s.get(factor) == value]
        if mine:
            head = "" if value is None else phrase(factor, [value])
            within = _blocks(mine, [s for s in everywhere if s.get(factor) == value])
            blocks += [", ".join(filter(None, (head, block))) for block in within]
    return blocks
