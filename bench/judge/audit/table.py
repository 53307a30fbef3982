"""Somebody's file -> a table whose columns are the roles of `columns.py`, numbers in SI."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.errors import BadRequest
from bench.judge.audit import columns
from bench.judge.audit.columns import RATE, TIME, UNITS, Column

TEXT = ("dtype", "kv_dtype", "op", "part", "routing")
"""Roles whose values are words."""

FORMATS = "CSV, JSON, JSON Lines and parquet"

SETTING = r"(?:^|[\s,;])([A-Za-z_]\w*)=([^\s,;]+)"
"""`M=1 N=6144 weights=fp8` in one column."""


OTHER_METRIC = "other metric"
"""A column of a table in long form that marks the rows whose metric is neither a time nor a rate."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """`rows` has a column for each role that was found, and the file's row numbers, from 1, as its index."""

    rows: pd.DataFrame
    columns: dict[str, Column]
    unit_known: bool
    """Whether the unit of the times is written in the file or given."""
    spare: tuple[str, ...] = ()
    """Further columns of times or rates."""
    notes: tuple[str, ...] = ()
    """How numbers were read that can be read in two ways."""


def load(path: Path, mapping: Sequence[str] = ()) -> Table:
    """Raises `BadRequest` for a file that cannot be read, is empty or damaged, or has no columns that fit."""
    raw = widened(read(path))
    names = [str(name) for name in raw.columns]
    found = columns.find(names) | columns.given(mapping, names)
    if not found.keys() & {"time", "rate", "flop_rate"}:
        raise BadRequest(
            f"{path} has no column of times or rates; it has {', '.join(names)}; name one with --map, "
            "as in --map time=COLUMN:us"
        )
    spare = columns.spare(names, found)
    for role in ("rate", "flop_rate"):
        if role in found and found[role].scale is None:
            if not found.keys() & {"time", "rate", "flop_rate"} - {role}:
                raise BadRequest(
                    f"{path}: the rate {found[role].source} has no unit: give it with --map, as in --map "
                    f"{role}={found[role].source}:{'gb/s' if role == 'rate' else 'tflop/s'}"
                )
            spare.append(found.pop(role).source)
    if "dtype" not in found and (said := type_in(found)):
        found["dtype"] = Column(role="dtype", source=said, scale=1.0, constant=True)
    rows = pd.DataFrame(index=pd.RangeIndex(1, len(raw) + 1, name="row"))
    notes = []
    for role, column in found.items():
        values = pd.Series(column.source, index=rows.index) if column.constant else raw[column.source]
        values = pd.Series(values.to_numpy(), index=rows.index)
        for other in column.others:
            values = values.where(values.notna(), pd.Series(raw[other].to_numpy(), index=rows.index))
        if role in TEXT:
            rows[role] = values.astype(object).where(values.notna(), "").astype(str)
        else:
            scale = column.scale if column.scale is not None else 1.0
            numbers, note = as_numbers(values)
            rows[role] = numbers * scale
            notes += [f"{column.source}: {note}"] if note else []
    if OTHER_METRIC in raw:
        rows[OTHER_METRIC] = raw[OTHER_METRIC].to_numpy()
    unit_known = "time" not in found or found["time"].scale is not None
    return Table(rows=rows, columns=found, unit_known=unit_known, spare=tuple(spare), notes=tuple(notes))


def as_numbers(values: pd.Series) -> tuple[pd.Series, str]:
    """Numbers, NaN where a text is none, and how commas in them were read; empty where there are none.

    A comma is taken for a separator of thousands if all numbers that have one have three digits behind each.
    """
    found = pd.to_numeric(values, errors="coerce").astype(float)
    texts = values[found.isna() & values.notna()].astype(str).str.strip()
    commas = texts[texts.str.fullmatch(r"[+-]?\d+(,\d+)+(\.\d+)?(e[+-]?\d+)?", case=False)]
    if commas.empty:
        return found, ""
    grouped = commas.str.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?").all()
    read = pd.to_numeric(commas.str.replace(",", "" if grouped else "."), errors="coerce")
    return found.fillna(read), f"its commas are read as {'thousands' if grouped else 'decimals'}"


def type_in(found: Mapping[str, Column]) -> str:
    """The element type in the name of the times' or rates' column, as in `torch-bf16 (TFLOP/s)`; empty for none."""
    names = [columns.plain(found[role].source) for role in ("time", "rate", "flop_rate") if role in found]
    said = [
        match.group() for name in names if (match := re.search(r"nvfp4|mxfp4|bf16|fp16|fp8(_block)?|int8|int4", name))
    ]
    return said[0] if said else ""


