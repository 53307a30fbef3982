"""Figures from READMEs, issues, documentation and papers: of tokens, kernels, ceilings and collectives."""

from __future__ import annotations

import csv
from functools import cache
from typing import Any

from bench.errors import BadRequest
from bench.judge.published.table import DATA

FILE = DATA / "measurements.csv"
LEVELS = ("token", "kernel", "ceiling", "collective")


@cache
def _read() -> tuple[dict[str, Any], ...]:
    try:
        with FILE.open(encoding="utf-8", newline="") as lines:
            return tuple({**row, "value": float(row["value"])} for row in csv.DictReader(lines))
    except (OSError, ValueError, KeyError) as error:
        raise BadRequest(f"{FILE} holds no figures: {error}") from None


def facts(level: str | None = None, **wanted: str) -> list[dict[str, Any]]:
    """The figures of a level (one of `LEVELS`) whose other fields are as wanted, such as `device="h200"`.

    Fields: id, level, device, software, software_version, model_or_op, shape_or_setting, metric, value, date, source,
    caveat.
    """
    asked = wanted | ({"level": level} if level else {})
    return [row for row in _read() if all(row[name] == value for name, value in asked.items())]


def settings(row: dict[str, Any]) -> dict[str, str]:
    """`batch=1 kv=fp16` of a figure's `shape_or_setting` as a dict; words without a value are left out."""
    pairs = (word.partition("=") for word in row["shape_or_setting"].split())
    return {name: value for name, sign, value in pairs if sign}
