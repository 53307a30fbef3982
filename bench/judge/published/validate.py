"""`decodebench validate`: published times over our floor and over what we expected; what explains impossible ones.

Everything is by array: groups are sorted once and their percentiles read off, so millions of rows take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.devices import DEVICES, find
from bench.judge.published import fit, link_fit, server_fit
from bench.judge.published.expectation import expectation
from bench.judge.published.table import Array, Table, load
from bench.judge.published.work import LINKED, WARM, Floor, generations, work
from bench.predict import expected

PERCENTILES = (10, 50, 90)
BY = ("op", "stored", "size", "part", "software")
SLACK = 0.99
"""A time is faster than the floor if it is below this share of it: times are rounded to four digits."""

TARGETS: tuple[tuple[str, Mapping[str, Any], float, float], ...] = (
    ("bf16 products, from 16 MB", {"op": "ffn_gemv", "stored": ("bf16",), "least": 16e6, "rows": 128}, 0.06, 0.15),
    ("bf16 attention, from 256 MB", {"op": "attention_decode", "stored": ("bf16",), "least": 256e6}, 0.06, 0.30),
    (
        "bf16 attention, 16 to 256 MB",
        {"op": "attention_decode", "stored": ("bf16",), "least": 16e6, "most": 256e6},
        0.25,
        1.0,
    ),
    ("all-reduces, 8 KB to 16 MB", {"op": "all_reduce", "stored": ("bf16",), "least": 0}, 0.20, 0.60),
    ("NCCL's all-to-alls, 8 KB to 16 MB", {"op": "all_to_all", "stored": ("bf16",), "least": 0}, 0.20, 0.60),
    ("DeepEP's dispatch, 8 bits", {"op": "dispatch", "stored": ("fp8",), "least": 0}, 0.20, 0.60),
    ("DeepEP's combine, 16 bits", {"op": "combine", "stored": ("bf16",), "least": 0}, 0.20, 0.60),
    *(
        (f"8 and 4 bits, {title}, from 64 MB", {"op": op, "stored": LOW, "least": 64e6, "rows": 128}, 0.20, 0.60)
        for LOW in [("fp8", "fp8_block", "int8", "int4", "mxfp4", "nvfp4")]
        for op, title in (
            ("ffn_gemv", "products"),
            ("attention_decode", "attention"),
            ("moe_ffn", "MoE"),
            ("mla_decode", "MLA"),
        )
    ),
)
"""What errors out of sample ought to be, median and 90th percentile; 10% and 30% for products of Blackwell parts."""


def validate(table: Table | None = None, **wanted: Any) -> dict[str, Any]:
    """Groups, errors beside targets, impossible rows, servers. `wanted` is as in `Table.where`. Raises `BadRequest`."""
    table = load() if table is None else table
    rows = chosen(table, **wanted)
    floor = work(rows)
    over_floor = rows["seconds"] / floor.seconds
    predicted = expectation(rows)
    over_expected = rows["seconds"] / predicted
    reasons = explained(rows, floor)
    return {
        "source": dict(table.sources),
        "rows": len(rows),
        "groups": grouped(rows, floor.bytes, {"over_floor": over_floor, "over_expected": over_expected}),
        "errors": errors(rows, floor.bytes, over_expected),
        "faster_than_floor": {
            name: int(count) for name, count in zip(*np.unique(reasons[reasons != ""], return_counts=True), strict=True)
        },
        "unexplained": _worst(rows, over_floor, reasons == "unexplained"),
        "left_out": dict(table.left_out),
        "servers": {**expected.servers(), "below_floor": server_fit.below_floor(load("servers"))},
    }


def chosen(table: Table | None = None, **wanted: Any) -> Table:
    """The rows that are asked for, of the committed table if no other is given. Raises `BadRequest`."""
    return (load() if table is None else table).where(**wanted)


def sizes(size: Array) -> Array:
    """The index of each size's class in `expected.CLASSES`."""
    return np.searchsorted(expected.SIZES, size, side="right")


def grouped(rows: Table, size: Array, ratios: Mapping[str, Array]) -> list[dict[str, Any]]:
    """One dict for each group of `BY`: its count, and percentiles of each ratio."""
    if not len(rows):
        return []
    codes = {name: sizes(size) if name == "size" else rows[name].astype(np.int64) for name in BY}
    key = np.zeros(len(rows), dtype=np.int64)
    for values in codes.values():
        key = key * (int(values.max()) + 1) + values
    _, first, member, counts = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    member = member.reshape(-1)
    found = {name: percentiles(member, counts, ratio) for name, ratio in ratios.items()}
    result = []
    for group, row in enumerate(first):
        said: dict[str, Any] = {
            name: expected.CLASSES[values[row]] if name == "size" else rows.names[name][values[row]]
            for name, values in codes.items()
        }
        said["count"] = int(counts[group])
        for name, values in found.items():
            known = np.isfinite(values[group]).all()
            said[name] = (
                {f"p{p}": round(float(v), 4) for p, v in zip(PERCENTILES, values[group], strict=True)}
                if known
                else None
            )
        result.append(said)
    return result


