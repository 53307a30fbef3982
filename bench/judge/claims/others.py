"""How published tables answer the questions that several claims ask, where no run of ours does.

Only rows that can be true and that were cold count: no faster than the datasheet allows, and more than four times the
L2, because the tables were measured by repeating one buffer. Of several softwares that measured a case, the fastest
counts, as of several implementations in a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bench.devices import find
from bench.judge import published
from bench.judge.claims.base import Comparison, Published, PublishedRows, Unmeasured
from bench.judge.claims.common import WEIGHT_KINDS, bandwidth, predicted
from bench.judge.published.table import Table
from bench.judge.published.work import IMPOSSIBLE
from kernels.models import ModelShape, active_parameters

FIELDS = ("B", "H_q", "H_kv", "D", "T", "window", "N", "K", "E", "k", "H", "F", "tp", "gated", "stored", "activations")
"""The columns that make up a case, but for `routing`."""

KINDS = {
    ("bf16", "bf16"): WEIGHT_KINDS["bf16"],
    ("fp8", "fp8"): WEIGHT_KINDS["fp8"],
    ("fp8_block", "fp8"): WEIGHT_KINDS["fp8"],
    ("int8", "int8"): WEIGHT_KINDS["fp8"],
    ("int8", "bf16"): WEIGHT_KINDS["w8a16"],
    ("int4", "bf16"): WEIGHT_KINDS["int4"],
}
"""How weights are stored and multiplied, in the words of predictions. A roofline does not tell int8 from fp8."""


class Others:
    """Published rows as a frame with `bytes`, `flops`, `floor` and `memory_s` beside the table's columns."""

    def __init__(self, kernels: Table | None = None, servers: Table | None = None) -> None:
        self._kernels, self._servers = kernels, servers
        self._found: dict[tuple[str, bool], pd.DataFrame] = {}
        self._products: dict[str, pd.DataFrame] = {}

    @cached_property
    def _frame(self) -> pd.DataFrame:
        table = self._kernels if self._kernels is not None else published.load()
        floor = published.work(table)
        more = {"bytes": floor.bytes, "flops": floor.flops, "floor": floor.seconds, "memory_s": floor.memory_s}
        frame = table.frame().assign(**more)
        return frame[(frame["seconds"] > 0) & (frame["floor"] <= IMPOSSIBLE * frame["seconds"])]

    def op(self, name: str, *, cold: bool = True) -> pd.DataFrame:
        """The fastest row of every case and part of an operation; with `cold`, only rows that no L2 can have held."""
        if (name, cold) not in self._found:
            rows = self._frame[self._frame["op"] == name]
            rows = rows[rows["cache"] == "cold"] if cold else rows
            # heads of 192 have values of 128 in some engines (DeepSeek's before absorption): the bytes are not known
            rows = rows[rows["D"] != 192] if name == "attention_decode" else rows
            self._found[name, cold] = fastest(rows, "part", "routing", *FIELDS)
        return self._found[name, cold]

    def every(self, name: str) -> pd.DataFrame:
        """All cold rows of an operation, of every software."""
        return self._frame[(self._frame["op"] == name) & (self._frame["cache"] == "cold")]

    @cached_property
    def servers(self) -> pd.DataFrame:
        """Whole servers: `seconds` per token of `B` requests at `T` tokens."""
        return (self._servers if self._servers is not None else published.load("servers")).frame()

    def products(self, part: str, *, kind: str = "", **fields: Any) -> pd.DataFrame:
        """Products on a part, with the words for their weights under `kind`, filtered by it and by fields."""
        if part not in self._products:
            rows = self.op("ffn_gemv")
            rows = rows[rows["part"] == part]
            pairs = zip(rows["stored"].astype(str), rows["activations"].astype(str), strict=True)
            rows = rows.assign(kind=[KINDS.get(pair, "") for pair in pairs])
            self._products[part] = rows[rows["kind"] != ""]
        rows = self._products[part]
        return where(rows[rows["kind"] == kind] if kind else rows, **fields)


COMMITTED = Others()
"""The committed tables, read when a claim first asks for them."""


def where(rows: pd.DataFrame, **fields: Any) -> pd.DataFrame:
    """Rows whose fields have these values; a tuple means any of them."""
    for name, value in fields.items():
        rows = rows[rows[name].isin(value if isinstance(value, tuple) else (value,))]
    return rows


