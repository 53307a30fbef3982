"""All rows of the package -> the committed table, and the constants of expected times that are fitted on it.

The table holds the shapes of our suites' models, and a sample of the rest by size class.

The sample draws cases, not rows, by a hash of the shape. So a case is either there for all parts and engines that
published it, or for none, and two parts can be compared. The same package gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench.judge.published import aiconfigurator, fit, link_fit, server_fit, servers
from bench.judge.published.aiconfigurator import SHAPE
from bench.judge.published.table import FILE, Array, Table, mixed, rounded, save
from bench.judge.published.wheel import Package
from bench.judge.published.work import EXCHANGES, work
from kernels.models import MODELS, projections

SIZES = (1e6, 4e6, 16e6, 64e6, 256e6, 1e9)
"""Bytes at which a size class ends and the next begins."""
QUOTA = 6000
"""Rows of one operation, stored type and size class, about."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ORDER = ("op", "part", "software", "version", "kernel", "stored", "activations", "routing", *SHAPE)
LICENCE = "Apache-2.0, Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES; see NOTICE beside this file"


def distill(package: Package, path: Path = FILE) -> tuple[dict[str, Table], dict[str, Any]]:
    """Write the committed table to `path`; return it and the constants that are fitted on it. Raises `BadRequest`."""
    full = aiconfigurator.read(package)
    kept = full.take(np.flatnonzero(selected(full)))
    order = np.lexsort([kept[name] for name in reversed(ORDER)])
    sources = {
        "package": "aiconfigurator-core",
        "version": package.version,
        "files_sha256": package.files_sha256,
        "licence": LICENCE,
        "rows_that_map": len(full),
        "models": sorted(MODELS),
    }
    kept = kept.take(order)
    columns = {**kept.columns, "seconds": rounded(kept["seconds"])}
    kernels = Table(columns=columns, names=kept.names, sources=sources, left_out=full.left_out)
    constants = {
        "constants": fit.fit(kernels),
        "all_reduces": link_fit.fit(kernels),
        "all_to_alls": link_fit.fit(kernels, "all_to_all"),
        "exchanges": {direction: link_fit.fit(kernels, direction) for direction in EXCHANGES},
    }
    runs = servers.read(package, sources, constants)
    runs = Table(
        **{**vars(runs), "columns": {n: rounded(v) if v.dtype.kind == "f" else v for n, v in runs.columns.items()}}
    )
    tables = {"kernels": kernels, "servers": runs}
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, tables)
    return tables, {**constants, "servers": server_fit.fit(runs)}


def size_class(size: Array) -> Array:
    """The index of each size's class: 0 below `SIZES[0]`."""
    return np.searchsorted(SIZES, size, side="right")


def selected(table: Table) -> Array:
    """A mask: the rows that are committed."""
    size = work(table).bytes
    group = np.stack([table["op"], table["stored"], size_class(size)])
    _, member, counts = np.unique(group, axis=1, return_inverse=True, return_counts=True)
    share = np.minimum(1.0, QUOTA / counts)[member.reshape(-1)]
    return (lot(table) < share) | _of_our_suites(table)


def lot(table: Table) -> Array:
    """A number in [0, 1) for each row that depends on its shape alone."""
    none = np.zeros(len(table), dtype=np.int64)
    return mixed(table.columns.get(name, none) for name in SHAPE).astype(np.float64) / 2.0**64


def _of_our_suites(table: Table) -> Array:
    """Whole layers of the models in `kernels/models` at batches that are powers of two."""
    attending = [m for m in MODELS.values() if m.attention_layers]
    heads = {(m.heads, m.kv_heads, m.head_dim) for m in attending if not m.is_mla}
    weights = {pair for m in attending for pair in projections(m).values()}
    experts = {(m.experts, m.experts_per_token, m.hidden, m.expert_ffn) for m in MODELS.values() if m.is_moe}
    batch = np.isin(table["B"], BATCHES)
    attention = _any(table, ("H_q", "H_kv", "D"), heads) & (table["window"] == 0)
    products = _any(table, ("N", "K"), weights)
    routed = _any(table, ("E", "k", "H", "F"), experts) & (table["tp"] == 1) & (table["balanced"] > 0)
    return batch & (attention | products | routed)


def _any(table: Table, names: tuple[str, ...], wanted: Iterable[tuple[int, ...]]) -> Array:
    found = np.zeros(len(table), dtype=bool)
    for values in wanted:
        found |= np.logical_and.reduce([table[name] == value for name, value in zip(names, values, strict=True)])
    return found
