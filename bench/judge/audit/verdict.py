"""The audit of one table: the share of the roof of each row, why some are impossible, a verdict on the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.devices import DEVICES, DeviceSpec, find, identify
from bench.errors import BadRequest
from bench.judge.audit import reasons
from bench.judge.audit.columns import described, plain
from bench.judge.audit.reasons import GIB, MARGIN, PIPE_MARGIN, REASONS
from bench.judge.audit.table import OTHER_METRIC, Table, load
from bench.judge.audit.work import MAKERS, OPS, PREFILL, operations, types
from bench.units import brief, percent

SHOWN = 20
"""Rows that are printed. JSON holds all."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """`rows` has op, part, bytes, flops, seconds, memory and compute share, share, bound, impossible and reason."""

    path: Path
    columns: dict[str, str]
    rows: pd.DataFrame
    unusable: pd.Series
    """The reason why a row could not be judged, by its number."""
    notes: tuple[str, ...]
    verdict: str
    """`sound`, or the reason that explains most impossible rows."""

    @property
    def impossible(self) -> pd.DataFrame:
        return self.rows[self.rows["impossible"]]

    @property
    def damaged(self) -> str:
        """One line on rows whose time or rate is no positive number; empty where there are none."""
        bad = self.unusable[self.unusable.str.startswith("its ")]
        if bad.empty:
            return ""
        text = ", ".join(f"{count:,} because {reason}" for reason, count in bad.value_counts().items())
        return f"{self.path}: {len(bad):,} rows were left out: {text}; the first is row {bad.index[0]}"

    @property
    def exit_code(self) -> int:
        """2: some rows are damaged; 1: some are impossible, or the whole table is suspect; 0: sound."""
        return 2 if self.damaged else 0 if self.verdict == "sound" else 1

    def as_dict(self) -> dict[str, Any]:
        found = self.impossible
        listed = self.rows.reset_index()
        listed = listed.drop(columns=["head_dim", "stated_rate", "by_rate", "pipe", "claimed"]).astype(object)
        return {
            "file": str(self.path),
            "verdict": self.verdict,
            "said": self.headline,
            "exit_code": self.exit_code,
            "columns": self.columns,
            "judged": len(self.rows),
            "impossible": len(found),
            "reasons": {str(name): int(count) for name, count in found["reason"].value_counts().items()},
            "meaning": {name: REASONS[name] for name in found["reason"].unique()},
            "share": [dict(zip(SUMMARY, line, strict=True)) for line in self.summary()],
            "unusable": {str(reason): int(count) for reason, count in self.unusable.value_counts().items()},
            "notes": list(self.notes),
            "rows": listed.where(listed.notna(), None).to_dict("records"),
        }

    @property
    def headline(self) -> str:
        found = self.impossible
        if found.empty and self.verdict != "sound":
            return f"NOT SOUND: {self.verdict}; none of {len(self.rows):,} rows is faster than its part allows"
        if found.empty:
            return f"SOUND: none of {len(self.rows):,} rows is faster than its part allows"
        said = ", ".join(f"{name} ({count:,})" for name, count in found["reason"].value_counts().items())
        return f"NOT SOUND: {len(found):,} of {len(self.rows):,} rows are faster than their part allows: {said}"

    def summary(self) -> list[list[Any]]:
        """Per part, operation: rows, median, 90th percentile and best share of the roof, impossible rows."""
        lines = []
        for (part, op), rows in self.rows.groupby(["part", "op"], sort=True):
            median, ninety, best = (float(rows["share"].quantile(q)) for q in (0.5, 0.9, 1.0))
            lines.append([part, op, len(rows), median, ninety, best, int(rows["impossible"].sum())])
        return lines

    def lines(self) -> list[str]:
        named = ", ".join(f"{role}: {column}" for role, column in self.columns.items())
        lines = [self.headline, *self.notes, f"columns: {named}"]
        for reason, count in self.unusable.value_counts().items():
            lines.append(f"{count:,} rows were not judged: {reason}")
        for part, op, count, median, ninety, best, impossible in self.summary():
            lines.append(
                f"{part} {op}: {count:,} rows reach {percent(median)} of the roof in the median, 90th percentile "
                f"{percent(ninety)}, best {percent(best)}; {impossible:,} impossible"
            )
        lines += [f"{name}: {REASONS[name]}" for name in self.impossible["reason"].unique()]
        return lines

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and cells: the impossible rows, the worst first, or all rows of a short table."""
        chosen = self.impossible.sort_values("share", ascending=False)
        if len(self.rows) <= SHOWN:
            chosen = self.rows
        cells = [
            [
                str(number),
                row.part,
                row.op,
                "" if row.op == "rate" else brief(row.bytes / 1e6),
                "" if row.op == "rate" else f"{row.seconds * 1e6:,.4g}",
                f"{row.share:.3f}",
                row.bound,
                row.reason or "",
            ]
            for number, row in zip(chosen.index[:SHOWN], chosen.head(SHOWN).itertuples(), strict=True)
        ]
        return ["row", "part", "operation", "MB", "µs", "share", "bound", "why it is impossible"], cells