def fastest(rows: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """The fastest row of each group of rows that agree in these columns."""
    return rows.sort_values("seconds", kind="stable").drop_duplicates(list(keys), keep="first").sort_index()


def some(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    """The rows. Raises `Unmeasured` if there are none."""
    if rows.empty:
        raise Unmeasured(f"no cold row of {what}")
    return rows


def sources(*frames: pd.DataFrame) -> tuple[PublishedRows, ...]:
    """What these rows are, counted by part, software, version and table."""
    columns = ["part", "software", "version", "source"]
    counts: Counter[tuple[str, ...]] = Counter()
    for frame in frames:
        known = frame if "source" in frame else frame.assign(source="silicon_sample.csv")
        for key, count in known.groupby(columns, observed=True, sort=False).size().items():
            counts[tuple(map(str, key))] += int(count)
    return tuple(
        PublishedRows(part=part, software=software, version=version, source=source, count=count)
        for (part, software, version, source), count in sorted(counts.items())
    )


def by_others(published: Published, value: float, how: str, *used: pd.DataFrame, **setting: object) -> Comparison:
    """A value from published rows, and what they are."""
    return replace(predicted(published, float(value), how, **setting), rows=sources(*used))


def paired(a: pd.DataFrame, b: pd.DataFrame, *but: str) -> pd.DataFrame:
    """Rows of `a` and of `b` of one case, apart from these columns, as `seconds_a`, `seconds_b` and so on."""
    keys = [name for name in ("part", "routing", *FIELDS) if name not in but]
    a, b = fastest(a, *keys), fastest(b, *keys)
    return a.merge(b, on=keys, suffixes=("_a", "_b"), validate="one_to_one")


def side(pairs: pd.DataFrame, letter: str) -> pd.DataFrame:
    """One side of pairs as rows again."""
    names = ("software", "version", "source", "part")
    columns = {name: pairs[f"{name}_{letter}"] if f"{name}_{letter}" in pairs else pairs[name] for name in names}
    return pd.DataFrame(columns)


def ratio(
    published: Published, pairs: pd.DataFrame, how: str, *, upside_down: bool = False, **setting: Any
) -> Comparison:
    """The median of time b over time a over all pairs; `upside_down` for a over b."""
    times = pairs["seconds_b"] / pairs["seconds_a"]
    value = float(np.median(1 / times if upside_down else times))
    return by_others(published, value, how, side(pairs, "a"), side(pairs, "b"), **setting)


def bracket(published: Published, rows: pd.DataFrame, **setting: object) -> list[Comparison]:
    """Both ends of what the intensity of the fastest row can be, or nothing if they leave the number open.

    Between FLOP / (seconds x datasheet bandwidth), since no more bytes can have come, and FLOP / compulsory bytes.
    """
    reach = rows["memory_s"] / rows["seconds"]
    best = rows.loc[[reach.idxmax()]]
    high = float((best["flops"] / best["bytes"]).iloc[0])
    ends = (high * float(reach.max()), high)
    inside = [published.covers(end) for end in ends]
    outside = not any(inside) and (ends[1] < published.low or ends[0] > published.high)
    if not (all(inside) or outside):
        return []
    how = "between FLOP / (seconds x datasheet bandwidth) and FLOP / compulsory bytes, the row nearest to its roof"
    return [by_others(published, end, how, best, **setting) for end in ends]


def weights_seconds(others: Others, shape: ModelShape, part: str, batch: int) -> tuple[float, pd.DataFrame]:
    """Seconds to read a model's 16-bit weights for a token: the median published time per weight x its weights."""
    rows = some(others.products(part, kind=WEIGHT_KINDS["bf16"], B=batch), f"a bf16 product at batch {batch} on {part}")
    each = float(np.median(rows["seconds"] / (rows["N"].astype(float) * rows["K"])))
    return each * active_parameters(shape), rows


def cache_seconds(others: Others, shape: ModelShape, part: str, context: int) -> tuple[float, pd.DataFrame]:
    """Seconds of attention in all layers for each cached token in 16 bits, from the largest published case."""
    rows = others.op("attention_decode")
    rows = where(rows, part=part, H_q=shape.heads, H_kv=shape.kv_heads, D=shape.head_dim, T=context, stored="bf16")
    rows = some(rows[rows["window"] == 0], f"attention of {shape.name} at {context} tokens on {part}")
    best = rows.loc[[rows["bytes"].idxmax()]]
    tokens = float((best["B"].astype(float) * best["T"]).iloc[0])
    return shape.layers * float(best["seconds"].iloc[0]) / tokens, best


def roof_share(rows: pd.DataFrame) -> pd.Series:
    """Share of the datasheet's bandwidth."""
    return rows["memory_s"] / rows["seconds"]


def peak_share(rows: pd.DataFrame, part: str, pipe: str = "mma_bf16") -> pd.Series:
    """Share of the datasheet's peak of a pipe."""
    return rows["flops"] / rows["seconds"] / find(part).peaks[pipe].value


def between_batches(rows: pd.DataFrame, *keys: str, low: int, high: int) -> pd.DataFrame:
    """Pairs of rows at batch `low` (a) and `high` (b) that agree in these columns."""
    a, b = (fastest(where(rows, B=batch), *keys) for batch in (low, high))
    return a.merge(b, on=list(keys), suffixes=("_a", "_b"))


def bandwidth_of(part: str) -> float:
    return bandwidth(find(part))


def parts_with(rows: pd.DataFrame, among: Sequence[str]) -> list[str]:
    """Which of these parts have rows."""
    present = set(rows["part"].astype(str))
    return [part for part in among if part in present]
