"""How far each share of a fleet is from the others, which ones are outliers, and what explains them. Pure; no torch.

A share's time of a case is divided by the median of the other shares' times of that case. The median of these ratios
over the cases of a kind of work is the share's ratio. It is an outlier if it is slower than a margin allows, and its
whole interval is slower. The margin is the largest of a threshold, four times the spread of the fleet, and what A/A
pairs of the runs could not resolve.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.stats import Interval
from bench.units import percent, tick

THRESHOLD_GPU = 0.03
THRESHOLD_HOST = 0.15
"""A GPU that is 3% slower than its neighbours is worth a ticket. Cores that share memory with others vary more."""

SPREADS = 4.0
"""So many robust standard deviations (1.4826 times the median absolute deviation) of the fleet are ordinary."""

FEW = 4
"""With fewer shares the spread of the fleet says nothing."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One share of a fleet: where it is, and its summary (`bench.judge.fleet.summary`)."""

    node: str
    share: str
    host: str
    slot: str
    serial: str
    summary: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`gpu5 of node-3`."""
        return f"{self.share} of {self.host or self.node}"

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.summary.get("facts") or {}


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One share in one kind of work. `ratio` is its time over the others' median time."""

    member: Member
    kind: str
    ratio: Interval
    cases: int
    margin: float

    @property
    def slower(self) -> float:
        """By how much less it does in the same time: 0.11 says that it is 11% slower. Negative: faster."""
        return 1 - 1 / self.ratio.median

    @property
    def is_outlier(self) -> bool:
        return self.ratio.median > 1 + self.margin and self.ratio.low > 1 + min(self.margin, THRESHOLD_GPU)


def deviations(members: Sequence[Member], threshold: float | None = None) -> dict[str, list[Deviation]]:
    """By kind of work, the deviation of every share that has a case in common with another share."""
    found: dict[str, list[Deviation]] = {}
    kinds = dict.fromkeys(kind for member in members for kind in member.summary["times"])
    for kind in kinds:
        having = [member for member in members if kind in member.summary["times"]]
        cases = Counter(case for member in having for case in member.summary["times"][kind])
        shared = [case for case, count in cases.items() if count > 1]
        if not shared:
            continue
        absent = (math.nan, math.nan, math.nan)
        times = np.array([[m.summary["times"][kind].get(case, absent) for case in shared] for m in having], dtype=float)
        ratios = times / of_the_others(times[:, :, 1])[:, :, None]
        some = ~np.isnan(ratios[:, :, 1]).all(axis=1)
        having, ratios = [m for m, has in zip(having, some, strict=True) if has], ratios[some]
        middle = np.nanmedian(ratios, axis=1)
        least = threshold if threshold is not None else default_threshold(having)
        spread = robust_spread(middle[:, 1]) if len(having) >= FEW else 0.0
        apart = [member.summary.get("resolution", {}).get(kind, 0.0) for member in having]
        # beside many others, only the share's own resolution counts
        unresolved = [max(apart) if len(having) < FEW else own for own in apart]
        found[kind] = [
            Deviation(
                member=member,
                kind=kind,
                ratio=Interval(low=float(low), median=float(median), high=float(high)),
                cases=int((~np.isnan(row[:, 1])).sum()),
                margin=max(least, SPREADS * spread, own),
            )
            for member, (low, median, high), row, own in zip(having, middle, ratios, unresolved, strict=True)
        ]
    return found


def of_the_others(times: np.ndarray) -> np.ndarray:
    """For each share and case, the median of the other shares' times. `times` is (shares, cases); nan: no time.

    From 16 shares on, one share moves the median of all so little that this median stands for that of the others.
    """
    count = len(times)
    if count > 16:
        return np.broadcast_to(np.nanmedian(times, axis=0), times.shape)
    found = np.full_like(times, np.nan)
    for i in range(count):
        others = np.delete(times, i, axis=0)
        known = ~np.isnan(others).all(axis=0)
        found[i, known] = np.nanmedian(others[:, known], axis=0)
    return found


def robust_spread(values: np.ndarray) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def default_threshold(members: Sequence[Member]) -> float:
    return THRESHOLD_GPU if all(member.summary.get("on_gpu") for member in members) else THRESHOLD_HOST


# ---- what explains a deviation


def peculiarities(members: Sequence[Member]) -> dict[tuple[str, str], list[str]]:
    """By (node, share): what its board says that differs from the other boards, or is a fault in itself."""
    usual = {name: usual_value([m.facts.get(name) for m in members]) for name in NUMBERS}
    return {(m.node, m.share): [*differing(m, usual), *faults(m)] for m in members}


NUMBERS: dict[str, tuple[str, str, float]] = {
    "memory_clock_hz": ("memory clock", "Hz", 0.01),
    "sm_clock_hz": ("SM clock", "Hz", 0.02),
    "power_cap_w": ("power cap", "W", 0.01),
    "power_w": ("power", "W", 0.15),
    "temperature_c": ("temperature", "°C", 0.15),
    "pcie_generation": ("PCIe generation", "", 0.01),
    "pcie_width": ("PCIe lanes", "", 0.01),
    "nvlinks": ("NVLinks", "", 0.01),
    "memory_bytes": ("memory", "B", 0.01),
}
"""Facts that are compared: their name, their unit, and by which part of the usual value they must differ."""


def usual_value(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.median(known)) if known else None


def differing(member: Member, usual: Mapping[str, float | None]) -> list[str]:
    said = []
    for name, (title, unit, part) in NUMBERS.items():
        value, common = member.facts.get(name), usual[name]
        if value is None or not common or abs(value / common - 1) <= part:
            continue
        said.append(f"{title} {tick(float(value), unit)} where the fleet has {tick(common, unit)}")
    return said


def faults(member: Member) -> list[str]:
    """What is a fault whatever the others have."""
    facts, said = member.facts, []
    for name, title in (("pcie_generation", "PCIe generation"), ("pcie_width", "PCIe lanes")):
        now, most = facts.get(name), facts.get(f"{name}_max")
        if now and most and now < most:
            said.append(f"{title} {now} of {most}")
    if facts.get("throttled_share"):
        reasons = ", ".join(facts.get("clock_reasons") or ()) or "no reason told"
        said.append(f"throttled in {percent(facts['throttled_share'])} of the cases ({reasons})")
    if facts.get("power_capped_share"):
        said.append(f"held by its power cap in {percent(facts['power_capped_share'])} of the cases")
    for name in ("corrected", "uncorrected"):
        if count := facts.get(f"ecc_{name}"):
            said.append(f"{count} {name} ECC error{'s' if count > 1 else ''}")
    for name, title in (("pcie_replays", "PCIe replay"), ("nvlink_errors", "NVLink error")):
        if count := facts.get(name):
            said.append(f"{count} {title}{'s' if count > 1 else ''}")
    if facts.get("ecc") is False:
        said.append("ECC is off")
    if facts.get("mig"):
        said.append("MIG is on")
    if wrong := member.summary.get("wrong"):
        said.append(f"{wrong} record{'s' if wrong > 1 else ''} wrong or failed ({member.summary.get('wrong_example')})")
    return said
