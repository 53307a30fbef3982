"""What is the best time that anyone has published for one of our cases, or for the case nearest to it?

A row counts if its part, operation, stored type and activations are those of the case, and if the datasheet allows its
time. It must be cold, unless it is about the links between GPUs. The row that is nearest by size is taken; if several
rows have this size, the fastest of them. How near a row is:

    distance = sum over the case's sizes (batch, tokens, heads, rows, columns, experts) of |log2(published / ours)|

A row at distance 0 is the same case. Any other is compared by its share of the floor, not by its time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from bench.judge.published.cases import MAPPED, Mapped
from bench.judge.published.table import Array, Table, load
from bench.judge.published.work import IMPOSSIBLE, LINKED, work
from bench.units import duration, percent
from kernels.op import discover

FARTHEST = 2.0
"""Doublings. A row that is farther away says little about a case."""

EXACT = ("D", "window", "k", "E", "ranks")
"""Fields that a row must have in common with the case: another head or another routing is another kernel."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """A published time beside one of our cases."""

    seconds: float
    share: float
    """Its share of its own floor: floor seconds by the part's datasheet over published seconds."""
    distance: float
    """Doublings."""
    differs: str
    """Where the published case differs: `T 4096, B 8`; empty for the same case."""
    software: str
    version: str
    kernel: str
    source: str

    @property
    def exact(self) -> bool:
        return not self.differs

    def over(self, seconds: float, floor_s: float) -> float:
        """Our speed over the published one: of times for the same case, else of shares of the floor."""
        return self.seconds / seconds if self.exact else (floor_s / seconds) / self.share

    @property
    def line(self) -> str:
        where = f"nearest: {self.differs}" if self.differs else "same case"
        return f"{self.software} {self.version} {self.kernel}, {where}"


def best(part: str, op: str, case: Mapping[str, Any]) -> Best | None:
    """The best published time of a case of `op`, given as its fields, on a part. None if no row is near."""
    return _best_of(part, op, tuple(case.items()))


@lru_cache(maxsize=1 << 16)
def _best_of(part: str, op: str, fields: tuple[tuple[str, Any], ...]) -> Best | None:
    case = dict(fields)
    found = [b for name, mapped in MAPPED.items() if mapped.op == op and (b := _best(part, name, mapped, case))]
    return min(found, key=lambda b: (b.distance, b.seconds), default=None)


def _best(part: str, name: str, mapped: Mapped, case: Mapping[str, Any]) -> Best | None:
    if case.get("q_len", 1) != 1 or case.get("prefix") or any(case.get(f) != v for f, v in mapped.fixed.items()):
        return None
    case = mapped.sized(case)
    types = (("stored", mapped.stored), ("activations", mapped.activations))
    named = tuple((column, case.get(field) or case.get("dtype", "")) for column, field in types if field)
    given = [field for field in mapped.columns if field in case]
    exact = tuple((field, case[field]) for field in given if field in EXACT or not case[field])
    table, floor_s, sizes, logs = _alike(part, name, named, exact)
    distance = np.zeros(len(table))
    for field in given:
        if case[field]:
            distance += np.abs(logs[field] - np.log2(case[field]))
    near = np.flatnonzero(distance <= FARTHEST)
    if not near.size:
        return None
    row = near[np.lexsort((table["seconds"][near], np.round(distance[near], 9)))[0]]
    differs = [f"{field} {sizes[field][row]}" for field in given if sizes[field][row] != case[field]]
    if case.get("lengths", "uniform") != "uniform":
        differs.append("equal lengths")
    return Best(
        seconds=float(table["seconds"][row]),
        share=float(floor_s[row] / table["seconds"][row]),
        distance=float(np.round(distance[row], 9)),
        differs=", ".join(differs),
        **{
            column: str(table.names[column][table[column][row]])
            for column in ("software", "version", "kernel", "source")
        },
    )


@lru_cache(maxsize=256)
def _alike(
    part: str, name: str, named: tuple[tuple[str, str], ...], exact: tuple[tuple[str, Any], ...]
) -> tuple[Table, Array, dict[str, Array], dict[str, Array]]:
    """The usable rows of these types and exact sizes, their floors, and their sizes and the logarithms of these, by the
    case's fields."""
    table, floor_s = _usable(part, name)
    columns = MAPPED[name].columns
    sizes = {field: table[column] for field, column in columns.items()}
    if name == "moe_ffn":
        sizes["F"] = sizes["F"] // np.maximum(1, table["tp"])
    keep = np.ones(len(table), dtype=bool)
    for column, text in named:
        keep &= table.text(column) == text
    for field, value in exact:
        keep &= sizes[field] == value
    rows = np.flatnonzero(keep)
    sizes = {field: values[rows] for field, values in sizes.items()}
    logs = {field: np.log2(np.maximum(values, 1)) for field, values in sizes.items()}
    return table.take(rows), floor_s[rows], sizes, logs


@cache
def _usable(part: str, name: str) -> tuple[Table, Array]:
    """The rows of an operation on a part that are cold and can be true, and their floors in seconds."""
    rows = load()
    if part not in rows.names["part"] or name not in rows.names["op"]:
        return rows.take(np.zeros(0, dtype=np.int64)), np.zeros(0)
    # what parts get from each other crosses their links, whatever their caches hold
    rows = rows.where(part=part, op=name, **({} if name in LINKED else {"cache": "cold"}))
    if name == "moe_ffn":
        rows = rows.take(rows["gated"] == 1)
    floor = work(rows).seconds
    possible = floor <= IMPOSSIBLE * rows["seconds"]
    return rows.take(np.flatnonzero(possible)), floor[possible]


def of_suite(part: str, suite: str, ops: Sequence[str] = ()) -> list[dict[str, Any]]:
    """For each case of a suite whose operation others measured, the best published time on a part, or None."""
    measured = {mapped.op for mapped in MAPPED.values()}
    rows = []
    for op in discover().values():
        if op.name in measured and (not ops or op.name in ops):
            for case in op.cases(suite):
                rows.append({"op": op.name, "case": case.id, "part": part, "best": best(part, op.name, case.as_dict())})
    return rows


def table_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells, for people."""
    cells = []
    for row in rows:
        found = row["best"]
        time = [duration(found.seconds), percent(found.share), found.line] if found else ["", "", "nothing near"]
        cells.append([row["op"], row["case"], *time])
    return ["op", "case", "best published", "of its floor", "by"], cells
