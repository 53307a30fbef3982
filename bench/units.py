"""SI numbers as people read them. GB is 1e9 bytes. Everywhere else numbers are seconds, bytes and FLOP."""

from __future__ import annotations

import math
from collections.abc import Callable

from bench.stats import Interval

LARGE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
"""Prefixes of times. Nobody measures in kiloseconds."""


def decimals(value: float) -> int:
    """How many decimals give three significant digits."""
    return max(0, 2 - math.floor(math.log10(float(f"{abs(value):.3g}")))) if value else 0


def digits(value: float) -> str:
    """A measured number with three digits and no exponent: `3.05`, `81.0`, `642`, `0.0312`."""
    return f"{value:.{decimals(value)}f}"


def brief(value: float) -> str:
    """Three digits without trailing zeros, and at most six decimals: `2.5`, `81`, `5,498`."""
    text = f"{value:,.{min(6, decimals(value))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def si(value: float, unit: str, write: Callable[[float], str] = digits) -> str:
    """`3.05 TB/s`, `989 TFLOP/s`, `134 MB`, `41.8 ms`."""
    prefixes = SMALL if unit == "s" else LARGE
    fitting = (p for p in prefixes if abs(value) >= 0.9995 * p[0])
    scale, prefix = next(fitting, prefixes[-1]) if value else (1.0, "")
    return f"{write(value / scale)} {prefix}{unit}".strip()


def tick(value: float, unit: str) -> str:
    """A number on an axis or in a sentence, without trailing zeros: `20 µs`, `1 MB`."""
    return si(value, unit, brief)


def duration(seconds: float) -> str:
    """`41.8 ms`, `81.2 µs`, `640 ns`."""
    return si(seconds, "s")


WIDE = 0.3
"""The relative half-width above which an interval is rarely symmetric."""


def measured(interval: Interval) -> str:
    """A median with the half-width of its 95% interval, `81.2 µs ±0.4%`; beyond `WIDE`, with both ends."""
    if interval.high == float("inf"):
        return f"{duration(interval.median)} (one sample)"
    if interval.relative_halfwidth > WIDE:
        return f"{duration(interval.median)} [{duration(interval.low)}, {duration(interval.high)}]"
    return f"{duration(interval.median)} ±{percent(interval.relative_halfwidth, 1)}"


def percent(fraction: float, decimals: int = 0) -> str:
    return f"{100 * fraction:.{decimals}f}%"


def signed(fraction: float) -> str:
    """An error with its sign: `+3.1%`. From tenfold on it has no decimal: `+5,432%`."""
    return f"{100 * fraction:+z,.{0 if abs(fraction) >= 10 else 1}f}%"


def ratio(interval: Interval, decimals: int = 3) -> str:
    """`1.342 [1.337, 1.348]`."""
    if interval.high == float("inf"):
        return f"{interval.median:z.2f} (one sample)"
    low, median, high = (f"{value:z.{decimals}f}" for value in (interval.low, interval.median, interval.high))
    return f"{median} [{low}, {high}]"


def difference(interval: Interval) -> str:
    """A ratio as a difference: `+0.3% [-0.1%, +0.7%]`."""
    if interval.high == float("inf"):
        return f"{signed(interval.median - 1)} (one sample)"
    return f"{signed(interval.median - 1)} [{signed(interval.low - 1)}, {signed(interval.high - 1)}]"
