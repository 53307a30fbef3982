"""The natural experiment: an H100 and an H200 share the chip and differ in memory. Which kernels follow it?

The elasticity of time to bandwidth is `log(t_a / t_b) / log(bandwidth_b / bandwidth_a)` for one case that the same
engine ran on both parts: 1 if the time follows the memory, 0 if it does not. Where it does not, the model of
`bench/predict/expected.py` says what binds instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.devices import DeviceSpec, find
from bench.errors import BadRequest
from bench.files import replacing
from bench.judge.published.aiconfigurator import SHAPE
from bench.judge.published.expectation import groups, parts, shape
from bench.judge.published.table import Array, Table, mixed
from bench.judge.published.validate import chosen
from bench.judge.published.work import work
from bench.predict import expected

PAIR = ("h100-sxm", "h200")
BESIDE = ("a100-80", "l40s", "b200")
"""Other parts, shown with both roofs: their chips differ too."""
SIZES = (16e6, 64e6, 256e6, 1e9)
CLASSES = ("below 16 MB", "16 to 64 MB", "64 to 256 MB", "256 MB to 1 GB", "1 GB and more")
SHOWN = CLASSES[3:]
"""What people see. Smaller cases are bound by launches, or warm: JSON has them."""
FEW = 16
"""Products of up to this many rows of x are a group of their own."""
DISAGREES = 0.25
"""How much the model's elasticity may be above the published one."""
LEAST = 10
"""A group of fewer cases is not shown."""
RESAMPLES = 4000
FOLLOWS = 0.75
"""A group follows the memory if the whole interval of its median is at or above this, and does not if it is below."""

BINDS = {
    "start": "launch and latency",
    "memory": "memory",
    "issue": "SM time: start of CTAs, conversion, the inner loop",
    "math": "tensor cores",
}
"""The terms of the model in words."""

CAVEATS = (
    "What this comparison can't exclude: the parts stood in different machines, their clocks and power limits are not "
    "published, and one buffer was read again and again without flushing the L2, so small cases are warm.",
)


def elasticity(table: Table | None = None, pair: Sequence[str] = PAIR, **wanted: Any) -> dict[str, Any]:
    """Groups of cases with median elasticities, and other parts beside the first. Raises `BadRequest`."""
    if len(pair) != 2 or pair[0] == pair[1]:
        raise BadRequest(f"an elasticity needs two parts, not {', '.join(pair)}")
    rows = chosen(table, **wanted)
    a, b = matched(rows, pair)
    if not len(a):
        raise BadRequest(f"no case was published for both {pair[0]} and {pair[1]}")
    ratio = _rate(find(pair[1])) / _rate(find(pair[0]))
    if abs(np.log(ratio)) < 0.05:
        raise BadRequest(f"{pair[0]} and {pair[1]} have the same bandwidth")
    return {
        "pair": list(pair),
        "bandwidths": [_rate(find(part)) for part in pair],
        "groups": _groups(a, b, float(np.log(ratio))),
        "beside": [
            _beside(rows, pair[0], part) for part in BESIDE if part in rows.present("part") and part not in pair
        ],
        "caveats": list(CAVEATS),
    }


def _rate(spec: DeviceSpec) -> float:
    if spec.memory_bandwidth is None:
        raise BadRequest(f"no memory bandwidth of {spec.name} is published")
    return spec.memory_bandwidth.value


def matched(rows: Table, pair: Sequence[str], columns: Sequence[str] = ("version", "kernel")) -> tuple[Table, Table]:
    """The rows of both parts that are of the same case, engine and `columns`, in the same order.

    If an engine published a case more than once, its fastest time counts.
    """
    same = ("op", "stored", "activations", "software", "routing", "gated", *SHAPE, *columns)
    first, second = (rows.where(part=part) for part in pair)
    cases, mine = _fastest(first, same)
    others, yours = _fastest(second, same)
    _, a, b = np.intersect1d(cases, others, assume_unique=True, return_indices=True)
    return first.take(mine[a]), second.take(yours[b])


def _fastest(side: Table, columns: Sequence[str]) -> tuple[Array, Array]:
    """A number for each case, and the row of its fastest time."""
    case = mixed([side[name] for name in columns])
    order = np.lexsort((side["seconds"], case))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(case[order]) != 0])[: len(order)])
    return case[order][starts], order[starts]