SUMMARY = ("part", "op", "rows", "median", "p90", "best", "impossible")


def audit(path: Path, *, part: str | None = None, mapping: Sequence[str] = ()) -> Audit:
    """Hold every row against the roof of its part: `part`, a key of `list devices`, or the one that the table names.

    Raises `BadRequest` for an unknown part, a file that cannot be read, and a table in which no row can be judged.
    """
    asked = find(part) if part else None
    if asked and asked.memory_bandwidth is None:
        raise BadRequest(f"the memory bandwidth of {asked.name} is not published: nothing can be held against it")
    table = load(path, mapping)
    rows = prepared(table)
    unusable = faults(rows)
    named = parts(rows)
    if asked is None:
        unknown = ~named.isin(DEVICES) & unusable.eq("")
        if unknown.all() or (unknown | unusable.ne("")).all():
            seen = ", ".join(sorted(rows["part"].unique())[:3]) if "part" in rows else ""
            lack = f"names no known part ({seen})" if seen else "names no part"
            if unknown.any():
                raise BadRequest(f"{path} {lack}: give it with --part, one of `decodebench list devices`")
        unusable = unusable.mask(unknown, "the part is not known")
    worked, unusable = measured(rows, unusable)
    if worked.empty:
        reason = unusable.value_counts().index[0]
        raise BadRequest(f"{path}: no row can be judged: {reason}")
    worked, note = timed(worked, table, asked, named)
    judged, notes = [], [*table.notes, *([note] if note else [])]
    if table.spare:
        notes.append(f"not judged: {', '.join(table.spare)}; one at a time with --map")
    for key, mine in worked.groupby(held_against(named[worked.index], asked)):
        spec = DEVICES[str(key)]
        own = named[mine.index].unique()
        other = DEVICES.get(own[0]) if len(own) == 1 else None
        found, said = judge(mine, spec, other)
        judged.append(found)
        notes += said
    result = pd.concat(judged).sort_index()
    counts = result["reason"][result["impossible"]].value_counts()
    verdict = str(counts.index[0]) if len(counts) else "sound"
    return Audit(
        path=path,
        columns=described(table.columns),
        rows=result,
        unusable=unusable[unusable != ""],
        notes=tuple(notes),
        verdict=first_of(notes, verdict),
    )


def first_of(notes: Sequence[str], verdict: str) -> str:
    """The suspicion on the whole table, if there is one, goes before the reason that most rows have."""
    suspected = [
        note.split(":")[0] for note in notes if note.split(":")[0] in (*REASONS, "microseconds for milliseconds")
    ]
    return suspected[0] if suspected else verdict


def prepared(table: Table) -> pd.DataFrame:
    """The rows, with the batch as rows of a product, and the context from input and step where no column has it."""
    rows = table.rows.copy()
    if "m" not in rows and "batch" in rows:
        rows["m"] = rows["batch"]
    if "context" not in rows and "input" in rows:
        rows["context"] = rows["input"] + rows.get("step", 0)
    return rows


