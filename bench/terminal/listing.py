"""The tables of `decodebench list`, and the check that requested names exist."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench.devices import DEVICES
from bench.errors import BadRequest, require
from kernels.models import MODELS
from kernels.op import SUITES, SWEEPS, Op, discover, implementations

Table = tuple[list[str], list[list[Any]]]
"""Headers and rows."""


def table(what: str, suite: str | None, names: list[str]) -> Table:
    """One of the tables. BadRequest for a table that does not exist, or one that the options do not apply to."""
    tables = {
        "ops": lambda: ops(names),
        "cases": lambda: cases(suite or "quick", names),
        "impls": lambda: impls(names),
        "devices": devices,
        "models": models,
    }
    require("list", [what], tables)
    if suite and what != "cases":
        raise BadRequest(f"--suite chooses among cases; {what} belong to no suite")
    if names and what in ("devices", "models"):
        raise BadRequest(f"--op says nothing about {what}")
    return tables[what]()


def ops(names: list[str]) -> Table:
    rows = [[op.name, op.formula, op.about, *(len(op.cases(suite)) for suite in SUITES)] for op in chosen(names)]
    return ["op", "formula", "about", *SUITES], rows


def cases(suite: str, names: list[str]) -> Table:
    check(names, suite)
    rows = []
    for op in chosen(names):
        for case in op.of_suite(suite):
            work = op.work(case)
            rows.append([op.name, case.id, case.model, work.bytes, work.total_flops, round(work.intensity, 3)])
    return ["op", "case", "model", "bytes", "FLOP", "FLOP/B"], rows


def impls(names: list[str]) -> Table:
    rows = []
    for name in (op.name for op in chosen(names)):
        found, missing = implementations(name)
        rows += [[name, impl.name, "ours" if impl.ours else "peer", ""] for impl in found]
        rows += [[name, module.module, "missing", module.reason] for module in missing]
    return ["op", "impl", "kind", "reason"], rows


def devices() -> Table:
    pipes = {"mma_bf16": "ridge bf16 FLOP/B", "mma_fp8": "ridge fp8", "mma_fp4": "ridge fp4"}
    rows = []
    for spec in DEVICES.values():
        bandwidth = spec.memory_bandwidth
        ridges = {pipe: ridge.value for pipe in pipes if (ridge := spec.ridge(pipe))}
        capacity = f"{spec.memory_capacity.value / 1e9:.4g}" if spec.memory_capacity else ""
        rate = f"{float(f'{bandwidth.value / 1e12:.4g}'):,g}" if bandwidth else ""
        row = [spec.key, spec.name, spec.year or "", capacity, rate]
        rows.append([*row, *(round(ridges[pipe]) if pipe in ridges else "" for pipe in pipes)])
    return ["key", "part", "year", "GB", "TB/s", *pipes.values()], rows


def device_numbers() -> list[dict[str, Any]]:
    """All numbers of each part in SI units, each with its kind and source. A number that is not published is None."""
    return [asdict(spec) for spec in DEVICES.values()]


def models() -> Table:
    rows = []
    for name, shape in MODELS.items():
        heads = (shape.heads, shape.kv_heads, shape.head_dim) if shape.attention_layers else ("", "", "")
        width = shape.ffn if shape.plain_layers < shape.layers else ""
        rows.append([name, shape.layers, shape.hidden, *heads, width, shape.source])
    return ["model", "layers", "hidden", "heads", "KV heads", "head dim", "FFN", "source"], rows


def chosen(names: list[str]) -> list[Op]:
    known = discover()
    require("op", names, known)
    return [op for name, op in known.items() if not names or name in names]


def check(names: list[str], suite: str | None, part: str = "") -> None:
    """BadRequest for an op or a suite that does not exist, or if none of their cases has `part` in its id.

    Without a suite the device will choose one later, so a case of any suite is enough.
    """
    require("suite", [] if suite is None else [suite], (*SUITES, SWEEPS))
    suites = SUITES if suite is None else ("quick", "full") if suite == "full" else (suite,)
    cases = (case.id for op in chosen(names) for name in suites for case in op.of_suite(name))
    if part and not any(part in id for id in cases):
        where = f" in suite {suite}" if suite else ""
        raise BadRequest(f"no case has {part!r} in its id{where}; `decodebench list cases` shows all")
