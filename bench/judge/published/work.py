"""The compulsory bytes and FLOPs of published rows, by array: the same formulas as `work(case)` of each operation.

Scales of an 8-bit cache are not counted, because published engines keep one for a whole tensor. Weights have the scales
of their format. Of an attention with a window, only the window is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.devices import find
from bench.judge.published.table import Array, Table
from bench.predict.expected import generation

BYTES = {"fp32": 4, "bf16": 2, "fp8": 1, "int8": 1, "nvfp4": 0.5, "int4": 0.5, "mxfp4": 0.5}
WEIGHTS = {
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp8_block": 1 + 4 / 128**2,
    "int4": 0.5 + 2 / 128,
    "mxfp4": 0.5 + 1 / 32,
    "nvfp4": 0.5 + 1 / 16,
}
"""Bytes of one weight with its scales; a scale of a row or of a tensor is not counted."""

LATENT, ROPE = 512, 64
"""DeepSeek's: elements of the latent and of the rotary key that MLA caches for one token."""
IMPOSSIBLE = 1.02
"""A row above this share of its floor's speed is wrong: datasheets round."""
EXCHANGES = ("dispatch", "combine")
"""All-to-alls of unequal parts: the rows of experts, on their way out and back."""
LINKED = ("all_reduce", "all_to_all", *EXCHANGES)
"""Operations whose bytes cross the links between parts."""
WARM = 4
"""Fewer bytes than this many L2s, read again and again from one buffer, stay partly in it."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Arrays over rows. `seconds` is the larger of bytes / bandwidth and FLOPs / peak by the part's datasheet."""

    bytes: Array
    flops: Array
    memory_s: Array
    compute_s: Array

    @property
    def seconds(self) -> Array:
        return np.maximum(self.memory_s, self.compute_s)


def work(table: Table) -> Floor:
    """The floor of each row."""
    size = np.zeros(len(table))
    flops = np.zeros(len(table))
    for op, formula in FORMULAS.items():
        if op not in table.names["op"]:
            continue
        which = np.flatnonzero(table["op"] == table.code("op", op))
        if which.size:
            rows = {name: values[which].astype(np.float64) for name, values in table.columns.items()}
            rows["stored"] = by_name(table, "stored", BYTES)[which]
            rows["weight"] = by_name(table, "stored", WEIGHTS)[which]
            rows["activations"] = by_name(table, "activations", BYTES)[which]
            size[which], flops[which] = formula(rows)
    bandwidth, peak = rates(table)
    return Floor(bytes=size, flops=flops, memory_s=size / bandwidth, compute_s=flops / peak)


def by_name(table: Table, column: str, values: dict[str, float]) -> Array:
    """A number for each row, by the name in a coded column; 0 for other names."""
    return np.array([values.get(name, 0.0) for name in table.names[column]], dtype=np.float64)[table[column]]


def rates(table: Table) -> tuple[Array, Array]:
    """Bandwidth and peak of each row's part. The activations decide the pipe; collectives go over the link."""
    pipes = {"fp32": "fma_fp32", "fp8": "mma_fp8", "int8": "mma_int8", "nvfp4": "mma_fp4", "mxfp4": "mma_fp4"}
    parts = [find(name) for name in table.names["part"]]
    memory = np.array([p.memory_bandwidth.value if p.memory_bandwidth else np.nan for p in parts])
    link = np.array([p.link_bandwidth.value if p.link_bandwidth else np.nan for p in parts])
    peaks = np.array(
        [
            [
                (part.peaks.get(pipes.get(name, "mma_bf16")) or part.peaks["mma_bf16"]).value
                for name in table.names["activations"]
            ]
            for part in parts
        ]
    )
    bandwidth = memory[table["part"]]
    linked = np.array([name in LINKED for name in table.names["op"]], dtype=bool)[table["op"]]
    bandwidth = np.where(linked, link[table["part"]], bandwidth)
    return bandwidth, peaks[table["part"], table["activations"]]


def generations(table: Table) -> Array:
    """Each row's generation of parts, as text."""
    return np.array([generation(find(name)) for name in table.names["part"]], dtype=object)[table["part"]]


Rows = dict[str, Array]


