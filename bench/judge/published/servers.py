"""Whole servers that others measured: time per output token by model, part, precision and batch.

From `silicon_sample.csv` of aiconfigurator, which takes them from InferenceX's public data. `seconds` is TPOT. `T` is
the prompt and half of the output, the middle of a request's life. `B` are the requests in flight. `floor`, `kernels`,
`layers`, `reduces` and `prefill` (the part of a step's time that prompts of new requests take) are ours: the floor is
that of the requests that fit into memory at once.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from bench.devices import DEVICES, find
from bench.errors import BadRequest
from bench.judge.published.aiconfigurator import PARTS
from bench.judge.published.table import Table
from bench.judge.published.wheel import Package
from bench.predict.step_expected import kernel_seconds
from bench.predict.step_model import step
from bench.predict.step_work import shares_evenly
from bench.predict.weights import recipe
from kernels.models import MODELS

KNOWN = ("model", "part", "stored", "B", "T", "tp", "dp")
"""The columns that a floor depends on."""
CACHE = {"fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp8", "int4": "bf16", "bf16": "bf16"}
"""The type of the KV cache is not published. A floor takes the smallest that engines use beside such weights."""
LEAST_RESERVE = 0.05
"""The least memory that an engine leaves free."""
PRECISION = {"fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp4", "int4": "int4", "bf16": "bf16"}
"""The precision of a step's weights."""
SHAPES = {
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "openai/gpt-oss-20b": "gpt-oss-20b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Llama-3.3-70B-Instruct": "llama-3.1-70b",
    "meta-llama/Llama-3.1-8B": "llama-3.1-8b",
    "meta-llama/Llama-3.1-405B": "llama-3.1-405b",
    "Qwen/Qwen3-32B": "qwen3-32b",
}
"""Models by the names of their repositories."""
WEIGHTS = {"fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "int4_wo": "int4", "bf16": "bf16"}


def read(package: Package, sources: dict[str, Any], constants: Mapping[str, Any]) -> Table:
    """The runs whose part and model are known. `constants` are those of kernels and of all-reduces, as in
    `expected.json`.

    Raises `BadRequest` if the package has no runs.
    """
    if "silicon_sample.csv" not in package.names:
        raise BadRequest(f"{package.where} holds no silicon_sample.csv")
    rows = pd.read_csv(io.BytesIO(package.read("silicon_sample.csv")), dtype={"backend_version": str})
    left_out: Counter[str] = Counter()

    def keep(mask: pd.Series[bool], but: str) -> None:
        nonlocal rows
        left_out[but] += int((~mask).sum())
        rows = rows[mask]

    keep(rows.system.map(PARTS).isin(DEVICES), "a part that `bench/devices` does not know")
    keep(rows.silicon_tpot_ms > 0, "no time per token")
    keep(rows["mode"] == "agg", "prompts and tokens on different workers: how they share requests is not published")

    def count(name: str) -> Any:
        return np.maximum(rows[name].fillna(1).to_numpy(), 1).astype(np.int32)

    stored = rows.gemm_quant_mode.astype(object).fillna(rows.precision).map(WEIGHTS).fillna("bf16")
    experts = rows.moe_quant_mode.astype(object).fillna(rows.precision).map(WEIGHTS).fillna("bf16")
    texts = {
        "model": rows.model_path,
        "part": rows.system.map(PARTS),
        "software": rows.backend,
        "version": rows.backend_version.fillna("not said"),
        "stored": stored,
        "experts": experts,
    }
    columns: dict[str, Any] = {}
    names: dict[str, tuple[str, ...]] = {}
    for name, values in texts.items():
        found, codes = np.unique(values.to_numpy().astype(str), return_inverse=True)
        columns[name], names[name] = codes.astype(np.int32), tuple(map(str, found))
    columns |= {
        "B": count("batch_size"),
        "prompt": rows.isl.to_numpy().astype(np.int32),
        "output": rows.osl.to_numpy().astype(np.int32),
        "T": (rows.isl + rows.osl // 2).to_numpy().astype(np.int32),
        "tp": count("tp_size"),
        "dp": count("attention_dp_size"),
        "ep": count("moe_ep_size"),
        "seconds": rows.silicon_tpot_ms.to_numpy() * 1e-3,
    }
    said = {**sources, "of": "InferenceX's public data, in silicon_sample.csv"}
    runs = Table(columns=columns, names=names, sources=said)
    floor = cache(partial(_floor, constants))
    floors = [floor(*each) for each in zip(*(_as_text(runs, name) for name in KNOWN), strict=True)]
    reasons = Counter(found for found in floors if isinstance(found, str))
    kept = np.array([not isinstance(found, str) for found in floors])
    if not kept.any():
        raise BadRequest(f"{package.where} holds no runs of whole servers whose part and model are known")
    numbers = np.array([found for found in floors if not isinstance(found, str)])
    runs = runs.take(np.flatnonzero(kept))
    more = dict(zip(("floor", "kernels", "layers", "reduces", "prefill"), numbers.T, strict=True))
    more["prefill"] = more["prefill"] * runs["prompt"] / runs["T"] * runs["B"] / runs["output"]
    more |= {name: more[name].astype(np.int32) for name in ("layers", "reduces")}
    return Table(columns={**runs.columns, **more}, names=names, sources=said, left_out=dict(left_out + reasons))


def _as_text(runs: Table, name: str) -> list[Any]:
    return (runs.text(name) if name in runs.names else runs[name]).tolist()


def _floor(
    constants: Mapping[str, Any], model: str, part: str, stored: str, B: int, T: int, tp: int, dp: int
) -> tuple[float, ...] | str:
    """Seconds of the floor and of the large kernels as expected, layers, all-reduces and the seconds of a prefill of T
    tokens; or why there are none."""
    if dp > 1:
        return "attention of each request on one part, experts on all: the step model splits tensors only"
    name = SHAPES.get(model)
    if name is None:
        return "a model whose shape is not in kernels/models"
    shape, spec = MODELS[name], find(part)
    if not shares_evenly(shape, tp):
        return "more parts than share the heads evenly"
    weights = recipe(shape, PRECISION[stored])
    kv, context = CACHE[stored], min(T, shape.max_context)
    asked: dict[str, Any] = {"weights": weights, "kv": kv, "context": context, "devices": tp}
    found = step(shape, device=spec, batch=B, reserve=LEAST_RESERVE, crossings=False, **asked)
    if found.max_batch and found.max_batch < B:  # the other requests wait
        found = step(shape, device=spec, batch=found.max_batch, crossings=False, **asked)
    reduces = sum(op.calls for op in found.ops if op.link_bytes)
    prefill = sum(op.seconds for op in found.prefill_ops)
    return found.seconds, kernel_seconds(found, shape, spec, constants)[0], shape.layers, reduces, prefill
