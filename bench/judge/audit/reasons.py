"""Why a row is faster than its part allows: what would have to be true, tried on the numbers.

Bytes cannot arrive faster than the datasheet's bandwidth. If a row says so, they came from the L2 (`warm`), there were
fewer of them (`half the bytes`), another memory delivered them (`wrong part`), or a unit is wrong. Rows that move more
than four times the L2 are cold whatever the benchmark did. So they decide what is wrong with a whole table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.devices import DEVICES, DeviceSpec

MARGIN = 1.02
"""A row above this share of the memory's roof is impossible: datasheets round, B200's two figures differ by 4%."""

PIPE_MARGIN = 1.1
"""The same for arithmetic: consumer cards clock up to a tenth above the boost clock that their peaks are stated for."""

COLD = 4
"""From this many times the L2 on, a repeated buffer is read from the memory (README of the published tables)."""

GIB = 2.0**30 / 1e9
TYPICAL_BEST = 0.93
"""The best rows of published tables on H100, H200 and B200 reach 93 to 95% of the datasheet's bandwidth."""

LARGEST_L2 = 126 * 2.0**20
"""Taken where the L2 of a part is not published."""

REASONS = {
    "milliseconds for microseconds": "the times fit a unit that is 1,000 times larger",
    "seconds for microseconds": "the times fit a unit that is a million times larger",
    "wrong part": "the rows fit another part's roof",
    "warm": "the data fits the L2, or enough of it: it was not read from the memory",
    "half the bytes": "half of the bytes would fit: K without V, or one byte a number where two are counted",
    "GB for GiB": "the rate fits if it is GiB/s counted as GB/s (1.074 times)",
    "sparse peak": "above the dense peak, within the sparse one",
    "fewer experts": "fewer experts were read than independent routing hits, or experts without a gate (two matrices)",
    "narrower V": "V of 128 beside K of 192 would fit, as DeepSeek's heads have before absorption",
    "cache or another part": "a rate above the roof, and no size is given: a cache, or another part",
    "rate is not bytes over time": "the table's rate does not follow from its own shape and time",
    "unexplained": "none of the known reasons fits",
}
"""The likely reasons, and what each means."""


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """What is wrong with a whole table, by its rows that are cold for sure."""

    reason: str
    text: str
    part: DeviceSpec | None = None


def l2_bytes(spec: DeviceSpec) -> float:
    return spec.on_chip.value if spec.on_chip else LARGEST_L2


def bandwidth(spec: DeviceSpec) -> float:
    return spec.memory_bandwidth.value if spec.memory_bandwidth else float("nan")


def shares(rows: pd.DataFrame, spec: DeviceSpec) -> pd.DataFrame:
    """What each row reaches of the memory's bandwidth and of its pipe's peak; NaN where one is not known."""
    peaks = rows["pipe"].map({pipe: peak.value for pipe, peak in spec.peaks.items()}).astype(float)
    return pd.DataFrame(
        {
            "memory": rows["bytes"] / rows["seconds"] / bandwidth(spec),
            "compute": rows["flops"] / rows["seconds"] / peaks,
        },
        index=rows.index,
    )


def cold(rows: pd.DataFrame, spec: DeviceSpec) -> pd.Series:
    """Rows of which no cache can hold what counts. A bare rate has no size, and is taken at its word."""
    return (rows["bytes"] > COLD * l2_bytes(spec)) | (rows["op"] == "rate")


def unit_fault(rows: pd.DataFrame, reached: pd.DataFrame) -> Suspicion | None:
    """Times in a larger unit than they are said to be: all of them are about 1,000 times too good.

    Even a table of tiny kernels has its best rows within a factor of 30 of the roof, warm ones within 10 above it.
    """
    best = float(reached.max(axis=1).quantile(0.95))
    for factor, reason in ((1e3, "milliseconds for microseconds"), (1e6, "seconds for microseconds")):
        if 30 < best / factor * 1e3 <= 3e3:
            text = (
                f"the best rows are {best:,.0f} times faster than the part; divided by {factor:,.0f} they are possible"
            )
            return Suspicion(reason=reason, text=text)
    return None


