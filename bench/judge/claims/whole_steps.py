"""How the whole decode steps of a run (`decode_step`) answer claims. They come before sums over measured parts.

A step with fewer layers than its model stands for the whole one: each byte of the others is taken to cost as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from bench.judge.claims.base import Comparison, Published
from bench.judge.claims.common import measured
from bench.judge.claims.reading import (
    MeasuredPart,
    batch_of,
    cache_format,
    comparable,
    fastest_by_batch,
    group_by,
    seconds,
    weight_format,
)
from bench.records import Record
from kernels.models import MODELS, ModelShape
from kernels.op import discover
from kernels.work import part_of

OP = "decode_step"
WHOLE = "whole step"
"""The part of a model that a value is about."""


def steps(run: MeasuredPart, shape: ModelShape | None = None, *, weights: str = "", **fields: Any) -> list[Record]:
    """The fastest implementation of each step, of a model or of all, with weights of one format or of all."""
    if shape:
        fields["model"] = shape.name
    return [r for r in run.fastest(OP, **fields) if not weights or weight_format(r) == weights]


def of_all_layers(record: Record) -> float:
    """Bytes of the step of the whole model over those of the layers that were measured."""
    op = discover()[OP]
    return op.work(op.case_from_dict(record.case | {"layers": 0})).bytes / record.bytes


def step_seconds(run: MeasuredPart, shape: ModelShape, *, weights: str, batch: int) -> tuple[float, Record] | None:
    """The step of a model at a batch with the shortest context that was measured; None without one."""
    found = steps(run, shape, weights=weights, B=batch)
    if not found:
        return None
    record = min(found, key=lambda r: (r.case["T"], r.case["layers"] or shape.layers, seconds(r)))
    return seconds(record) * of_all_layers(record), record


def how(record: Record) -> str:
    layers = record.case["layers"]
    return f"the measured step of {layers} layers x bytes of all layers / its bytes" if layers else "the measured step"


def alike(run: MeasuredPart, but: str) -> list[list[Record]]:
    """Steps of one model that differ in this field alone."""
    models = group_by(steps(run), "model").values()
    return [group for mine in models for group in comparable(mine, but)]


def sweeps(run: MeasuredPart) -> list[list[Record]]:
    """Steps that differ in their batch alone: at least two, from the smallest batch to the largest."""
    groups = ([*fastest_by_batch(group).values()] for group in alike(run, "B"))
    return [sorted(group, key=batch_of) for group in groups if len(group) > 1]


def named(records: Sequence[Record]) -> dict[str, Any]:
    """The setting that all steps of a sweep share."""
    case = records[0].case
    return {"timed": WHOLE, "context": case["T"], "model": case["model"], "weights": weight_format(records[0])}


def added_by_a_request(run: MeasuredPart, published: Published) -> list[Comparison]:
    """How much longer a step takes for each request more, between neighbouring batches of a sweep up to 64."""
    said, found = "(step at the larger batch / step at the smaller - 1) / requests between", []
    for sweep in sweeps(run):
        for few, many in pairwise(sweep):
            if batch_of(many) <= 64:
                value = (seconds(many) / seconds(few) - 1) / (batch_of(many) - batch_of(few))
                found.append(measured(published, value, said, (few, many), batch=batch_of(few), **named(sweep)))
    return found


def two_batches(run: MeasuredPart, rate: Published, time: Published, few: int, many: int) -> list[Comparison]:
    """Tokens per second and time per token of a step at the larger batch over those at the smaller."""
    found = []
    for sweep in sweeps(run):
        by = {batch_of(r): r for r in sweep}
        if few in by and many in by:
            ratio, used = seconds(by[many]) / seconds(by[few]), (by[few], by[many])
            setting = {"context": by[few].case["T"], "model": by[few].case["model"], "weights": weight_format(by[few])}
            found += [
                measured(rate, many / few / ratio, "measured steps at both batches", used, **setting),
                measured(time, ratio, "measured steps at both batches", used, **setting),
            ]
    return found


def in_fewer_bits(run: MeasuredPart, published: Published, kinds: Sequence[str]) -> list[Comparison]:
    """Steps whose weights are stored in fewer bits over the same step in 16 bits."""
    found = []
    for group in alike(run, "weights"):
        by = {weight_format(r): r for r in sorted(group, key=seconds, reverse=True)}
        for kind in kinds:
            if "bf16" in by and kind in by:
                plain, few = by["bf16"], by[kind]
                setting = {"the": "latency", "batch": batch_of(few), "context": few.case["T"], "weights": kind}
                said = f"measured step with {kind} weights / with 16-bit weights"
                found.append(
                    measured(
                        published, seconds(few) / seconds(plain), said, (plain, few), model=few.case["model"], **setting
                    )
                )
    return found


def attention_in_fewer_bits(run: MeasuredPart, published: Published, least: int) -> list[Comparison]:
    """Attention of steps with a cache in fp8 over that of the same step in 16 bits, each measured alone, where it reads
    `least` bytes or more in 16 bits."""
    found = []
    for group in alike(run, "kv"):
        by = {cache_format(r): r for r in sorted(group, key=seconds, reverse=True)}
        both = [(r, part_seconds(r, "attention")) for r in (by.get("bf16"), by.get("fp8")) if r]
        if len(both) < 2 or not all(spent for _, spent in both):
            continue
        (plain, whole), (few, half) = both
        if part_bytes(plain, "attention") >= least and whole and half:
            said = "attention of the measured step with an fp8 cache / with a 16-bit cache"
            setting = {"batch": batch_of(few), "context": few.case["T"], "model": few.case["model"]}
            found.append(measured(published, half / whole, said, (plain, few), **setting))
    return found


def verifying(run: MeasuredPart, published: Published, tokens: int) -> list[Comparison]:
    """A step that verifies so many tokens of each sequence over the step that makes one. It multiplies as many rows as
    the step at so many times the batch, and reads the cache of its own batch."""
    said = "(step at so many times the batch - its attention + attention at the batch) / step at the batch"
    found = []
    for sweep in sweeps(run):
        by = {batch_of(r): r for r in sweep}
        for batch, one in by.items():
            several = by.get(tokens * batch)
            if several is None:
                continue
            more, own = (part_seconds(r, "attention") for r in (several, one))
            if more and own:
                value = (seconds(several) - more + own) / seconds(one)
                setting = {"batch": batch, "draft": tokens, **named(sweep)}
                found.append(measured(published, value, said, (several, one), **setting))
    return found


def part_seconds(record: Record, name: str) -> float | None:
    """Median seconds of all launches of a part of a step, without the others."""
    return next((median(p["alone_s"]) for p in record.parts or () if p["name"] == name and p.get("alone_s")), None)


def part_bytes(record: Record, name: str) -> int:
    """Bytes that the kernels of this part read."""
    return sum(s["work"]["bytes_read"] for s in record.stages if part_of(s["name"]) == name)


def whole_models(run: MeasuredPart) -> list[tuple[ModelShape, Record]]:
    """The steps of all layers of a model."""
    found = [(MODELS.get(r.case["model"]), r) for r in steps(run)]
    return [(shape, r) for shape, r in found if shape and r.case["layers"] in (0, shape.layers)]


def bandwidth(run: MeasuredPart) -> float:
    """B/s of the datasheet, else of the measured read. Raises `Unmeasured` without either."""
    sheet = run.part.memory_bandwidth if run.part else None
    return sheet.value if sheet else run.ceilings.read_roof