def _detail(rows: Table) -> tuple[Array, Array]:
    """What else parts groups, as a number: the heads of MLA, 1 or 2 for products with few or many rows of x."""
    ops = {name: rows["op"] == code for code, name in enumerate(rows.names["op"])}
    none = np.zeros(len(rows), dtype=bool)
    products = ops.get("ffn_gemv", none)
    numbers = np.where(ops.get("mla_decode", none), rows["H"], np.where(products, 1 + (rows["B"] > FEW), 0))
    return numbers, products


def _detail_text(number: int, product: bool) -> str:
    if product:
        return f"up to {FEW} rows of x" if number == 1 else f"more than {FEW} rows of x"
    return f"{number} heads" if number else ""


def _groups(a: Table, b: Table, log_ratio: float) -> list[dict[str, Any]]:
    size = work(a).bytes
    found = np.log(a["seconds"] / b["seconds"]) / log_ratio
    seconds, shares = _modelled(a)
    predicted = np.log(seconds / _modelled(b)[0]) / log_ratio
    classes = np.searchsorted(SIZES, size, side="right")
    detail, product = _detail(a)
    keys = mixed([a["op"], a["stored"], a["software"], detail, classes])
    _, first, member = np.unique(keys, return_index=True, return_inverse=True)
    shown = np.lexsort([values[first] for values in (classes, a["software"], detail, a["stored"], a["op"])])
    result = []
    for code in shown.tolist():
        index = np.flatnonzero(member == code)
        if len(index) < LEAST:
            continue
        row = int(first[code])
        op, stored, software = (a.names[name][a[name][row]] for name in ("op", "stored", "software"))
        low, high = median_interval(found[index])
        said = {
            "op": op,
            "stored": stored,
            "detail": _detail_text(int(detail[row]), bool(product[row])),
            "software": software,
            "size": CLASSES[classes[row]],
            "cases": len(index),
            "elasticity": round(float(np.median(found[index])), 3),
            "low": round(low, 3),
            "high": round(high, 3),
            "follows": "yes" if low >= FOLLOWS else "no" if high < FOLLOWS else "undecided",
        }
        known = np.isfinite(predicted[index])
        if known.all():
            share = {name: round(float(values[index].mean()), 3) for name, values in shares.items()}
            said["model"] = {
                "elasticity": round(float(np.median(predicted[index])), 3),
                "shares": share,
                "binds": max(share, key=share.__getitem__),
            }
            said["binds"] = _binds(said)
        else:
            said["model"] = said["binds"] = None
        result.append(said)
    return result


def _binds(group: Mapping[str, Any]) -> str:
    """What binds: the model's largest term, or the chip if the experiment excludes the memory."""
    model = group["model"]
    excluded = group["follows"] == "no" and model["elasticity"] - group["elasticity"] > DISAGREES
    if excluded and model["binds"] == "memory":
        chip = max(("issue", "math"), key=model["shares"].__getitem__)
        return f"the chip, by exclusion: the model puts memory first, the time does not follow it; next: {BINDS[chip]}"
    return f"{BINDS[model['binds']]} ({model['shares'][model['binds']]:.0%})"


def _modelled(rows: Table) -> tuple[Array, dict[str, Array]]:
    """Expected seconds, and the share of each term in them: the overlapping ones share by their squares."""
    seconds = np.full(len(rows), np.nan)
    shares = {name: np.full(len(rows), np.nan) for name in BINDS}
    for op, stored, gen, index in groups(rows):
        found, mine = expected.find(op, stored, gen), rows.take(index)
        kernels = shape(op, mine, work(mine)) if found else None
        if found is None or kernels is None:
            continue
        terms = expected.terms(kernels, found.constants, parts(mine), warm=True)
        total = expected.total(terms)
        seconds[index] = total
        squares = {name: terms[name] ** 2 for name in ("memory", "issue", "math")}
        both = sum(squares.values())
        shares["start"][index] = terms["start"] / total
        for name, square in squares.items():
            shares[name][index] = (1 - terms["start"] / total) * square / both
    return seconds, shares


