"""The constants of expected times, fitted on declared rows; and how wrong they are on all others.

For each operation, stored type and generation of parts, the rows of one part and one engine are fitted (`ENGINE`,
`expected.FITTED_ON`). Everything else is out of sample: other engines, other parts of the generation, shapes outside
`declared`. The fit takes the least mean of |log(measured / expected)|, by a simplex search that starts at fixed
numbers, so it gives the same constants again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.judge.published.expectation import groups, parts, shape
from bench.judge.published.search import simplex
from bench.judge.published.table import Array, Table
from bench.judge.published.work import work
from bench.predict import expected

ENGINE = {
    ("ffn_gemv", "bf16"): "sglang",
    ("ffn_gemv", "fp8"): "sglang",
    ("ffn_gemv", "fp8_block"): "sglang",
    ("ffn_gemv", "nvfp4"): "vllm",
    ("ffn_gemv", "int8"): "trtllm",
    ("ffn_gemv", "int4"): "trtllm",
    ("attention_decode", "bf16"): "vllm",
    ("attention_decode", "fp8"): "vllm",
    ("mla_decode", "bf16"): "trtllm",
    ("mla_decode", "fp8"): "trtllm",
    ("moe_ffn", "bf16"): "vllm",
    ("moe_ffn", "fp8"): "trtllm",
    ("moe_ffn", "fp8_block"): "sglang",
    ("moe_ffn", "nvfp4"): "vllm",
    ("moe_ffn", "int4"): "sglang",
    ("moe_ffn", "mxfp4"): "vllm",
    ("gated_delta_net", "fp32"): "vllm",
    ("kda", "fp32"): "sglang",
}
"""Whose rows are fitted, by operation and stored type."""

FREE = {
    "ffn_gemv": {"start": 5e-6, "lone": 3e-9, "step": 1e-9, "read": 0.85},
    "attention_decode": {"start": 9e-6, "combine": 2e-6, "unit": 3e-6, "step": 0.4e-6, "read": 0.9},
    "mla_decode": {"start": 14e-6, "unit": 5e-6, "step": 0.1e-6, "read": 0.9, "math": 0.8},
    "moe_ffn": {"start": 20e-6, "unit": 1e-7, "step": 5e-9, "read": 0.8},
    "gated_delta_net": {"start": 4e-6, "unit": 1e-7, "read": 0.85},
    "kda": {"start": 4e-6, "unit": 1e-7, "read": 0.85},
}
"""The constants that an operation has, and where the search starts."""

FIXED = {"products": {"kept": 0.1, "l2": 4.0}, "ada": {"kept": 0.9, "l2": 6.0}}
"""Constants that are not fitted. Published products show almost no warm L2: they seem to rotate their weights. An L40S
has an L2 of 96 MB, and its memory is slow beside it."""
LARGEST_READ, LARGEST_MATH = 0.94, 0.75
"""No kernel reads more than the best read that was published for an H200 (TileOPs#1993: 0.938 of the datasheet), or
multiplies faster than large products do under a power limit: about three quarters of the datasheet's peak."""
AT_MOST = 2500
"""Rows of one fit: more are drawn from with a fixed seed."""


def fit(table: Table) -> dict[str, Any]:
    """The constants of all operations, as `expected.json` stores them."""
    stored = {}
    for op, kind, gen, index in groups(table):
        software = ENGINE.get((op, kind))
        if software is None:
            continue
        rows = table.take(index)
        mine = declared(rows, op, expected.FITTED_ON[gen], software)
        if mine.sum() >= 40:
            stored[f"{op} {kind} {gen}"] = _entry(op, rows, mine, gen, software)
    return stored


def declared(rows: Table, op: str, part: str, software: str) -> Array:
    """The rows that may be fitted: one part, one engine, and for some operations a range of shapes."""
    if part not in rows.names["part"] or software not in rows.names["software"]:
        return np.zeros(len(rows), dtype=bool)
    mine = (rows["part"] == rows.code("part", part)) & (rows["software"] == rows.code("software", software))
    return mine & _in_range(rows, op)


def _in_range(rows: Table, op: str) -> Array:
    size = work(rows).bytes
    if op == "attention_decode":
        plain = (rows["window"] == 0) & (rows["H_q"] <= 16 * rows["H_kv"]) & np.isin(rows["D"], (64, 128, 256))
        return plain & (size > 1e6)
    if op == "ffn_gemv":
        return (rows["B"] <= 128) & (size > 4e6)
    if op == "moe_ffn":
        return (rows["balanced"] > 0) & (rows["gated"] > 0) & (rows["B"] <= 128)
    return size > 1e6


def _entry(op: str, rows: Table, mine: Array, gen: str, software: str) -> dict[str, Any]:
    chosen = np.flatnonzero(mine)
    if len(chosen) > AT_MOST:
        chosen = np.random.default_rng(0).choice(chosen, AT_MOST, replace=False)
    fitted = rows.take(chosen)
    kernels, part, seconds = shape(op, fitted, work(fitted)), parts(fitted), fitted["seconds"]
    assert kernels is not None
    names, fixed = list(FREE[op]), FIXED.get("products" if op == "ffn_gemv" else gen, {})

    def error(logs: Array) -> float:
        values = dict(zip(names, np.exp(logs), strict=True))
        beyond = max(0.0, np.log(values["read"] / LARGEST_READ), np.log(values.get("math", 0) / LARGEST_MATH + 1e-9))
        found = expected.total(expected.terms(kernels, expected.Constants(**values, **fixed), part, warm=True))
        return float(np.mean(np.abs(np.log(seconds / found)))) + 10 * beyond

    logs = simplex(error, np.log([FREE[op][name] for name in names]))
    constants = {name: float(f"{value:.3g}") for name, value in zip(names, np.exp(logs), strict=True)} | fixed
    whole = shape(op, rows, work(rows))
    assert whole is not None
    ratio = rows["seconds"] / expected.total(
        expected.terms(whole, expected.Constants(**constants), parts(rows), warm=True)
    )
    rests = f"{len(chosen)} rows of {software} on {expected.FITTED_ON[gen]} (aiconfigurator-core)"
    return constants | {
        "rests_on": rests,
        "rows": len(chosen),
        "spread": _spread(rows, ratio, ~mine & _in_range(rows, op)),
    }


def _spread(rows: Table, ratio: Array, outside: Array) -> dict[str, list[float]]:
    """10th percentile, median and 90th of measured over expected by size class; over all rows where none is outside."""
    classes = np.searchsorted(expected.SIZES, work(rows).bytes, side="right")
    result = {}
    for code, name in enumerate(expected.CLASSES):
        which = (classes == code) & outside
        which = which if which.sum() >= 20 else classes == code
        if which.any():
            result[name] = [round(float(value), 3) for value in np.percentile(ratio[which], (10, 50, 90))]
    return result