def parts(rows: pd.DataFrame) -> pd.Series:
    """The key of the part that each row names; empty for none."""
    if "part" not in rows:
        return pd.Series("", index=rows.index)
    known = {text: part_key(text) for text in rows["part"].unique()}
    return rows["part"].map(known)


def held_against(named: pd.Series, asked: DeviceSpec | None) -> pd.Series:
    return pd.Series(asked.key, index=named.index) if asked else named


ALIASES = {"h100": "h100-sxm", "h800": "h100-sxm", "a100": "a100-80", "h100_80gb_hbm3": "h100-sxm", "gh200": "gh200-96"}


def part_key(text: str) -> str:
    """`NVIDIA H100 80GB HBM3`, `H200`, `h200-sxm`, `RTX 5090` -> the key of the part, or empty."""
    if spec := identify(text):
        return spec.key
    name = plain(text).removeprefix("nvidia_").removeprefix("geforce_").removeprefix("amd_").removeprefix("instinct_")
    tries = (name.replace("_", "-"), name.removesuffix("_sxm").removesuffix("_sxm5").replace("_", "-"))
    known = next((key for key in tries if key in DEVICES), "")
    known = known or max((key for key in DEVICES if tries[0].startswith(f"{key}-")), key=len, default="")
    return known or ALIASES.get(name.removesuffix("_sxm").removesuffix("_sxm5"), "")


def faults(rows: pd.DataFrame) -> pd.Series:
    """Why a row cannot be judged, empty where it can."""
    unusable = pd.Series("", index=rows.index)
    timed = [role for role in ("time", "rate", "flop_rate") if role in rows]
    unusable = unusable.mask(rows[timed].isna().all(axis=1), "its time is missing or no number")
    for role in timed:
        given = rows[role].notna()
        unusable = unusable.mask(given & ~np.isfinite(rows[role]), f"its {role.replace('_', ' ')} is not finite")
        unusable = unusable.mask(given & (rows[role] <= 0), f"its {role.replace('_', ' ')} is not above 0")
    if OTHER_METRIC in rows:
        unusable = unusable.mask(rows[OTHER_METRIC], "the metric is neither a time nor a rate")
    for role in rows.columns.intersection(sorted({role for roles in OPS.values() for role in roles})):
        wrong = rows[role].notna() & ~((rows[role] >= 1) & (rows[role] < 2**50))
        unusable = unusable.mask(unusable.eq("") & wrong, f"the shape has {role} below 1, or one that is too large")
        broken = rows[role].notna() & (rows[role] % 1 != 0)
        unusable = unusable.mask(unusable.eq("") & broken, f"the shape has {role} that is no whole number")
    if {"topk", "experts"} <= set(rows.columns):
        unusable = unusable.mask(unusable.eq("") & (rows["topk"] > rows["experts"]), "topk is more than the experts")
    if "op" in rows:
        prefill = rows["op"].map(plain).str.contains(PREFILL, regex=True)
        unusable = unusable.mask(unusable.eq("") & prefill, "prefill is not audited")
    if "dtype" in rows:
        unknown = types(rows["dtype"])["format"].eq("")
        unusable = unusable.mask(unusable.eq("") & unknown, "the element type is not known")
    return unusable


