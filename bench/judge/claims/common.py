"""What several claims share: the models and parts they are about, and how records answer the usual questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache

from bench.devices import DeviceSpec, Quantity, find
from bench.judge.claims.base import Comparison, Measured, NoPrediction, Published, Unmeasured, record_ids, seconds
from bench.judge.interventions import LABELS
from bench.predict.step_model import OpPrediction, StepPrediction, step
from bench.predict.step_work import PRECISIONS, Load, prefill_loads
from bench.records import Record
from kernels.common.quantization import FORMATS
from kernels.models import (
    ModelShape,
    active_parameters,
    attention_projections,
    ffn_projections,
    model,
    projections,
)
from kernels.op import Work, discover, stored_as

LLAMA_70B = model("llama-3.1-70b")
LLAMA_8B = model("llama-3.1-8b")
LLAMA_2_7B = model("llama-2-7b")
"""The multi-head model: 32 KV heads for 32 query heads."""
DEEPSEEK_V3 = model("deepseek-v3")

H100 = "h100-sxm"
"""Key of the part that most claims are about."""
COMPARED_PARTS = {"a100-80": "A100", H100: "H100", "h200": "H200", "b200": "B200"}
"""The parts that the primer, source A, sets side by side, and its names for them."""


SHORT_CONTEXT = 128
"""Context at which a cache hardly counts: 42 MB of KV beside 141 GB of weights in Llama-3.1-70B."""


def datasheet_value(quantity: Quantity | None, what: str, part: DeviceSpec) -> float:
    """The number, or `NoPrediction` naming it."""
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
) -> StepPrediction:
    """`step_model.step` at the datasheet's roofline; `NoPrediction` where a needed number is unpublished."""
    result = step(
        shape,
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
    """A predicted value."""
    return Comparison(published=published, value=value, how=how, setting={k: str(v) for k, v in setting.items()})


def at_most(published: Published, value: float, how: str, **setting: object) -> Comparison:
    """The most that a predicted value can be."""
    return replace(predicted(published, value, how, **setting), bound="upper")


def at_least(published: Published, value: float, how: str, **setting: object) -> Comparison:
    """The least that a predicted value can be."""
    return replace(predicted(published, value, how, **setting), bound="lower")


def measured(published: Published, value: float, how: str, records: Iterable[Record], **setting: object) -> Comparison:
    """A measured value; `records` are what it was computed from."""
    ids = record_ids(records)
    assert ids, "a measured value names its records"
    return Comparison(
        published=published, value=value, how=how, setting={k: str(v) for k, v in setting.items()}, records=ids
    )


def bisect(f: Callable[[float], float], low: float, high: float, within: float = 0.001) -> float:
    """The x where a rising f crosses zero between `low` and `high`, to this relative accuracy."""
    while high / low > 1 + within:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if f(middle) >= 0 else (middle, high)
    return high


# ---------------------------------------------------------------------------------------------- reading records


def stored(record: Record) -> str:
    """How a record's weights are stored: `bf16` (fp16 too), or a name of `kernels.common.quantization.FORMATS`."""
    name = stored_as(record.case, "weights")
    return "bf16" if name == "fp16" else name


def cached(record: Record) -> str:
    """How a record's KV cache is stored."""
    name = stored_as(record.case, "kv")
    return "bf16" if name == "fp16" else name


WEIGHT_KINDS = {
    "fp32": "32-bit",
    "bf16": "16-bit",
    "fp8": "8-bit in 8-bit arithmetic",
    "w8a16": "8-bit in 16-bit arithmetic",
    "int4": "4-bit in 16-bit arithmetic",
}
"""Names of `bench.predict.step_work.PRECISIONS` in words; int8 and fp8 are alike to a roofline."""


def weight_kind(record: Record) -> str:
    """The words for a record's weights and the pipe that multiplies with them."""
    name = stored(record)
    if name in FORMATS:
        narrow = any(pipe in ("mma_fp8", "mma_int8") for pipe in record.work["flops"])
        name = "int4" if FORMATS[name].bits == 4 else "fp8" if narrow else "w8a16"
    return WEIGHT_KINDS[name]


def require_part(run: Measured, key: str) -> None:
    """Raises `Unmeasured` unless the run was made on that part."""
    if not run.on_gpu or run.part is None or run.part.key != key:
        raise Unmeasured(f"the run is of {run.device}; the claim is about the {find(key).name}")


def nominal_peak(run: Measured, pipe: str) -> float:
    """FLOP/s of the datasheet where the part is known, else as measured by `gemm_peak`."""
    quantity = run.part.peaks.get(pipe) if run.part else None
    return quantity.value if quantity else run.peak(pipe)


def gemv(run: Measured, *, weights: str | None = None, **fields: object) -> list[Record]:
    """The fastest implementation of each `ffn_gemv` case, of one kind of stored weights or all."""
    return [r for r in run.fastest("ffn_gemv", **fields) if weights is None or stored(r) == weights]


def attention(run: Measured, **fields: object) -> list[Record]:
    """The fastest implementation of each `attention_decode` case: full, uniform, one query token, unless said."""
    return run.fastest("attention_decode", **(discover()["attention_decode"].case_type.PLAIN | fields))


def require_records(records: Sequence[Record], what: str) -> Sequence[Record]:
    if not records:
        raise Unmeasured(f"the run holds no {what}")
    return records


def intensity_bracket(record: Record, run: Measured) -> tuple[float, float]:
    """FLOP per byte between which the truth lies, without counters.

    No more bytes can have been moved than the measured read roof moves in the time taken, and no fewer than the
    compulsory ones.
    """
    most_bytes = max(record.bytes, seconds(record) * run.ceilings.read_roof)
    return record.flops / most_bytes, record.flops / record.bytes


def weights_seconds(run: Measured, shape: ModelShape, *, weights: str, batch: int) -> tuple[float, list[Record]]:
    """Seconds that all weights of a token's pass take: time per weight of the model's measured layers x its weights.

    Raises `Unmeasured` without a layer of this model at this batch.
    """
    shapes = set(projections(shape).values())
    records = [
        r
        for r in gemv(run, weights=weights, B=batch)
        if r.case.get("model") == shape.name or (r.case["N"], r.case["K"]) in shapes
    ]
    require_records(records, f"`ffn_gemv` of a {shape.name} layer in {weights} at batch {batch}")
    elements = sum(r.case["N"] * r.case["K"] for r in records)
    return sum(seconds(r) for r in records) / elements * active_parameters(shape), records


def cache_seconds(run: Measured, shape: ModelShape) -> tuple[float, Record]:
    """Seconds that attention in all layers takes for each token in a 16-bit cache, from the largest case measured."""
    caches = [r for r in attention(run, model=shape.name) if cached(r) == "bf16"]
    record = max(require_records(caches, f"`attention_decode` of {shape.name} in bf16"), key=lambda r: r.bytes)
    return shape.layers * seconds(record) / (batch_of(record) * record.case["T"]), record


def prompt_seconds(run: Measured, shape: ModelShape, prompt: int) -> tuple[float, float, list[Record]]:
    """FLOP and seconds of all layers reading a prompt of that length in bf16, and the `prefill` records used.

    Weights at the rate of the model's measured projections; attention at that of the model's own, or else at the best
    of another model with heads of the same width. Raises `Unmeasured` without either.
    """
    layer = (attention_projections(shape) | ffn_projections(shape)).values()
    gemms = [
        r
        for r in run.fastest("prefill", kind="gemm", T=prompt, dtype="bf16")
        if r.case.get("model") == shape.name or (r.case["N"], r.case["K"]) in layer
    ]
    heads = run.fastest("prefill", kind="attention", T=prompt, dtype="bf16", D=shape.head_dim)
    heads = [r for r in heads if r.case.get("model") == shape.name] or heads
    what = f"`prefill` of {prompt} tokens in bf16"
    require_records(gemms, f"{what} through a {shape.name} projection")
    best = max(require_records(heads, f"{what} through attention of {shape.head_dim} wide heads"), key=rate)
    weights = 2 * prompt * sum(n * k for n, k in layer)
    scores = 4 * shape.head_dim * shape.heads * (prompt * (prompt + 1) // 2)
    per_weight_flop = sum(map(seconds, gemms)) / sum(r.flops for r in gemms)
    taken = shape.layers * (weights * per_weight_flop + scores / rate(best))
    return shape.layers * (weights + scores), taken, [*gemms, best]


def rate(record: Record) -> float:
    """FLOP/s."""
    return record.flops / seconds(record)


RISE = 1.5
"""How much longer than the smallest batch the largest must take, so that its time is taken to be proportional."""


def knee(records: Sequence[Record]) -> float:
    """The batch at which time turns from constant to proportional, of one layer swept over B.

    It is where the constant time of the smallest batch meets the line through the origin and the largest: the crossing
    itself under `max(memory, compute)`. Raises `Unmeasured` if the sweep has no small batch or ends before.
    """
    points = sorted((r.case["B"], seconds(r)) for r in records)
    (first, flat), (last, slow) = points[0], points[-1]
    if first > 8:
        raise Unmeasured("the run holds no batch of 8 or less of this layer")
    if slow < RISE * flat:
        raise Unmeasured(f"the sweep ends at batch {last}, before time has grown by {RISE}")
    return last * flat / slow


def sweeps(records: Iterable[Record], *fields: str) -> dict[tuple[object, ...], list[Record]]:
    """Records grouped by these fields of their case: each group is one axis swept."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.case.get(name) for name in fields), []).append(record)
    return groups


def alike(records: Iterable[Record], *but: str) -> list[list[Record]]:
    """Records grouped into those that agree in every field of their case but these and the name of their shape."""
    records = list(records)
    fields = dict.fromkeys(name for r in records for name in r.case if name not in (*LABELS, *but))
    return list(sweeps(records, *fields).values())


def by_batch(records: Iterable[Record]) -> dict[int, Record]:
    """The fastest record of each batch."""
    best: dict[int, Record] = {}
    for record in sorted(records, key=seconds, reverse=True):
        best[record.case["B"]] = record
    return best


def largest_layer(records: Sequence[Record]) -> list[Record]:
    """The batch sweep of the layer with most batches, the larger layer where several have as many."""
    groups = sweeps(records, "N", "K")
    key = max(groups, key=lambda nk: (len(by_batch(groups[nk])), nk[0] * nk[1]))  # type: ignore[operator]
    return list(by_batch(groups[key]).values())


def by_kind(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of 16 bits and less by the words for their weights, `WEIGHT_KINDS`."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.case["dtype"] != "fp32":
            groups.setdefault(weight_kind(record), []).append(record)
    return groups


def layer_sweeps(run: Measured, **fields: object) -> dict[str, list[Record]]:
    """For each kind of weights the batch sweep of its largest layer, the fastest implementation at each batch."""
    kinds = by_kind(run.fastest("ffn_gemv", **fields))
    return {kind: largest_layer(records) for kind, records in kinds.items()}


def bf16_sweep(run: Measured) -> Sequence[Record]:
    """That of 16-bit weights. Raises `Unmeasured`."""
    return require_records(layer_sweeps(run).get(WEIGHT_KINDS["bf16"], []), "`ffn_gemv` in bf16")


def pairs(
    records: Iterable[Record], label: Callable[[Record], object], first: object, second: object, *but: str
) -> list[tuple[Record, Record]]:
    """The fastest labelled `first` with the fastest labelled `second`, among records `alike` but for these fields."""
    found = []
    for group in alike(records, *but):
        best = {label(record): record for record in sorted(group, key=seconds, reverse=True)}
        if first in best and second in best:
            found.append((best[first], best[second]))
    return found


def require_comparisons(found: list[Comparison], what: str) -> list[Comparison]:
    if not found:
        raise Unmeasured(f"the run holds no {what}")
    return found


def batch_of(record: Record) -> int:
    return int(record.case["B"])


def total_work(parts: Iterable[OpPrediction | Load]) -> Work:
    return sum((part.work for part in parts), Work())


def prefill_intensity(prompt: float) -> float:
    """FLOP per byte of reading a prompt, Llama-3.1-70B in bf16."""
    bf16 = PRECISIONS["bf16"]
    return total_work(prefill_loads(LLAMA_70B, weights=bf16, kv=bf16, context=round(prompt), devices=1)).intensity
