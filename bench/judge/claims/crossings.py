"""Where a value crosses what was published, between two settings that were tried."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from bench.judge.claims.base import Comparison, Published
from bench.judge.claims.settings import Setting, phrase

AT_THE_END = 0.02
"""A value that reaches the published one this near to the first or last number that was tried does not cross it."""

Place = tuple[str, float]
"""A factor, and its value where the number is crossed."""


def crossings(comparisons: Sequence[Comparison]) -> list[str]:
    """`time per token passes the published number near 2,900 tokens`, for each number that allows it.

    Between two neighbours that were tried, the logarithm of the value is linear in the logarithm of the factor.
    Only predictions count that are no bounds, and that rise or fall all the way along one factor while the others are
    held. Where the other factors differ, the places are a range.
    """
    said = []
    for what in dict.fromkeys(c.published.what for c in comparisons):
        mine = [c for c in comparisons if c.published.what == what and not c.bound and not c.measured]
        places = [place for line in lines(mine) for place in along(*line)]
        factors = {factor for factor, _ in places}
        if len(factors) == 1:
            texts = list(dict.fromkeys(two_digits(at) for _, at in sorted(places, key=lambda place: place[1])))
            where = " and ".join(texts) if len(texts) < 3 else f"{texts[0]} to {texts[-1]}"
            near = phrase(factors.pop(), [where]).removeprefix("on ")
            said.append(f"{what} passes {published_end(mine[0].published)} near {near}")
    return said


def published_end(published: Published) -> str:
    """What a value passes where it crosses what was published."""
    if published.low == published.high:
        return "the published number"
    one = published.low <= 0 or math.isinf(published.high)
    return "the published limit" if one else "an end of the published range"


def two_digits(value: float) -> str:
    """`2,900`, `97`, `1.9`: more digits would say more than an interpolation knows."""
    return f"{float(f'{value:.2g}'):,.10g}"


def lines(comparisons: Iterable[Comparison]) -> Iterable[tuple[str, list[tuple[float, Comparison]]]]:
    """Each factor with three or more numbers, and the comparisons along it at which all other factors are equal."""
    comparisons = list(comparisons)
    for factor in dict.fromkeys(name for c in comparisons for name in c.setting):
        groups: dict[tuple[tuple[str, str], ...], list[tuple[float, Comparison]]] = {}
        for c in comparisons:
            if (at := as_number(c.setting, factor)) is not None:
                rest = tuple(sorted((name, value) for name, value in c.setting.items() if name != factor))
                groups.setdefault(rest, []).append((at, c))
        for group in groups.values():
            if len({at for at, _ in group}) == len(group) >= 3:
                yield factor, sorted(group, key=lambda pair: pair[0])


def as_number(setting: Setting, factor: str) -> float | None:
    try:
        value = float(setting[factor])
    except (KeyError, ValueError):
        return None
    return value if value > 0 else None


def along(factor: str, line: Sequence[tuple[float, Comparison]]) -> list[Place]:
    """Where the values of one line cross the ends of what was published; nothing where they turn round."""
    values = [c.value for _, c in line]
    steps = [b - a for a, b in pairwise(values)]
    if min(values) <= 0 or (min(steps) < 0 < max(steps)):
        return []
    published = line[0][1].published
    found = []
    for end in dict.fromkeys((published.low, published.high)):
        if not 0 < end < math.inf:
            continue
        for (x, a), (y, b) in pairwise(line):
            low, high = sorted((a.value, b.value))
            if low < end <= high:
                share = math.log(end / a.value) / math.log(b.value / a.value)
                found.append((factor, x * (y / x) ** share))
    inner = (line[0][0] * (1 + AT_THE_END), line[-1][0] * (1 - AT_THE_END))
    return [(name, at) for name, at in found if inner[0] < at < inner[1]]