def _attention(rows: Rows) -> tuple[Array, Array]:
    seen = np.where(rows["window"] > 0, np.minimum(rows["T"], rows["window"]), rows["T"])
    cache = 2 * rows["B"] * rows["H_kv"] * rows["D"] * seen * rows["stored"]
    return cache + 4 * rows["B"] * rows["H_q"] * rows["D"], 4 * rows["B"] * rows["H_q"] * rows["D"] * seen


def _mla(rows: Rows) -> tuple[Array, Array]:
    cache = rows["B"] * rows["T"] * (LATENT + ROPE) * rows["stored"]
    queries = 2 * rows["B"] * rows["H"] * (2 * LATENT + ROPE)
    return cache + queries, 2 * rows["B"] * rows["H"] * rows["T"] * (2 * LATENT + ROPE)


def _product(rows: Rows) -> tuple[Array, Array]:
    weights = rows["N"] * rows["K"] * rows["weight"]
    activations = rows["B"] * (rows["K"] * rows["activations"] + 2 * rows["N"])
    return weights + activations, 2 * rows["B"] * rows["N"] * rows["K"]


def _moe(rows: Rows) -> tuple[Array, Array]:
    """Balanced tokens hit as many experts as they can. How many a power law hits is not published: it is at least k."""
    matrices = np.where(rows["gated"] > 0, 3, 2)
    balanced = np.minimum(rows["E"], rows["B"] * rows["k"])
    hit = np.where(rows["balanced"] > 0, balanced, rows["k"])
    expert = matrices * rows["H"] * rows["F"] / rows["tp"]
    pairs = rows["B"] * rows["k"]
    return hit * expert * rows["weight"] + 4 * rows["B"] * rows["H"], 2 * pairs * expert


def _state(rows: Rows) -> tuple[Array, Array]:
    """The state `[H, D, N]` in fp32 or bf16, read and written once."""
    state = rows["B"] * rows["H"] * rows["D"] * rows["N"]
    return 2 * state * rows["stored"], 7 * state


def _all_reduce(rows: Rows) -> tuple[Array, Array]:
    """Bytes that each part must at least send: its own, once, where a switch adds them up."""
    return rows["N"] * 2.0, np.zeros_like(rows["N"])


def _all_to_all(rows: Rows) -> tuple[Array, Array]:
    """Bytes that each part gets from the others."""
    return rows["N"] * 2.0 * (rows["tp"] - 1) / rows["tp"], np.zeros_like(rows["N"])


def _exchange(rows: Rows) -> tuple[Array, Array]:
    """Bytes of rows that a part gets from the others, dispatched once to each part that has one of the k experts.

    Every choice of k experts is equally likely. So a token goes to a part with the chance 1 - C(E - E/n, k) / C(E, k).
    """
    experts, ranks = rows["E"], rows["tp"]
    missed = np.ones(len(experts))
    for i in range(int(rows["k"].max())):
        factor = (experts - experts / ranks - i) / np.maximum(1.0, experts - i)
        missed = np.where(i < rows["k"], missed * np.maximum(0.0, factor), missed)
    gets = (ranks - 1) * rows["B"] * (1 - missed)
    return gets * rows["H"] * rows["stored"], np.zeros_like(gets)


def _topk(rows: Rows) -> tuple[Array, Array]:
    """fp32 scores of all tokens, read once, and the ids of those that are kept."""
    return rows["B"] * (4 * rows["T"] + 4 * np.minimum(rows["T"], rows["k"])), np.zeros_like(rows["B"])


def _indexer(rows: Rows) -> tuple[Array, Array]:
    """fp8 keys of 128 elements with a scale, read once; fp32 scores, written once."""
    return rows["B"] * rows["T"] * (132 + 4), 2 * rows["B"] * rows["T"] * rows["H"] * 128


FORMULAS = {
    "attention_decode": _attention,
    "mla_decode": _mla,
    "ffn_gemv": _product,
    "moe_ffn": _moe,
    "gated_delta_net": _state,
    "kda": _state,
    "state_update": _state,
    "all_reduce": _all_reduce,
    "all_to_all": _all_to_all,
    "dispatch": _exchange,
    "combine": _exchange,
    "dsa_topk": _topk,
    "dsa_indexer": _indexer,
}
"""Bytes and FLOPs from fields, by operation."""
