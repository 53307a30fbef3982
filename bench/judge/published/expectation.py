"""Expected times of published rows, by array, with the constants of `bench/predict/expected.json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.devices import find
from bench.judge.published import link_fit
from bench.judge.published.table import Array, Table
from bench.judge.published.work import EXCHANGES, Floor, generations, rates, work
from bench.predict import expected


def shape(op: str, rows: Table, floor: Floor) -> expected.Kernels | None:
    """The rows of one operation as kernels; None for an operation that is not modelled."""
    of = {name: rows[name].astype(np.float64) for name in ("B", "H_q", "H_kv", "D", "T", "N", "K", "E", "k", "H", "F")}
    moved = {"size": floor.bytes, "flops": floor.flops}
    if op == "attention_decode":
        window = rows["window"].astype(np.float64)
        of["T"] = np.where(window > 0, np.minimum(of["T"], window), of["T"])
        return expected.attention(**moved, **{name: of[name] for name in ("B", "H_q", "H_kv", "D", "T")})
    if op == "mla_decode":
        return expected.latent_attention(**moved, B=of["B"], H=of["H"], T=of["T"])
    if op == "ffn_gemv":
        return expected.product(**moved, N=of["N"], K=of["K"])
    if op == "moe_ffn":
        hit = np.where(rows["balanced"] > 0, np.minimum(of["E"], of["B"] * of["k"]), of["k"])
        return expected.experts(**moved, hit=hit, H=of["H"], F=of["F"] / np.maximum(rows["tp"], 1))
    if op in ("gated_delta_net", "kda", "state_update"):
        return expected.states(**moved, B=of["B"], H=of["H"])
    return None


def parts(rows: Table) -> expected.Part:
    """The datasheet's numbers of each row's part."""
    bandwidth, peak = rates(rows)
    known = [expected.Part.of(find(name)) for name in rows.names["part"]]
    sms, l2 = (np.array([getattr(part, name) for part in known])[rows["part"]] for name in ("sms", "l2"))
    return expected.Part(bandwidth=bandwidth, peak=peak, sms=sms, l2=l2)


def groups(table: Table) -> Iterator[tuple[str, str, str, Array]]:
    """Operation, stored type and generation, and the index of their rows."""
    gens, of = np.unique(generations(table).astype(str), return_inverse=True)
    key = (table["op"].astype(np.int64) * len(table.names["stored"]) + table["stored"]) * len(gens) + of
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    for index in np.split(order, starts[1:]):
        first = index[0]
        op, stored = (table.names[name][table[name][first]] for name in ("op", "stored"))
        yield op, stored, str(gens[of[first]]), index


def expectation(table: Table) -> Array:
    """Expected seconds of each row; NaN where the operation is not modelled."""
    seconds = np.full(len(table), np.nan)
    for op, stored, gen, index in groups(table):
        found = expected.find(op, stored, gen)
        if found:
            rows = table.take(index)
            kernels = shape(op, rows, work(rows))
            if kernels is not None:
                seconds[index] = expected.total(expected.terms(kernels, found.constants, parts(rows), warm=True))
    for name, known in collectives().items():
        for library, gen, index in link_fit.groups(table, name):
            if said := known.get(f"{library} {gen}"):
                seconds[index] = link_fit.predicted(link_fit.known(said), table.take(index))
    return seconds


def collectives() -> dict[str, dict[str, Any]]:
    """The stored constants of what crosses links, by operation."""
    found = {"all_reduce": expected.all_reduces(), "all_to_all": expected.all_to_alls()}
    return found | {direction: expected.exchanges(direction) for direction in EXCHANGES}
