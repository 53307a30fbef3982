"""Many settings at once: every combination of parts, contexts, precisions and devices; what fits, and which is best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.devices import DEVICES, DeviceSpec, find
from bench.errors import BadRequest, require
from bench.predict import command
from bench.predict.step_cache import held_bytes
from bench.predict.step_model import RESERVE
from bench.predict.weights import PRECISIONS, WeightPlan
from bench.run import Run
from kernels.models import ModelShape

MOST_SETTINGS = 5_000
"""More rows are not predicted in one call."""

Row = dict[str, Any]


def sweep(
    *,
    model: str | None,
    config: str | Path | None,
    parts: Sequence[str],
    batches: Sequence[int],
    contexts: Sequence[int],
    weights: Sequence[str | None] = (None,),
    kv: Sequence[str | None] = (None,),
    devices: Sequence[int] = (1,),
    drafts: Sequence[int] = (0,),
    prices: Mapping[str, float] | float | None = None,
    run: Run | None = None,
    **more: Any,
) -> list[Row]:
    """The rows of `command.rows` for each combination; a setting that does not fit has no price.

    `smallest_devices` says for such a row how many parts would hold it; None where no even split does.
    """
    asked = (parts, batches, contexts, weights, kv, devices, drafts)
    if math.prod(map(len, asked)) > MOST_SETTINGS:
        raise BadRequest(f"more than {MOST_SETTINGS:,} settings: ask for fewer")
    if isinstance(prices, Mapping):
        for name in prices:
            find(name)
        require("part in --price", prices, _priced(parts, run))
    found: list[Row] = []
    for stored, cache, context, count, drafted in itertools.product(weights, kv, contexts, devices, drafts):
        shape, plan, own = command.load_model(model, config, stored)
        for part in parts if run is None else ("",):
            rows = command.rows(
                model=model,
                config=config,
                parts=[part] if part else [],
                batches=batches,
                context=context,
                weights=stored,
                kv=cache,
                devices=count,
                drafts=drafted,
                dollars_per_hour=prices.get(_priced([part], run)[0]) if isinstance(prices, Mapping) else prices,
                run=run,
                **more,
            )
            found += [_fitted(row, shape, plan, cache or own) for row in rows]
    return found


def _priced(parts: Sequence[str], run: Run | None) -> list[str]:
    """The keys of the parts that can have a price: of a run, that of its own part."""
    if run is None:
        return [find(part).key for part in parts]
    if run.part is None:
        raise BadRequest(f"--price: {run.device_name} is not in `list devices`; give its price without a name")
    return [run.part.key]


def _fitted(row: Row, shape: ModelShape, plan: WeightPlan, kv: str) -> Row:
    """The row without prices, and with the number of devices that would do, if it does not fit."""
    if row["fits"] is not False:
        return row | {"smallest_devices": None}
    spec = DEVICES.get(row["device"])
    needed = smallest_devices(shape, plan, kv, spec, row["batch"], row["context"]) if spec else None
    unpriced = dict.fromkeys(("dollars_per_million_tokens", "dollars_per_million_input_tokens"))
    return row | unpriced | {"smallest_devices": needed}


def smallest_devices(
    shape: ModelShape, plan: WeightPlan, kv: str, spec: DeviceSpec, batch: int, context: int
) -> int | None:
    """The smallest even split whose memory, less the reserve, holds the weights and the batch's cache."""
    if spec.memory_capacity is None:
        return None
    weights = plan.total_bytes(shape)
    for devices in command.even_splits(shape):
        _, copied = held_bytes(shape, context, PRECISIONS[kv], devices)
        if weights + batch * copied <= devices * spec.memory_capacity.value * (1 - RESERVE):
            return devices
    return None


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The table of `command.table`, with a column for what else varies. A setting that does not fit is struck out."""
    headers, lines = command.table(rows)
    swept = (("context", "context"), ("weights", "weights"), ("KV", "kv"), ("drafts", "drafts"))
    varying = [(header, key) for header, key in swept if len({row[key] for row in rows}) > 1]
    at = headers.index("batch")
    for row, line in zip(rows, lines, strict=True):
        if row["fits"] is False:
            needed = row["smallest_devices"]
            line[headers.index("fits")] = f"NO: --tp {needed}" if needed else "NO"
        line[at:at] = [f"{row[key]:,}" if isinstance(row[key], int) else str(row[key]) for _, key in varying]
    headers[at:at] = [header for header, _ in varying]
    return headers, lines


LEAST_IMPORTANT = (
    *(
        "MFU",
        "MBU",
        "out:in",
        "J/token at rated power",
        "FFN compute-bound from",
        "KV ms",
        "weights ms",
        "$/M in",
        "max batch",
    ),
    *("token/s/user", "bound"),
)
"""Columns that are left out where the terminal is too narrow, the first of them first."""


def seconds_of(row: Row) -> float | None:
    """What a token is expected to take; the floor where nothing is expected."""
    expected = row.get("expected_seconds")
    return expected if isinstance(expected, int | float) else row["seconds"]


def best_under(rows: Sequence[Row], tpot: float) -> str:
    """The best setting that fits and is fast enough: the cheapest, or the one with most tokens per second and part."""
    good = [row for row in rows if row["fits"] and (seconds := seconds_of(row)) is not None and seconds <= tpot]
    limit = f"{tpot * 1e3:g} ms a token"
    if not good:
        return f"no setting fits and takes at most {limit}"
    priced = [row for row in good if row["dollars_per_million_tokens"] is not None]
    if priced:
        best = min(priced, key=lambda row: row["dollars_per_million_tokens"])
        why = f"${best['dollars_per_million_tokens']:.3g} a million output tokens"
    else:
        best = max(good, key=lambda row: row["tokens_per_second"] / row["devices"])
        why = f"{best['tokens_per_second'] / best['devices']:,.0f} token/s and part"
    part = best["device"] if best["devices"] == 1 else f"{best['devices']} x {best['device']}"
    return (
        f"best under {limit}: {part}, batch {best['batch']:,}, {best['context']:,} tokens, weights {best['weights']}, "
        f"KV cache {best['kv']}: {(seconds_of(best) or 0) * 1e3:.3g} ms, {why}"
    )


def read_prices(text: str | None) -> Mapping[str, float] | float | None:
    """`2.5` for every part, or `h100-sxm=2.5,h200=3.5`. Raises `BadRequest`."""
    if text is None:
        return None
    found: dict[str, float] = {}
    for each in text.split(","):
        part, equals, value = each.rpartition("=")
        try:
            dollars = float(value)
        except ValueError:
            raise BadRequest(f"--price: {each[:40]!r} is neither dollars per hour nor part=dollars") from None
        if not equals and "," not in text:
            return dollars
        if not equals:
            raise BadRequest(f"--price: {each[:40]!r} names no part")
        found[find(part.strip()).key] = dollars
    return found