def measured(rows: pd.DataFrame, unusable: pd.Series) -> tuple[pd.DataFrame, pd.Series]:
    """Bytes and FLOPs of every row that can be judged; the others' reasons, with those that no case allows."""
    ops = operations(rows)
    unusable = unusable.mask(unusable.eq("") & ops.eq(""), "no operation has these columns; it needs " + needed())
    found = []
    for op, mine in rows[unusable.eq("")].groupby(ops):
        if op == "rate":
            work = pd.DataFrame({"bytes": np.nan, "flops": np.nan, "reason": "", "pipe": ""}, index=mine.index)
        else:
            work = MAKERS[str(op)](mine)
        found.append(work.assign(op=op))
    if not found:
        return pd.DataFrame(), unusable
    work = pd.concat(found)
    refused = work["reason"][work["reason"] != ""]
    unusable.loc[refused.index] = refused
    worked = work.drop(index=refused.index).drop(columns="reason")
    for role, name in (
        ("head_dim", "head_dim"),
        ("rate", "stated_rate"),
        ("time", "seconds"),
        ("flop_rate", "flop_rate"),
        ("claimed", "claimed"),
    ):
        worked[name] = rows[role].reindex(worked.index) if role in rows else np.nan
    return worked.sort_index(), unusable


def needed() -> str:
    return "; or ".join(f"{', '.join(roles)} ({op})" for op, roles in OPS.items())


def timed(worked: pd.DataFrame, table: Table, asked: DeviceSpec | None, named: pd.Series) -> tuple[pd.DataFrame, str]:
    """Seconds of every row: its time, or its work over its rate. A time without a unit gets the likeliest one."""
    by_time = worked["seconds"].notna()
    by_flops = worked["flops"] / worked.pop("flop_rate")
    by_bytes = worked["bytes"] / worked["stated_rate"]
    bare = worked["op"] == "rate"
    worked["by_rate"] = ~by_time & by_flops.isna()
    note = ""
    if by_time.any() and not table.unit_known:
        keys = held_against(named[worked.index], asked)
        rate = keys.map({key: reasons.bandwidth(DEVICES[key]) for key in keys.unique()})
        at_roof = (worked["bytes"] / rate)[by_time]
        unit, scale = likeliest(at_roof, worked["seconds"][by_time])
        worked["seconds"] *= scale
        note = f"the times have no unit; {unit} fits the shapes best (give it with --map time=COLUMN:UNIT)"
    worked["seconds"] = worked["seconds"].fillna(by_flops).fillna(by_bytes)
    # a bare rate: one second of it
    worked.loc[bare, "bytes"] = worked["stated_rate"][bare]
    worked.loc[bare, "seconds"] = 1.0
    return worked, note


def likeliest(at_roof: pd.Series, times: pd.Series) -> tuple[str, float]:
    """The unit in which the best rows are nearest to their roof. Units are 1,000 apart, so this is seldom in doubt."""
    best = float((at_roof / times).quantile(0.98))
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    return min(units.items(), key=lambda unit: abs(np.log(best / unit[1] / 0.8)))


def judge(rows: pd.DataFrame, spec: DeviceSpec, named: DeviceSpec | None) -> tuple[pd.DataFrame, list[str]]:
    """The rows of one part with their shares and reasons, and what is to be said of all of them."""
    reached = reasons.shares(rows, spec)
    suspicion = reasons.suspect(rows, reached, spec, named)
    impossible = (reached["memory"] > MARGIN) | (reached["compute"] > PIPE_MARGIN)
    reason = reasons.assign(rows, reached, spec, suspicion, impossible)
    ratio = reasons.stated_rates(rows)
    overstated = ~impossible & (ratio > 1.01) & (rows["stated_rate"] / reasons.bandwidth(spec) > MARGIN)
    reason = reason.mask(overstated, np.where(abs(ratio - GIB) < 0.01, "GB for GiB", "rate is not bytes over time"))
    impossible |= overstated
    share = reached.max(axis=1)
    bound = np.where(reached["compute"].fillna(0) > reached["memory"], "compute", "memory")
    notes = [f"{suspicion.reason}: {suspicion.text}"] if suspicion and impossible.any() else []
    notes += reasons.claims_of_the_table(rows, reached, spec) + reasons.too_slow(rows, reached, spec)
    return (
        rows.assign(
            part=spec.key,
            memory=reached["memory"],
            compute=reached["compute"],
            share=share,
            bound=bound,
            impossible=impossible,
            reason=reason,
        ),
        notes,
    )
