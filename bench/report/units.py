"""SI numbers as people read them. GB is 1e9 bytes; the code behind keeps seconds, bytes and FLOP."""

from __future__ import annotations

import math

from bench.stats import Interval

PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def digits(value: float, significant: int = 3) -> str:
    """`3.05`, `81.2`, `642`, `0.0312`: never an exponent."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, significant - 1 - math.floor(math.log10(abs(value))))}f}"


def si(value: float, unit: str) -> str:
    """`3.05 TB/s`, `989 TFLOP/s`, `134 MB`."""
    for scale, prefix in PREFIXES:
        if abs(value) >= scale:
            return f"{digits(value / scale)} {prefix}{unit}"
    return f"{digits(value)} {unit}"


def tick(value: float, unit: str) -> str:
    """A number on an axis, no more digits than it needs: `20 µs`, `1 MB`."""
    for scale, prefix in (*PREFIXES, (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")):
        if abs(value) >= 0.999 * scale:
            return f"{value / scale:.3g} {prefix}{unit}".strip()
    return f"{value:.3g} {unit}".strip()


def duration(seconds: float) -> str:
    """`41.8 ms`, `81.2 µs`, `640 ns`."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(seconds) >= scale:
            return f"{digits(seconds / scale)} {unit}"
    return f"{digits(seconds * 1e9)} ns"


def measured(interval: Interval) -> str:
    """A median with the half-width of its 95% interval: `81.2 µs ±0.4%`."""
    if interval.high == float("inf"):
        return f"{duration(interval.median)} (one sample)"
    return f"{duration(interval.median)} ±{percent(interval.relative_halfwidth, 1)}"


def percent(fraction: float, decimals: int = 0) -> str:
    return f"{100 * fraction:.{decimals}f}%"


def signed(fraction: float) -> str:
    """An error with its sign: `+3.1%`."""
    return f"{100 * fraction:+.1f}%"


def ratio(interval: Interval) -> str:
    """`1.342 [1.337, 1.348]`."""
    if interval.high == float("inf"):
        return f"{interval.median:.2f} (one sample)"
    return f"{interval.median:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def difference(interval: Interval) -> str:
    """The same as a difference: `+0.3% [-0.1%, +0.7%]`."""
    if interval.high == float("inf"):
        return f"{signed(interval.median - 1)} (one sample)"
    return f"{signed(interval.median - 1)} [{signed(interval.low - 1)}, {signed(interval.high - 1)}]"
