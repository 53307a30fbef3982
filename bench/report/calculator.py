"""`predict --html`: one page with sliders that computes the floor of a decode step itself, for any setting.

The page gets no table of results but the amounts of `bench.predict.step_model` as formulas. With fixed model, weights,
KV cache and number of parts, each amount of each operation (bytes, FLOP by pipe, bytes through links) is

    c0 + c1 B + c2 B T + c3 hit(B) + sum over limits w of cw B min(T, w)

for batch B and context T, where hit(B) = E (1 - (1 - k/E)^B) experts are read and the limits are those of windows and
indexers. The coefficients are solved from amounts at a few settings. `Fit` checks that they give all of them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.devices import DEVICES, DeviceSpec
from bench.errors import BadRequest
from bench.files import write_text
from bench.predict.command import even_splits, load_model
from bench.predict.step_cache import held_bytes
from bench.predict.step_model import RESERVE
from bench.predict.step_work import decode_ops, expected_experts
from bench.predict.weights import PRECISIONS, WeightPlan
from bench.report import require_pages
from kernels.models import MODELS, ModelShape

WEIGHTS = ("bf16", "fp8", "int8", "int4", "fp4")
KV = ("bf16", "fp8")
PARTS = (1, 2, 4, 8, 16)
BATCHES = (1, 3, 40, 1000)
CLOSE = 1e-7
"""The largest relative error of a formula at the settings that it was solved from: integers in it are rounded."""

Setting = tuple[int, int]
"""Batch and context."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The terms of one model's formulas."""

    shape: ModelShape

    @cached_property
    def limits(self) -> list[int]:
        """Where the tokens that a layer reads stop growing with the context, the smallest first."""
        kinds = [kind for _, kind in self.shape.attention_kinds()]
        windows = {kind.window for kind in kinds if kind.windowed_layers or kind.ratio > 1}
        tops = {kind.indexer.top * kind.ratio for kind in kinds if kind.indexer}
        return sorted(each for each in windows | tops if each < self.shape.max_context)

    @cached_property
    def settings(self) -> list[Setting]:
        edges = sorted({16, *(each // 2 for each in self.limits), *self.limits, self.shape.max_context})
        between = [(low + high) // 2 for low, high in pairwise(edges)]
        return [(batch, context) for batch in BATCHES for context in sorted({*edges, *between})]

    def terms(self, batch: int, context: int) -> list[float]:
        hit = expected_experts(self.shape, batch) if self.shape.is_moe else 0.0
        return [1.0, batch, batch * context, hit, *(batch * min(context, each) for each in self.limits)]

    def solve(self, amounts: Sequence[float]) -> list[float]:
        """The coefficients that give these amounts at `settings`. Raises `ValueError` if no formula does."""
        found = np.array(amounts, dtype=float)
        if not found.any():
            return []
        rows = np.array([self.terms(*setting) for setting in self.settings])
        weights = np.where(found == 0, 1.0, found)
        relative = rows / weights[:, None]
        scale = np.where(relative.any(axis=0), np.abs(relative).max(axis=0), 1.0)
        solved = np.linalg.lstsq(relative / scale, found / weights, rcond=None)[0]
        solved[np.abs(solved) < CLOSE / 100] = 0.0
        missed = float(np.abs(relative / scale @ solved - found / weights).max())
        if missed > CLOSE:
            raise ValueError(f"an amount of {self.shape.name} is no such formula: {missed:.1e} off")
        return [float(f"{each:.13g}") for each in solved / scale]


def model(shape: ModelShape, plan_of: Callable[[str], WeightPlan], weights: Sequence[str]) -> dict[str, Any]:
    """A model as the page has it: its terms, its different operations, and which of them each setting runs."""
    fit, known = Fit(shape=shape), dict[str, tuple[int, dict[str, Any]]]()
    settings = {}
    for stored in weights:
        plan = plan_of(stored)
        for kv in KV:
            for devices in sorted(set(PARTS) & set(even_splits(shape))):
                ops = []
                for op in _operations(fit, plan, kv, devices):
                    number, _ = known.setdefault(repr(op), (len(known), op))
                    ops.append(number)
                held = [held_bytes(shape, context, PRECISIONS[kv], devices)[1] for _, context in fit.settings]
                settings[f"{stored} {kv} {devices}"] = {
                    "ops": ops,
                    "weight_bytes": plan.total_bytes(shape),
                    "held": fit.solve([b * each for (b, _), each in zip(fit.settings, held, strict=True)]),
                }
    return {
        "max_context": shape.max_context,
        "limits": fit.limits,
        "experts": shape.experts if shape.is_moe else 0,
        "chosen": shape.experts_per_token if shape.is_moe else 0,
        "weights": list(weights),
        "ops": [op for _, op in known.values()],
        "settings": settings,
    }


def _operations(fit: Fit, plan: WeightPlan, kv: str, devices: int) -> Iterator[dict[str, Any]]:
    """The formulas of each operation of a step."""
    steps = [
        decode_ops(fit.shape, weights=plan, kv=PRECISIONS[kv], batch=batch, context=context, devices=devices, q_len=1)
        for batch, context in fit.settings
    ]
    for same in zip(*steps, strict=True):
        pipes = dict.fromkeys(pipe for op in same for pipe in op.work.flops)
        yield {
            "name": same[0].name,
            "bytes": fit.solve([op.work.bytes for op in same]),
            "flops": {pipe: fit.solve([op.work.flops.get(pipe, 0) for op in same]) for pipe in pipes},
            "link": fit.solve([op.link_bytes for op in same]),
            "switched": fit.solve([op.switched_bytes for op in same]),
        }


def part(spec: DeviceSpec) -> dict[str, Any]:
    """A part as the page has it, in SI units; None for what is not published."""
    return {
        "name": spec.name,
        "bandwidth": spec.memory_bandwidth.value if spec.memory_bandwidth else None,
        "capacity": round(spec.memory_capacity.value) if spec.memory_capacity else None,
        "link": spec.link_bandwidth.value if spec.link_bandwidth else None,
        "switch": spec.reduces_in_switch,
        "peaks": {pipe: peak.value for pipe, peak in spec.peaks.items()},
    }


def known_plan(name: str, weights: str) -> WeightPlan:
    return load_model(name, None, weights)[1]


def data(names: Sequence[str] = (), config: Path | None = None, name: str = "") -> dict[str, Any]:
    """All that the page computes from. `config` adds the model of a config.json, as it is stored and in `WEIGHTS`."""
    models = {}
    if config is not None:
        shape, own, _ = load_model(name or None, config)
        plans = {own.name: own} | {each: load_model(name or None, config, each)[1] for each in WEIGHTS}
        models[shape.name] = model(shape, plans.__getitem__, list(plans))
    for each in names:
        shape, *_ = load_model(each)
        models[each] = model(shape, partial(known_plan, each), WEIGHTS)
    parts = {key: part(spec) for key, spec in DEVICES.items() if spec.memory_bandwidth}
    return {"models": models, "order": list(models), "parts": parts, "kv": list(KV), "reserve": RESERVE}


def write(page: Path, name: str | None = None, config: Path | None = None, **chosen: Any) -> None:
    """Write the page about one model or, without a `name` or a `config`, about all that are known.

    `chosen`: what the page shows first. Raises `BadRequest` for an unknown model, and where a model has amounts that
    no formula of this page describes.
    """
    require_pages(page.name)
    from bench.report.html import calculator

    try:
        found = data([] if config else [name.lower()] if name else list(MODELS), config, name or "")
    except ValueError as error:
        raise BadRequest(str(error)) from None
    write_text(page, calculator(found | {"chosen": chosen}))