def best_of(share: pd.Series) -> float:
    """The best share, without the topmost percent of a large table."""
    return float(share.quantile(0.99)) if len(share) > 300 else float(share.max())


def fitting_parts(rate: float, spec: DeviceSpec) -> list[tuple[float, DeviceSpec]]:
    """Parts of the same vendor whose bandwidth allows `rate`, the likeliest first: (share there, part)."""
    found = [
        (rate / bandwidth(other), other)
        for other in DEVICES.values()
        if other.vendor == spec.vendor and other.key != spec.key and bandwidth(other) > bandwidth(spec)
    ]
    return sorted(
        (each for each in found if 0.6 <= each[0] <= MARGIN), key=lambda each: (distance(each[0]), each[1].key)
    )


def distance(share: float) -> float:
    """How far the best row is from what the best rows of sound tables reach; more than they reach is less likely."""
    return share - TYPICAL_BEST if share > TYPICAL_BEST else (TYPICAL_BEST - share) / 3


def suspect(rows: pd.DataFrame, reached: pd.DataFrame, spec: DeviceSpec, named: DeviceSpec | None) -> Suspicion | None:
    """What is wrong with the table of one part, if its cold rows say so. `named` is the part that the table names."""
    if fault := unit_fault(rows, reached):
        return fault
    if named and named.key != spec.key:
        there = f"{named.name} ({bandwidth(named) / 1e12:.3g} TB/s)"
        text = f"the table names {there}, it is held against {spec.name} ({bandwidth(spec) / 1e12:.3g} TB/s)"
        return Suspicion(reason="wrong part", text=text, part=named)
    asked = cold(rows, spec) & ~rows["op"].eq("moe_ffn")
    share = reached["memory"][asked]
    above = share > MARGIN
    if not above.any():
        return None
    best = best_of(share[above]) if above.mean() < 0.02 else best_of(share)
    best = max(best, float(share[above].median()))
    attention = rows["op"][asked][above].isin(("attention_decode", "mla_decode")).mean()
    if (rows["op"][asked][above] == "rate").all() and best <= GIB * 1.005:
        return Suspicion(
            reason="GB for GiB", text=f"the best rate is {best:.3f} of the roof, {best / GIB:.3f} in GiB/s"
        )
    parts = [] if named else fitting_parts(best * bandwidth(spec), spec)
    half = attention > 0.9 and 1.1 <= best <= 2 * MARGIN
    if half and not (parts and best < 1.45 and distance(parts[0][0]) < distance(best / 2)):
        rival = f"; a part that reads {best * bandwidth(spec) / 1e12:.3g} TB/s would fit too" if parts else ""
        text = (
            f"{above.sum():,} of {len(share):,} rows that no L2 can hold read up to {best:.2f} times what the memory "
            f"delivers; with half the bytes it is {best / 2:.2f}{rival}"
        )
        return Suspicion(reason="half the bytes", text=text)
    if parts:
        likely = ", ".join(f"{other.key} ({reach:.0%})" for reach, other in parts[:3])
        text = (
            f"{above.sum():,} of {len(share):,} rows that no L2 can hold are faster than {spec.name}; their best fits "
            f"{likely} of the datasheet's bandwidth"
        )
        return Suspicion(reason="wrong part", text=text, part=parts[0][1])
    return None


