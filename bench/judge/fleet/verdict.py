"""A fleet in words and tables: outliers, what is missing, and each share beside the others. Pure; no torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.judge.fleet.deviations import Deviation, Member, deviations, peculiarities
from bench.judge.view import Table
from bench.units import percent, si, signed, tick

BESIDE_ALONE: dict[str, tuple[str, Callable[[float], str]]] = {
    "sm_clock_hz": ("SM clock", lambda value: tick(value, "Hz")),
    "power_w": ("highest power", lambda value: f"{value:.0f} W"),
    "temperature_c": ("highest temperature", lambda value: f"{value:.0f} °C"),
    "throttled_share": ("cases throttled", percent),
    "power_capped_share": ("cases held by the power cap", percent),
}
"""What of a board is held against the same board alone, in the median of boards and kinds: its title and its form."""

SHOWN = 100
"""So many shares have a row of their own; of a larger fleet, those that are farthest from the others."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a fleet came to."""

    members: tuple[Member, ...]
    alone: tuple[Member, ...] = ()
    """The same shares measured one after the other."""
    missing: tuple[str, ...] = ()
    """Shares and nodes that were lost or are not finished, each with its reason."""
    threshold: float | None = None

    @cached_property
    def deviations(self) -> dict[str, list[Deviation]]:
        return deviations(self.members, self.threshold)

    @cached_property
    def peculiarities(self) -> dict[tuple[str, str], list[str]]:
        return peculiarities(self.members)

    @cached_property
    def outliers(self) -> list[Deviation]:
        """The slowest first; of each share the kind of work in which it is the farthest behind comes first."""
        found = [each for kind in self.deviations.values() for each in kind if each.is_outlier]
        return sorted(found, key=lambda d: -d.ratio.median)

    @cached_property
    def by_member(self) -> dict[tuple[str, str], list[Deviation]]:
        found: dict[tuple[str, str], list[Deviation]] = {}
        for each in (d for kind in self.deviations.values() for d in kind):
            found.setdefault((each.member.node, each.member.share), []).append(each)
        return found

    @property
    def faulty(self) -> list[Member]:
        """Shares that gave a wrong result, whatever their speed."""
        return [member for member in self.members if member.summary.get("wrong")]

    @property
    def exit_code(self) -> int:
        """1: an outlier or a wrong result, 3: a share is missing, 0: neither."""
        return 1 if self.outliers or self.faulty else 3 if self.missing else 0

    @property
    def parts(self) -> list[str]:
        return sorted({member.summary["part"] for member in self.members})

    def lines(self) -> list[str]:
        """For a terminal: the fleet, the outliers with their reasons, and what is missing."""
        hosts = len({member.node for member in self.members})
        said = [
            f"{len(self.members)} share{'s' if len(self.members) != 1 else ''} of {hosts} "
            f"machine{'s' if hosts != 1 else ''}: {', '.join(self.parts) or 'nothing was measured'}"
        ]
        if len(self.parts) > 1:
            said.append("the shares are different parts: a deviation may only say that one part is faster than another")
        said += [sentence(group, self.peculiarities) for group in self.grouped_outliers]
        if not self.outliers and len(self.members) > 1:
            said.append("no share is slower than the others")
        said += [
            f"{member.name} gave wrong or no results: {member.summary.get('wrong_example')}" for member in self.faulty
        ]
        said += [f"missing: {each}" for each in self.missing]
        return said + [line for line in self.beside_alone if line]

    @property
    def grouped_outliers(self) -> list[list[Deviation]]:
        """The outliers of each share together."""
        groups: dict[tuple[str, str], list[Deviation]] = {}
        for each in self.outliers:
            groups.setdefault((each.member.node, each.member.share), []).append(each)
        return list(groups.values())

    @cached_property
    def beside_alone(self) -> list[str]:
        """For each kind of work: how much slower it is when all shares are at work at once."""
        alone = {(m.node, m.share): m.summary["times"] for m in self.alone}
        said = []
        for kind in self.deviations:
            ratios = [
                t[1] / alone[key][kind][case][1]
                for m in self.members
                if kind in alone.get(key := (m.node, m.share), {})
                for case, t in m.summary["times"].get(kind, {}).items()
                if case in alone[key][kind]
            ]
            if ratios:
                said.append(
                    f"all at once against one alone, {kind}: {signed(statistics.median(ratios) - 1)} time "
                    f"({len(ratios)} times, {signed(min(ratios) - 1)} to {signed(max(ratios) - 1)})"
                )
        return [*said, *self.boards_beside_alone()]

    def boards_beside_alone(self) -> Iterator[str]:
        """Clocks, power and heat of boards, and how often they were held, in the kinds of work that ran alone, too."""
        alone = {(m.node, m.share): m.summary.get("facts_by_kind") or {} for m in self.alone}
        pairs = [
            (ours, lone)
            for m in self.members
            for kind, ours in (m.summary.get("facts_by_kind") or {}).items()
            if (lone := alone.get((m.node, m.share), {}).get(kind))
        ]
        for name, (title, shown) in BESIDE_ALONE.items():
            both = [(ours[name], lone[name]) for ours, lone in pairs if name in ours and name in lone]
            if both:
                ours, lone = (statistics.median(values) for values in zip(*both, strict=True))
                yield f"all at once against one alone, {title}: {shown(ours)} where it is {shown(lone)} alone"

    def table(self) -> Table:
        """A row for each share: its roof, and its deviation in each kind of work."""
        kinds = list(self.deviations)
        members = sorted(self.members, key=lambda m: -self.farthest(m))[:SHOWN]
        rows = []
        for member in members:
            mine = {d.kind: d for d in self.by_member.get((member.node, member.share), ())}
            roof = member.summary.get("read_roof")
            cells = [deviation_cell(mine.get(kind)) for kind in kinds]
            rows.append((member.name, member.slot, si(roof, "B/s") if roof else "", *cells))
        return Table(headers=("share", "slot", "read roof", *kinds), rows=rows, numeric=tuple(range(2, 3 + len(kinds))))

    def farthest(self, member: Member) -> float:
        mine = self.by_member.get((member.node, member.share), ())
        return max((d.ratio.median / (1 + d.margin) for d in mine), default=0.0)

    def board_table(self) -> Table:
        """A row for each share: clocks, power, temperature, errors and link, and what of it is unusual."""
        rows = []
        for member in sorted(self.members, key=lambda m: -self.farthest(m))[:SHOWN]:
            f = member.facts
            rows.append(
                (
                    member.name,
                    clock(f, "sm_clock_hz"),
                    clock(f, "memory_clock_hz"),
                    f"{f['power_w']:.0f} of {f.get('power_cap_w', 0):.0f} W" if "power_w" in f else "",
                    f"{f['temperature_c']:.0f} °C" if "temperature_c" in f else "",
                    f"{f['pcie_generation']} x{f.get('pcie_width', '?')}" if "pcie_generation" in f else "",
                    str(f.get("nvlinks", "")),
                    ", ".join(f"{f[n]} {n[4:]}" for n in ("ecc_corrected", "ecc_uncorrected") if f.get(n)),
                    "; ".join(self.peculiarities[member.node, member.share]),
                )
            )
        clocks = ("SM clock", "memory clock")
        headers = ("share", *clocks, "power", "hottest", "PCIe", "NVLinks", "ECC errors", "what is unusual")
        return Table(headers=headers, rows=rows)

    def ticket(self) -> Table:
        """What a support ticket needs: an outlier's host, slot and serial number, by how much, and what explains it."""
        rows = []
        for group in self.grouped_outliers:
            member = group[0].member
            slow = ", ".join(f"{d.kind} {percent(d.slower)}" for d in group)
            told = "; ".join(self.peculiarities[member.node, member.share]) or "nothing that the driver tells"
            rows.append((member.host, member.share, member.slot, member.serial or "not told", slow, told))
        return Table(headers=("host", "share", "slot", "serial", "slower by", "what the board says"), rows=rows)

    def as_dict(self) -> dict[str, Any]:
        return {
            "shares": [
                {
                    "node": m.node,
                    "share": m.share,
                    "host": m.host,
                    "slot": m.slot,
                    "serial": m.serial,
                    "part": m.summary["part"],
                    "read_roof": m.summary.get("read_roof"),
                    "facts": dict(m.facts),
                    "unusual": self.peculiarities[m.node, m.share],
                    "deviations": {
                        d.kind: {
                            "ratio": d.ratio.median,
                            "low": d.ratio.low,
                            "high": d.ratio.high,
                            "margin": d.margin,
                            "cases": d.cases,
                            "outlier": d.is_outlier,
                        }
                        for d in self.by_member.get((m.node, m.share), ())
                    },
                }
                for m in self.members
            ],
            "outliers": [sentence(group, self.peculiarities) for group in self.grouped_outliers],
            "missing": list(self.missing),
            "alone": self.beside_alone,
            "exit_code": self.exit_code,
        }


def sentence(group: Sequence[Deviation], told: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """`gpu5 of node-3 is slower than the others: stream read by 11%, ...: memory clock 2.4 GHz where ...`."""
    member = group[0].member
    slow = ", ".join(f"{d.kind} by {percent(d.slower)}" for d in group[:4])
    more = f" and {len(group) - 4} more" if len(group) > 4 else ""
    why = "; ".join(told[member.node, member.share]) or "the driver tells nothing that explains it"
    return f"{member.name} ({member.slot}) is slower than the others: {slow}{more}. {why[0].upper()}{why[1:]}."


def deviation_cell(found: Deviation | None) -> str:
    """The rate beside the others': `-11.0%`, with `!` for an outlier."""
    return "" if found is None else f"{signed(-found.slower)}{' !' if found.is_outlier else ''}"


def clock(facts: Mapping[str, Any], name: str) -> str:
    if name not in facts:
        return ""
    most = facts.get(name.replace("_hz", "_max_hz"))
    return tick(facts[name], "Hz") + (f" of {tick(most, 'Hz')}" if most else "")