def percentiles(member: Array, counts: Array, values: Array) -> Array:
    """`PERCENTILES` of the values of each group `[groups, 3]`, interpolated; NaN where a group has a NaN."""
    order = np.lexsort((values, member))
    ordered = values[order]
    starts = np.cumsum(counts) - counts
    columns = []
    for percent in PERCENTILES:
        place = percent / 100 * (counts - 1)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, counts - 1)
        share = place - low
        columns.append(ordered[starts + low] * (1 - share) + ordered[starts + high] * share)
    return np.stack(columns, axis=1)


def errors(rows: Table, size: Array, ratio: Array) -> list[dict[str, Any]]:
    """Each target of `TARGETS`: the errors in sample and out of sample, and where out of sample they are largest."""
    fitted = in_sample(rows)
    error = np.where(ratio >= 1, ratio, 1 / ratio) - 1
    result = []
    for name, asked, median, ninetieth in TARGETS:
        which = np.isfinite(ratio) & _chosen(rows, size, asked)
        for part in ("all parts", *rows.present("part")) if which.any() else ():
            here = which & ((rows["part"] == rows.code("part", part)) if part != "all parts" else True)
            outside = here & ~fitted
            if not outside.any():
                continue
            blackwell = part in DEVICES and expected.generation(find(part)) == "blackwell"
            limits = (0.10, 0.30) if asked["op"] == "ffn_gemv" and median == 0.06 and blackwell else (median, ninetieth)
            said = _two(error[outside])
            result.append(
                {
                    "what": name,
                    "part": part,
                    "in_sample": _two(error[here & fitted]),
                    "out_of_sample": said,
                    "target": {"median": limits[0], "p90": limits[1]},
                    "met": bool(said["median"] <= limits[0] and said["p90"] <= limits[1]),
                    "worst": _worst_engine(rows, error, outside),
                }
            )
    return result


def in_sample(rows: Table) -> Array:
    """A mask: the rows that constants may have been fitted on."""
    found = np.zeros(len(rows), dtype=bool)
    gens = generations(rows).astype(str)
    for (op, stored), software in fit.ENGINE.items():
        for gen, part in expected.FITTED_ON.items():
            if op in rows.names["op"] and stored in rows.names["stored"]:
                mine = (
                    (rows["op"] == rows.code("op", op))
                    & (rows["stored"] == rows.code("stored", stored))
                    & (gens == gen)
                )
                index = np.flatnonzero(mine)
                found[index] |= fit.declared(rows.take(index), op, part, software)
    for name in LINKED:
        for _, gen, index in link_fit.groups(rows, name):
            found[index] |= link_fit.declared(rows.take(index), gen)
    return found


def _chosen(rows: Table, size: Array, asked: Mapping[str, Any]) -> Array:
    if asked["op"] not in rows.names["op"]:
        return np.zeros(len(rows), dtype=bool)
    stored = [rows.code("stored", name) for name in asked["stored"] if name in rows.names["stored"]]
    which = (rows["op"] == rows.code("op", asked["op"])) & np.isin(rows["stored"], stored)
    which &= (size >= asked["least"]) & (size < asked.get("most", np.inf)) & (rows["B"] <= asked.get("rows", np.inf))
    return which & ((rows["balanced"] > 0) if asked["op"] == "moe_ffn" else True)


def _two(error: Array) -> dict[str, Any]:
    if not len(error):
        return {"median": None, "p90": None, "count": 0}
    median, ninetieth = np.percentile(error, (50, 90))
    return {"median": round(float(median), 3), "p90": round(float(ninetieth), 3), "count": len(error)}


def _worst_engine(rows: Table, error: Array, which: Array) -> str:
    """The engine, stored type and kernel with the largest median error among those with 20 rows."""
    index = np.flatnonzero(which)
    columns = ("software", "stored", "kernel")
    keys, member, counts = np.unique(
        np.stack([rows[name][index] for name in columns]), axis=1, return_inverse=True, return_counts=True
    )
    medians = percentiles(member.reshape(-1), counts, error[index])[:, 1]
    worst = int(np.argmax(np.where(counts >= 20, medians, -1)))
    said = [rows.names[name][code] for name, code in zip(columns, keys[:, worst], strict=True)]
    return f"{' '.join(said)}: {medians[worst]:.0%} of {counts[worst]:,}"


