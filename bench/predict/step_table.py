"""Several steps of one model as a table: what their levels take, and what a step makes of its part. Pure: no torch."""

from __future__ import annotations

from collections.abc import Sequence

from bench.predict.step_waterfall import Waterfall
from bench.units import percent


def swept(found: Sequence[Waterfall]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of several steps of one model: the milliseconds of each level, what the step makes of the part
    (MBU, MFU, joules, dollars, where they are known), and what takes most of each."""
    names = list(dict.fromkeys(level.name for each in found for level in each.levels))
    settings = {"weights": "weights", "KV": "kv", "parts": "devices", "drafts": "drafts"}
    varied = [(h, key) for h, key in settings.items() if len({getattr(each, key) for each in found}) > 1]
    headers = [
        "batch",
        "context",
        *(h for h, _ in varied),
        *(f"{name.partition(':')[0].partition(',')[0]} ms" for name in names),
        "token/s",
    ]
    columns: dict[str, list[str]] = {
        "fits": ["NO" if each.fits is False else "" for each in found],
        "MBU": ["" if each.mbu is None else percent(each.mbu) for each in found],
        "MFU": ["" if each.mfu is None else percent(each.mfu) for each in found],
        "J/token": [three_digits(each.joules_per_token) for each in found],
        "$/M tokens": [three_digits(each.dollars_per_million_tokens) for each in found],
        "all-reduces": [reduced_share(each) for each in found],
    }
    columns = {header: cells for header, cells in columns.items() if any(cells)}
    rows = []
    for number, each in enumerate(found):
        known = {level.name: f"{level.seconds * 1e3:,.3g}" for level in each.levels}
        most = max(each.ops, key=lambda op: op.share)
        rates = [f"{each.batch / each.step.seconds:,.0f}", *(cells[number] for cells in columns.values())]
        own = [str(getattr(each, key)) for _, key in varied]
        cells = [f"{each.batch:,}", f"{each.context:,}", *own, *(known.get(name, "") for name in names), *rates]
        rows.append([*cells, f"{most.name}: {percent(most.share)}"])
    return [*headers, *columns, "most of the time"], rows


def reduced_share(found: Waterfall) -> str:
    """The all-reduces' part of the step; empty where one part has the whole model."""
    return "".join(percent(op.seconds / found.step.seconds) for op in found.ops if op.name == "all_reduce")


def three_digits(value: float | None) -> str:
    return "" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
