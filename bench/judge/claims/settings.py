"""The settings at which values are compared, and some of them told apart from the rest in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

Setting = dict[str, str]
"""What a value was computed or measured at: factor -> value, e.g. `{"weights": "bf16", "batch": "8"}`."""

LISTED = 4
"""Settings listed one by one before the rest is counted."""


def describe(some: Sequence[Setting], everywhere: Sequence[Setting]) -> str:
    """Which of the settings these are: by the factors that tell them apart if they form a block, else in blocks."""
    blocks = _blocks(some, everywhere)
    more = f" | and {len(blocks) - LISTED} more" if len(blocks) > LISTED else ""
    return " | ".join(blocks[:LISTED]) + more


def _values(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """Values of each factor: numbers ascending, others in order of appearance."""
    factors = dict.fromkeys(name for setting in settings for name in setting)
    values = {f: list(dict.fromkeys(s[f] for s in settings if f in s)) for f in factors}
    return {f: sorted(v, key=float) if all(map(_is_number, v)) else v for f, v in values.items()}


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _telling(some: Sequence[Setting], everywhere: Sequence[Setting]) -> dict[str, list[str]] | None:
    """Factors and values that select exactly these settings, None if no such block does."""
    chosen, every = _values(some), _values(everywhere)
    telling = {f: chosen[f] for f in chosen if len(chosen[f]) < len(every[f])}
    block = [s for s in everywhere if all(s.get(f) in values for f, values in telling.items())]
    return telling if len(block) == len(some) else None


def _blocks(some: Sequence[Setting], everywhere: Sequence[Setting]) -> list[str]:
    """One description if they form a block, else those of the parts, split by the factor that makes the fewest."""
    telling = _telling(some, everywhere)
    if telling is not None:
        return [", ".join(f"{factor} {' or '.join(values)}" for factor, values in telling.items())]
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
            head = "" if value is None else f"{factor} {value}"
            within = _blocks(mine, [s for s in everywhere if s.get(factor) == value])
            blocks += [", ".join(filter(None, (head, block))) for block in within]
    return blocks