def read(path: Path) -> pd.DataFrame:
    """The file as it is, by what it contains rather than by its name."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from None
    if not content.strip():
        raise BadRequest(f"{path} is empty")
    try:
        raw = parsed(content)
    except ImportError as error:
        raise BadRequest(f"{path} is a parquet file, and {error.name or 'pyarrow'} is not installed") from None
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadRequest(f"{path} is damaged or none of {FORMATS}: {said}") from None
    if raw.empty:
        raise BadRequest(f"{path} has no rows")
    return raw


def parsed(content: bytes) -> pd.DataFrame:
    if content[:4] == b"PAR1":
        return pd.read_parquet(io.BytesIO(content))
    text = decoded(content).strip()
    if text[0] in "[{":
        try:
            return of_objects(json.loads(text))
        except json.JSONDecodeError as error:
            lines = [line for line in text.splitlines() if line.strip()]
            if len(lines) < 2 or not is_json(lines[0]):
                raise error
            return of_objects([json.loads(line) for line in lines])
    lines = text.splitlines()
    while len(lines) > 1 and lines[0].startswith(("#", "sep=")):  # a comment, or what Excel writes for itself
        del lines[0]
    separator = max(",;\t|", key=lines[0].count)
    with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
        try:
            return pd.read_csv(
                io.StringIO("\n".join(lines)),
                sep=separator,
                decimal="," if separator == ";" else ".",
                skipinitialspace=True,
                on_bad_lines="error",
                index_col=False,  # or a separator at the end of each line would move all values by a column
            )
        except pd.errors.ParserWarning:
            raise ValueError("a row has more values than there are columns") from None


def decoded(content: bytes) -> str:
    """A text in UTF-8, in UTF-16 with its mark, or, as older programs write it, in Latin-1."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    if b"\0" in content[:4096]:
        raise ValueError("it holds binary data")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def is_json(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def of_objects(found: Any) -> pd.DataFrame:
    """A list of objects, an object of lists, or an object that holds one such list beside fields of the whole file."""
    if isinstance(found, dict):
        lists = {name: each for name, each in found.items() if isinstance(each, list) and each}
        tables = {name: each for name, each in lists.items() if all(isinstance(row, dict) for row in each)}
        if tables:
            _, rows = max(tables.items(), key=lambda item: len(item[1]))
            table = pd.json_normalize(rows, sep="_")
            shared = {n: v for n, v in found.items() if isinstance(v, str | int | float) and n not in table}
            return table.assign(**shared)
        if lists and len({len(each) for each in lists.values()}) == 1:
            return pd.DataFrame(lists)
        if found and not lists:
            return pd.json_normalize([found], sep="_")
        raise ValueError("its JSON holds no list of rows")
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError("its JSON is no list of objects")
    return pd.json_normalize(found, sep="_")


def widened(raw: pd.DataFrame) -> pd.DataFrame:
    """A table in long form (`metric`, `value`) with a column for each metric, and one with settings such as
    `M=1 N=6144` in a text with a column for each setting. Other tables stay as they are."""
    raw = raw.rename(columns=str)
    if {"metric", "value"} <= set(raw.columns):
        metric = raw["metric"].astype(str).map(columns.plain)
        units = {"time": TIME, "rate": RATE, "flop_rate": columns.FLOP_RATE}
        known = {name: unit for unit, scales in units.items() for name in scales}
        kinds = metric.map(known)
        for kind, name in (("time", "time_s"), ("rate", "rate_mb_s"), ("flop_rate", "performance_flop_s")):
            if (kinds == kind).any():
                scale = metric.map(UNITS[kind]) / (1e6 if kind == "rate" else 1.0)
                raw[name] = (pd.to_numeric(raw["value"], errors="coerce") * scale).where(kinds == kind)
        raw[OTHER_METRIC] = kinds.isna()
        raw = raw.drop(columns=["metric", "value"])
    for name in [n for n in raw.columns if raw[n].dtype == object or isinstance(raw[n].dtype, pd.StringDtype)]:
        texts = raw[name].astype(str)
        if np.mean(texts.str.contains(r"(?:^|[\s,;])[A-Za-z_]\w*=[^\s,;]", regex=True)) < 0.5:
            continue
        settings = texts.str.extractall(SETTING).reset_index(level="match", drop=True)
        settings = settings.set_index(0, append=True)[1]
        wide = settings[~settings.index.duplicated()].unstack()
        raw = raw.drop(columns=name).join(wide[[c for c in wide.columns if c not in raw.columns]])
    return raw
