"""What several claims share: the models and parts that they are about, and values predicted or measured for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

from bench.devices import DeviceSpec, Quantity, find
from bench.judge.claims.base import Comparison, NoPrediction, Published, record_ids
from bench.predict.step_model import StepPrediction, step
from bench.predict.step_work import PRECISIONS, StepOp, prefill_ops
from bench.records import Record
from kernels.models import ModelShape, model
from kernels.op import Work

LLAMA_70B = model("llama-3.1-70b")
LLAMA_8B = model("llama-3.1-8b")
LLAMA_2_7B = model("llama-2-7b")
"""A model with multi-head attention: 32 KV heads for 32 query heads."""
DEEPSEEK_V3 = model("deepseek-v3")

WEIGHT_KINDS = {
    "fp32": "32-bit",
    "bf16": "16-bit",
    "fp8": "8-bit in 8-bit arithmetic",
    "w8a16": "8-bit in 16-bit arithmetic",
    "int4": "4-bit in 16-bit arithmetic",
}
"""The names of `bench.predict.step_work.PRECISIONS` in words. A roofline does not tell int8 from fp8."""

H100 = "h100-sxm"
"""Key of the part that most claims are about."""
COMPARED_PARTS = {"a100-80": "A100", H100: "H100", "h200": "H200", "b200": "B200"}
"""The parts that the primer, source A, sets side by side, and its names for them."""

SHORT_CONTEXT = 128
"""A context whose cache hardly counts: 42 MB of KV beside 141 GB of weights in Llama-3.1-70B."""


def datasheet_value(quantity: Quantity | None, what: str, part: DeviceSpec) -> float:
    """The number. Raises `NoPrediction` if the vendor does not publish it."""
    if quantity is None:
        raise NoPrediction(f"no published {what} of {part.name}")
    return quantity.value


def bandwidth(part: DeviceSpec) -> float:
    return datasheet_value(part.memory_bandwidth, "memory bandwidth", part)


def peak(part: DeviceSpec, pipe: str) -> float:
    return datasheet_value(part.peaks.get(pipe), f"{pipe} peak", part)


def capacity(part: DeviceSpec) -> float:
    return datasheet_value(part.memory_capacity, "memory capacity", part)


def power(part: DeviceSpec) -> float:
    return datasheet_value(part.power, "power", part)


def ridge(part: DeviceSpec, pipe: str) -> float:
    """FLOP per byte above which arithmetic takes longer than memory."""
    return peak(part, pipe) / bandwidth(part)


@cache
def decode(
    shape: ModelShape,
    key: str = H100,
    *,
    weights: str = "bf16",
    kv: str = "bf16",
    batch: int = 1,
    context: int = 2048,
    devices: int = 1,
    q_len: int = 1,
    crossings: bool = False,
) -> StepPrediction:
    """`step_model.step` at the datasheet's roofline. Raises `NoPrediction` if a number that it needs is unpublished."""
    result = step(
        shape,
        crossings=crossings,
        device=find(key),
        weights=weights,
        kv=kv,
        batch=batch,
        context=context,
        devices=devices,
        q_len=q_len,
        reserve=0.0,
    )
    unknown = set(result.missing) - {"memory_capacity"}
    if unknown:
        raise NoPrediction(f"no published {', '.join(sorted(unknown))} of {find(key).name}")
    return result


def predicted(published: Published, value: float, how: str, **setting: object) -> Comparison:
    return Comparison(published=published, value=value, how=how, setting={k: str(v) for k, v in setting.items()})


def at_most(published: Published, value: float, how: str, **setting: object) -> Comparison:
    """The most that a predicted value can be."""
    return replace(predicted(published, value, how, **setting), bound="upper")


def at_least(published: Published, value: float, how: str, **setting: object) -> Comparison:
    """The least that a predicted value can be."""
    return replace(predicted(published, value, how, **setting), bound="lower")


def measured(published: Published, value: float, how: str, records: Iterable[Record], **setting: object) -> Comparison:
    """A measured value, and the records that it was computed from."""
    ids = record_ids(records)
    assert ids, "a measured value names its records"
    return replace(predicted(published, value, how, **setting), records=ids)


def bisect(f: Callable[[float], float], low: float, high: float, within: float = 0.001) -> float:
    """The x between `low` and `high` at which a rising f crosses zero, to this relative accuracy."""
    while high / low > 1 + within:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if f(middle) >= 0 else (middle, high)
    return high


def total_work(parts: Iterable[StepOp]) -> Work:
    return sum((part.work for part in parts), Work())


def prefill_intensity(prompt: float) -> float:
    """FLOP per byte of reading a prompt of this length, for Llama-3.1-70B in bf16."""
    bf16 = PRECISIONS["bf16"]
    return total_work(prefill_ops(LLAMA_70B, weights=bf16, kv=bf16, context=round(prompt), devices=1)).intensity