def median_interval(values: Array) -> tuple[float, float]:
    """The 95% bootstrap interval of the median.

    The median of n draws from n sorted values is the value at n U, where U has the Beta distribution of the middle one
    of n uniform numbers. So one draw stands for a whole resample.
    """
    ordered = np.sort(values)
    n = len(ordered)
    middle = (n + 1) / 2
    at = np.random.default_rng(0).beta(middle, n + 1 - middle, RESAMPLES)
    low, high = np.percentile(ordered[np.minimum((at * n).astype(np.int64), n - 1)], (2.5, 97.5))
    return float(low), float(high)


def _beside(rows: Table, first: str, other: str) -> dict[str, Any]:
    """Median speed-ups of another part over the first by operation and stored type, and the ratios of both roofs."""
    a, b = matched(rows, (first, other), columns=())
    specs = [find(first), find(other)]
    peaks = [spec.peaks["mma_bf16"].value for spec in specs]
    big = np.flatnonzero(work(a).bytes >= SIZES[2])
    a, b = a.take(big), b.take(big)
    speedup = a["seconds"] / b["seconds"]
    names = np.char.add(np.char.add(a.text("op").astype(str), " "), a.text("stored").astype(str))
    return {
        "part": other,
        "bandwidth_ratio": round(_rate(specs[1]) / _rate(specs[0]), 3),
        "peak_ratio": round(peaks[1] / peaks[0], 3),
        "speedup": {
            name: {"median": round(float(np.median(speedup[names == name])), 3), "cases": int((names == name).sum())}
            for name in np.unique(names).tolist()
            if (names == name).sum() >= LEAST
        },
    }


def table_of(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells for the screen: the groups of `SHOWN`."""
    headers = ["op", "stored", "", "software", "size", "cases", "elasticity", "95%", "follows", "model", "what binds"]
    lines = []
    for group in (group for group in found["groups"] if group["size"] in SHOWN):
        model = group["model"]
        lines.append(
            [
                *(group[name] for name in ("op", "stored", "detail", "software", "size")),
                f"{group['cases']:,}",
                f"{group['elasticity']:z.2f}",
                f"{group['low']:z.2f} to {group['high']:z.2f}",
                group["follows"],
                f"{model['elasticity']:z.2f}" if model else "",
                group["binds"] or "",
            ]
        )
    return headers, lines


def beside_table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: other parts' speed over the first part's, beside the ratios of their roofs."""
    headers = ["part", "bandwidth", "tensor cores", "op", "cases", f"speed over {found['pair'][0]}, from 256 MB"]
    lines = []
    for other in found["beside"]:
        roofs = [other["part"], f"{other['bandwidth_ratio']:.2f}", f"{other['peak_ratio']:.2f}"]
        lines += [
            [*roofs, name, f"{said['cases']:,}", f"{said['median']:.2f}"] for name, said in other["speedup"].items()
        ]
    return headers, lines


def plot(path: Path, found: Mapping[str, Any]) -> None:
    """Which decode operations follow the memory: each group of large cases with its interval. Raises `BadRequest`."""
    from matplotlib.figure import Figure

    large = [group for group in found["groups"] if group["size"] in CLASSES[3:]]
    if not large:
        raise BadRequest("nothing to draw: no group moves 256 MB")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise BadRequest(f"cannot write {path}: end the name in .png, .svg or .pdf")
    large.sort(key=lambda group: group["elasticity"])
    figure = Figure(figsize=(9, 1 + 0.22 * len(large)), layout="constrained")
    axes = figure.subplots()
    colors = {"yes": "C2", "no": "C3", "undecided": "C7"}
    for line, group in enumerate(large):
        color = colors[group["follows"]]
        axes.plot([group["low"], group["high"]], [line, line], color=color)
        axes.plot([group["elasticity"]], [line], "o", color=color, markersize=4)
        if group["model"]:
            axes.plot([group["model"]["elasticity"]], [line], "|", color="black", markersize=8)
    names = [" ".join(filter(None, (g["op"], g["stored"], g["detail"], g["software"], g["size"]))) for g in large]
    axes.set_yticks(range(len(large)), names, fontsize=7)
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set(xlabel="elasticity of time to bandwidth (| is the model)")
    axes.set_title(f"Which operations follow the memory from {found['pair'][0]} to {found['pair'][1]}?")
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=110)
