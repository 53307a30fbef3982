"""Whole servers that others measured: time per output token by model, part, precision and batch.

From `silicon_sample.csv` of aiconfigurator, which takes them from InferenceX's public data. `seconds` is TPOT. `T` is
the prompt and half of the output, the middle of a request's life. `B` are the requests of one decoding worker.
"""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from bench.devices import DEVICES
from bench.errors import BadRequest
from bench.judge.published.aiconfigurator import PARTS
from bench.judge.published.table import Table
from bench.judge.published.wheel import Package

WEIGHTS = {"fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "int4_wo": "int4", "bf16": "bf16"}


def read(package: Package, sources: dict[str, Any]) -> Table:
    """The rows whose part is known. Raises `BadRequest` if the package has none."""
    if "silicon_sample.csv" not in package.names:
        raise BadRequest(f"{package.where} holds no silicon_sample.csv")
    rows = pd.read_csv(io.BytesIO(package.read("silicon_sample.csv")), dtype={"backend_version": str})
    left_out: Counter[str] = Counter()

    def keep(mask: pd.Series[bool], but: str) -> None:
        nonlocal rows
        left_out[but] += int((~mask).sum())
        rows = rows[mask]

    keep(rows.system.map(PARTS).isin(DEVICES), "a part that `bench/devices` does not know")
    keep(rows.silicon_tpot_ms > 0, "no time per token")
    apart = rows["mode"] == "disagg"

    def count(name: str, least: int = 1) -> Any:
        both = rows[f"decode_{name}"].where(apart, rows[name]).fillna(least)
        return np.maximum(both.to_numpy(), least).astype(np.int32)

    stored = rows.gemm_quant_mode.astype(object).fillna(rows.precision).map(WEIGHTS).fillna("bf16")
    experts = rows.moe_quant_mode.astype(object).fillna(rows.precision).map(WEIGHTS).fillna("bf16")
    texts = {
        "model": rows.model_path,
        "part": rows.system.map(PARTS),
        "software": rows.backend,
        "version": rows.backend_version.fillna("not said"),
        "stored": stored,
        "experts": experts,
        "mode": rows["mode"],
    }
    columns: dict[str, Any] = {}
    names: dict[str, tuple[str, ...]] = {}
    for name, values in texts.items():
        found, codes = np.unique(values.to_numpy().astype(str), return_inverse=True)
        columns[name], names[name] = codes.astype(np.int32), tuple(map(str, found))
    columns |= {
        "B": count("batch_size"),
        "T": (rows.isl + rows.osl // 2).to_numpy().astype(np.int32),
        "tp": count("tp_size"),
        "dp": count("attention_dp_size"),
        "ep": count("moe_ep_size"),
        "seconds": rows.silicon_tpot_ms.to_numpy() * 1e-3,
    }
    said = {**sources, "of": "InferenceX's public data, in silicon_sample.csv"}
    return Table(columns=columns, names=names, sources=said, left_out=dict(left_out))