def explained(rows: Table, floor: Floor) -> Array:
    """The likeliest reason of each row that is faster than its floor, or `unexplained`; `""` for all other rows."""
    ratio = rows["seconds"] / floor.seconds
    l2 = np.array([part.on_chip.value if (part := find(name)).on_chip else np.inf for name in rows.names["part"]])
    ops = {name: rows["op"] == code for code, name in enumerate(rows.names["op"])}
    none = np.zeros(len(rows), dtype=bool)
    attention = ops.get("attention_decode", none)
    states = ops.get("gated_delta_net", none) | ops.get("kda", none)
    linked = np.logical_or.reduce([ops.get(name, none) for name in LINKED])
    rate = floor.bytes / rows["seconds"]
    tests = (
        ("units: more than 500 times faster", ratio < 1 / 500),
        ("a collective: its floor is the link's bandwidth", linked),
        ("fits the L2, or is smaller than four of them: warm", floor.bytes < WARM * l2[rows["part"]]),
        ("half the bytes: K is read without V (aiconfigurator#1379)", attention & (ratio >= 0.5 * SLACK)),
        ("half the bytes: a state in 16 bits", states & (ratio >= 0.5 * SLACK)),
        ("MoE: fewer experts are hit than balanced tokens could hit", ops.get("moe_ffn", none)),
        ("another part's datasheet: a part of its generation has this bandwidth", rate <= _fastest_sibling(rows)),
    )
    reasons = np.select([test for _, test in tests], [name for name, _ in tests], "unexplained").astype(object)
    return np.where(ratio < SLACK, reasons, "")


def _fastest_sibling(rows: Table) -> Array:
    """The largest bandwidth of a part of the same generation."""
    largest: dict[str, float] = {}
    for part in DEVICES.values():
        if part.sm in expected.GENERATIONS and part.memory_bandwidth:
            gen = expected.generation(part)
            largest[gen] = max(largest.get(gen, 0.0), part.memory_bandwidth.value)
    return np.array([largest.get(expected.generation(find(name)), 0.0) for name in rows.names["part"]])[rows["part"]]


def _worst(rows: Table, ratio: Array, which: Array, most: int = 10) -> list[dict[str, Any]]:
    """The rows with the smallest ratio, with their fields."""
    index = np.flatnonzero(which)
    chosen = rows.take(index[np.argsort(ratio[index])[:most]])
    fields = ("op", "part", "software", "version", "kernel", "stored", "source")
    texts = {name: chosen.text(name) for name in fields}
    shapes = ("B", "H_q", "H_kv", "D", "T", "window", "N", "K", "E", "k", "H", "F", "tp")
    return [
        {name: values[idx] for name, values in texts.items()}
        | {name: int(chosen[name][idx]) for name in shapes if chosen[name][idx]}
        | {"seconds": float(chosen["seconds"][idx])}
        for idx in range(len(chosen))
    ]


def table_of(groups: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells for the screen."""
    headers = [*BY, "rows", "over floor: 10%", "50%", "90%", "over expected: 10%", "50%", "90%"]
    lines = []
    for group in groups:
        said = [
            f"{group[name][f'p{p}']:.2f}" if group[name] else ""
            for name in ("over_floor", "over_expected")
            for p in PERCENTILES
        ]
        lines.append([*(group[name] for name in BY), f"{group['count']:,}", *said])
    return headers, lines


def error_table(found: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: errors in sample and out of sample beside their targets."""
    headers = ["expected times of", "part", "rows", "in sample", "out of sample", "target", "met", "largest, by engine"]
    lines = []
    for error in found:
        outside, target = error["out_of_sample"], error["target"]
        lines.append(
            [
                error["what"],
                error["part"],
                f"{outside['count']:,}",
                _pair(error["in_sample"]),
                _pair(outside),
                _pair(target),
                "yes" if error["met"] else "no",
                error["worst"],
            ]
        )
    return headers, lines


def _pair(said: Mapping[str, Any]) -> str:
    return "" if said["median"] is None else f"{said['median']:.0%}, 90%: {said['p90']:.0%}"


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What the reader must know beside the tables: impossible rows, servers, what was left out."""
    lines = [f"{found['rows']:,} rows; {sum(found['left_out'].values()):,} of the source do not map or are not decode."]
    fast = found["faster_than_floor"]
    if fast:
        lines.append(f"{sum(fast.values()):,} rows are faster than their floor:")
        lines += [f"  {count:,}: {reason}" for reason, count in sorted(fast.items(), key=lambda item: -item[1])]
    servers = found["servers"]
    outside, over = servers["out_of_sample"], servers["over_floor"]
    lines.append(
        f"Whole servers: {outside['count']:,} runs, a factor of {over['typical']:.2f} over the floor. With one engine "
        f"left out, expected times are off by a factor of {outside['typical']:.2f} (90%: {outside['p90']:.2f}; "
        f"target {servers['target']})."
    )
    if below := servers["below_floor"]:
        lines.append(f"{len(below)} runs of servers are faster than their floor, unexplained:")
        named = [f"{run['model']} {run['stored']} on {run['tp']} {run['part']}, {run['software']}" for run in below]
        lines += [f"  {named.count(name)}: {name}" for name in dict.fromkeys(named)]
    return lines


def full(wheel: Path | None) -> Table:
    """All rows of the package that map, not only the committed ones. Raises `BadRequest`."""
    from bench.judge.published import aiconfigurator
    from bench.judge.published.wheel import find as package

    return aiconfigurator.read(package(wheel))
