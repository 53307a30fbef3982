"""The constants of expected collectives (`bench/predict/collectives.py`), fitted on declared rows.

For each library and generation the newest version on one part is fitted; other versions and parts are out of sample.
Kernels that were launched one by one from the host are left out: their 20 us are the launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bench.judge.published.search import simplex
from bench.judge.published.table import Array, Table
from bench.judge.published.work import BYTES, EXCHANGES, LINKED, by_name, generations, rates
from bench.predict import expected
from bench.predict.collectives import (
    DEEPEP,
    LEAST,
    LIBRARIES,
    MOST,
    Algorithm,
    Library,
    Routed,
    exchange_seconds,
    routed_seconds,
    seconds,
)

STARTS = (
    {"one_shot": (3e-6, 1e-6, 0.6), "two_shot": (8e-6, 2e-6, 0.7)},
    {"one_shot": (5e-6, 3e-6, 0.3), "two_shot": (10e-6, 4e-6, 0.5)},
)
ROUTED = ((10e-6, 10e-9, 0.6), (20e-6, 30e-9, 0.5))
"""Where the search starts: the better of two ends is taken."""

Way = Library | Algorithm | Routed
PLURALS = {op: op.replace("_", "-") + "s" for op in LINKED} | {"dispatch": "dispatches"}


def in_graph(rows: Table, op: str = "all_reduce") -> Array:
    """A mask: collectives of a decode step's size that were launched from a graph, or by a library of its own."""
    eager = np.array(["eager" in name for name in rows.names["kernel"]], dtype=bool)[rows["kernel"]]
    mine = ~eager & (rows["op"] == rows.code("op", op) if op in rows.names["op"] else False)
    if op in EXCHANGES:
        return mine
    size = 2 * rows["N"].astype(np.int64)
    return mine & (size >= LEAST) & (size <= MOST)


def groups(rows: Table, op: str = "all_reduce") -> Iterator[tuple[str, str, Array]]:
    """Library and generation, and the index of their rows. An engine that calls NCCL or DeepEP
    counts as these."""
    chosen = np.flatnonzero(in_graph(rows, op))
    rows = rows.take(chosen)
    libraries = np.where(rows.text("kernel") == "NCCL", "nccl", rows.text("software"))
    libraries = np.where(rows.text("kernel") == DEEPEP, DEEPEP, libraries)
    gens = generations(rows)
    for library in (*LIBRARIES, DEEPEP):
        for gen in expected.FITTED_ON:
            index = chosen[(libraries == library) & (gens == gen)]
            if len(index):
                yield library, gen, index


def declared(rows: Table, gen: str) -> Array:
    """A mask over the rows of one group: the newest version on the part that is fitted."""
    part = expected.FITTED_ON[gen]
    if part not in rows.names["part"]:
        return np.zeros(len(rows), dtype=bool)
    mine = rows["part"] == rows.code("part", part)
    versions = rows.text("version")
    newest = max(set(versions[mine]), key=as_numbers, default="")
    return mine & (versions == newest)


def as_numbers(version: str) -> tuple[int, ...]:
    """`1.3.0rc20` as (1, 3, 0, 20)."""
    return tuple(int("".join(c for c in word if c.isdigit()) or 0) for word in version.replace("rc", ".").split("."))


def fit(table: Table, op: str = "all_reduce") -> dict[str, Any]:
    """The constants by `library generation`, with what they rest on and the spread on all other rows."""
    stored = {}
    for library, gen, index in groups(table, op):
        rows = table.take(index)
        mine = declared(rows, gen)
        if mine.sum() < 12 or not np.isfinite(links(rows)).all():
            continue
        said = constants(rows.take(np.flatnonzero(mine)), op)
        others = rows.take(np.flatnonzero(~mine)) if not mine.all() else rows
        ratio = others["seconds"] / predicted(known(said), others)
        who = f"{library} {rows.text('version')[mine][0]}"
        if library == DEEPEP:
            who = f"{library} in {rows.text('software')[mine][0]} {rows.text('version')[mine][0]}"
        stored[f"{library} {gen}"] = said | {
            "rests_on": f"{int(mine.sum())} {PLURALS[op]} of {who} on {expected.FITTED_ON[gen]} (aiconfigurator-core)",
            "spread": [round(float(value), 3) for value in np.percentile(ratio, (10, 50, 90))],
        }
    return stored


def links(rows: Table) -> Array:
    """The datasheet's bandwidth of each row's link in B/s; NaN where none is published."""
    return rates(rows)[0]


def predicted(found: Way, rows: Table) -> Array:
    """Seconds of each row."""
    size, ranks, link = 2.0 * rows["N"], rows["tp"].astype(np.float64), links(rows)
    if isinstance(found, Library):
        return np.asarray(seconds(found, size=size, ranks=ranks, link=link))
    if isinstance(found, Algorithm):
        return np.asarray(exchange_seconds(found, size=size, ranks=ranks, link=link))
    size = rows["B"].astype(np.float64) * rows["k"] * rows["H"] * by_name(rows, "stored", BYTES)
    return np.asarray(routed_seconds(found, size=size, experts=rows["E"], ranks=ranks, link=link))


def known(said: Mapping[str, Any]) -> Way:
    """The stored constants as what they are."""
    if "one_shot" in said:
        return Library.of(said)
    return Routed.of(said) if "expert" in said else Algorithm.of(said)


def constants(rows: Table, op: str = "all_reduce") -> dict[str, Any]:
    def error(logs: Array) -> float:
        return float(np.mean(np.abs(np.log(rows["seconds"] / predicted(from_logs(logs, op), rows)))))

    starts = [[*start["one_shot"], *start["two_shot"]] for start in STARTS]
    if op == "all_to_all":
        starts = [start[:3] for start in starts]
    if op in EXCHANGES:
        starts = [[*start] for start in ROUTED]
    best = from_logs(min((simplex(error, np.log(start), steps=1500) for start in starts), key=error), op)
    if isinstance(best, Library):
        return {"one_shot": shortened(best.one_shot), "two_shot": shortened(best.two_shot)}
    return shortened(best)


def shortened(algorithm: Algorithm | Routed) -> dict[str, float]:
    return {field: float(f"{value:.3g}") for field, value in vars(algorithm).items()}


def from_logs(logs: Array, op: str) -> Way:
    """Three constants; of an all-reduce, whose library has two algorithms, six."""
    values = [float(value) for value in np.exp(logs)]
    if op in EXCHANGES:
        return Routed(**dict(zip(("start", "expert", "rate"), values, strict=True)))
    names = ("start", "rank", "rate")
    found = [Algorithm(**dict(zip(names, values[at : at + 3], strict=True))) for at in range(0, len(values), 3)]
    return found[0] if op == "all_to_all" else Library(one_shot=found[0], two_shot=found[1])