def assign(
    rows: pd.DataFrame, reached: pd.DataFrame, spec: DeviceSpec, suspicion: Suspicion | None, impossible: pd.Series
) -> pd.Series:
    """The likely reason of each impossible row, empty for the others."""
    memory, compute = reached["memory"], reached["compute"]
    from_memory = memory > MARGIN
    out_of_l2 = rows["bytes"] - l2_bytes(spec)
    warm = (rows["bytes"] <= COLD * l2_bytes(spec)) & (out_of_l2 / rows["seconds"] <= MARGIN * bandwidth(spec))
    attention = rows["op"].isin(("attention_decode", "mla_decode"))
    half = memory <= 2 * MARGIN
    fault = suspicion.reason if suspicion else ""
    # the last that applies stands
    tried = [
        ("unexplained", impossible),
        ("sparse peak", ~from_memory & (compute > PIPE_MARGIN) & (compute <= 2 * PIPE_MARGIN)),
        ("half the bytes", from_memory & half & ~rows["op"].isin(("stream", "rate", "moe_ffn")) & (memory > 1.1)),
        ("narrower V", from_memory & attention & (rows["head_dim"] == 192) & (memory <= 1.2 * MARGIN)),
        ("cache or another part", from_memory & (rows["op"] == "rate")),
        ("GB for GiB", from_memory & rows["by_rate"] & (memory <= GIB * 1.005)),
        ("fewer experts", from_memory & (rows["op"] == "moe_ffn")),
        ("warm", from_memory & warm),
        ("half the bytes", from_memory & attention & half & (fault == "half the bytes")),
        ("GB for GiB", from_memory & rows["by_rate"] & (fault == "GB for GiB")),
    ]
    if suspicion and suspicion.part:
        there = shares(rows, suspicion.part)
        tried.append(("wrong part", (there["memory"] <= MARGIN) & ~(there["compute"] > PIPE_MARGIN)))
    if fault.endswith("for microseconds"):
        tried.append((fault, impossible))
    reason = pd.Series("", index=rows.index)
    for name, where in tried:
        reason = reason.mask(impossible & where, name)
    return reason


def stated_rates(rows: pd.DataFrame) -> pd.Series:
    """The table's own rate over that which follows from its shape and time; NaN where it lacks one of them."""
    own = rows["bytes"] / rows["seconds"]
    return (rows["stated_rate"] / own).where(~rows["by_rate"]).replace([np.inf, -np.inf], np.nan)


def steady(ratio: pd.Series) -> float | None:
    """The value of ratios that are nearly all the same; None where they are not."""
    known = ratio.replace([np.inf, -np.inf], np.nan).dropna()
    if known.empty:
        return None
    low, middle, high = known.quantile([0.1, 0.5, 0.9])
    return float(middle) if high - low <= 0.02 * middle else None


def claims_of_the_table(rows: pd.DataFrame, reached: pd.DataFrame, spec: DeviceSpec) -> list[str]:
    """What the table's own rates and shares of the roof say, where they differ from ours by one factor throughout."""
    found = []
    rate = steady(stated_rates(rows))
    for factor, text in ((GIB, "1.074"), (1 / GIB, "0.931")):
        if rate is not None and abs(rate - factor) < 0.01:
            found.append(f"GB for GiB: its GB/s are {text} times what its shapes and times give")
    claimed = rows["claimed"] / (100 if rows["claimed"].median() > 1.5 else 1)
    of_memory, of_pipe = steady(claimed / reached["memory"]), steady(claimed / reached["compute"])
    if of_memory is not None and abs(of_memory - 1) > 0.03:
        roof = bandwidth(spec) / of_memory
        fits = [o.key for o in DEVICES.values() if o.key != spec.key and abs(bandwidth(o) / roof - 1) < 0.02]
        if abs(of_memory - GIB) < 0.01 or abs(of_memory - 1 / GIB) < 0.01:
            found.append(f"GB for GiB: its shares of the roof are {of_memory:.3f} times ours")
        elif fits:
            text = f"its shares are of {roof / 1e12:.3g} TB/s ({', '.join(fits)}), and {spec.name} has"
            found.append(f"wrong part: {text} {bandwidth(spec) / 1e12:.3g} TB/s")
    if of_pipe is not None and abs(of_pipe - 0.5) < 0.02:
        found.append(
            "sparse peak: its shares are half of those of the dense peak: they are held against the sparse one"
        )
    return found


SLOW = 3e-3


def too_slow(rows: pd.DataFrame, reached: pd.DataFrame, spec: DeviceSpec) -> list[str]:
    """No large row comes near the roof: their times may be in a smaller unit than the table says."""
    large = rows["bytes"] > COLD * l2_bytes(spec)
    best = float(reached[large].max(axis=1).max()) if large.any() else 1.0
    if best >= SLOW:
        return []
    return [
        f"microseconds for milliseconds: the best of {large.sum():,} large rows reaches {best:.2%} of the roof: the "
        "times may be in a unit that is 1,000 times smaller"
    ]
