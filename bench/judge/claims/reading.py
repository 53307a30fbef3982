"""How a run's records answer the questions that several claims ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from bench.ceilings import Ceilings
from bench.devices import find
from bench.judge.claims.base import Unmeasured
from bench.judge.claims.common import WEIGHT_KINDS
from bench.judge.interventions import LABELS
from bench.records import Record
from bench.run import Run
from kernels.common.quantization import FORMATS
from kernels.models import ModelShape, active_parameters, attention_projections, ffn_projections, projections
from kernels.op import discover, stored_as

T = TypeVar("T")


class MeasuredPart:
    """What one run measured on its part. Only times that can be trusted judge a claim. Reports show the others.

    Times of a host are those at the usual speed of its memory, so that cases can be compared.
    """

    def __init__(self, run: Run) -> None:
        run = run.at_usual_speed()
        self.device = run.device_name
        self.part = run.part
        """The part's row in the table of devices, or None if the table does not hold it."""
        self.name = run.part.name if run.part else run.device_name
        """The name that predictions use for the part, else the name that its driver gives."""
        self.on_gpu = run.on_gpu
        self.records = run.trusted
        self.find, self.fastest = run.find, run.fastest
        self._ceilings = run.ceilings

    @property
    def ceilings(self) -> Ceilings:
        """Raises `Unmeasured` if the run measured no read."""
        if self._ceilings is None:
            raise Unmeasured("the run holds no read of `stream`, so no measured bandwidth to compare with")
        return self._ceilings

    def peak(self, pipe: str) -> float:
        """Measured FLOP/s of a pipe. Raises `Unmeasured` if the run did not measure it."""
        peak = self._ceilings.pipes.get(pipe) if self._ceilings else None
        if peak is None:
            raise Unmeasured(f"the run holds no `gemm_peak` of {pipe}")
        return peak


def seconds(record: Record) -> float:
    """Median seconds of a record that has samples."""
    value = record.seconds
    assert value is not None
    return value


def weight_format(record: Record) -> str:
    """How a record's weights are stored: `bf16` (for fp16 too), or a name of `kernels.common.quantization.FORMATS`."""
    name = stored_as(record.case, "weights")
    return "bf16" if name == "fp16" else name


def cache_format(record: Record) -> str:
    """How a record's KV cache is stored: `bf16` (for fp16 too) or `fp8`."""
    name = stored_as(record.case, "kv")
    return "bf16" if name == "fp16" else name


def weight_kind(record: Record) -> str:
    """The words for a record's weights and for the arithmetic that multiplies with them."""
    name = weight_format(record)
    if name in FORMATS:
        narrow = any(pipe in ("mma_fp8", "mma_int8") for pipe in record.work["flops"])
        name = "int4" if FORMATS[name].bits == 4 else "fp8" if narrow else "w8a16"
    return WEIGHT_KINDS[name]


def require_part(run: MeasuredPart, key: str) -> None:
    """Raises `Unmeasured` unless the run was made on that part."""
    if not run.on_gpu or run.part is None or run.part.key != key:
        raise Unmeasured(f"the run is of {run.device}; the claim is about the {find(key).name}")


def nominal_peak(run: MeasuredPart, pipe: str) -> float:
    """FLOP/s of the datasheet if the part is known, else those that `gemm_peak` measured."""
    quantity = run.part.peaks.get(pipe) if run.part else None
    return quantity.value if quantity else run.peak(pipe)


def gemv(run: MeasuredPart, *, weights: str | None = None, **fields: object) -> list[Record]:
    """The fastest implementation of each `ffn_gemv` case, with weights of one format or of all."""
    return [r for r in run.fastest("ffn_gemv", **fields) if weights is None or weight_format(r) == weights]


def attention(run: MeasuredPart, **fields: object) -> list[Record]:
    """The fastest implementation of each plain `attention_decode` case. `fields` replace those of a plain case."""
    return run.fastest("attention_decode", **(discover()["attention_decode"].case_type.PLAIN | fields))


def require_some(found: list[T], what: str) -> list[T]:
    """Raises `Unmeasured` if nothing was found."""
    if not found:
        raise Unmeasured(f"the run holds no {what}")
    return found


def intensity_bracket(record: Record, run: MeasuredPart) -> tuple[float, float]:
    """The least and the most FLOP per byte that the time allows, without counters.

    The kernel cannot have moved more bytes than the measured read roof moves in its time, nor fewer than the
    compulsory ones.
    """
    most_bytes = max(record.bytes, seconds(record) * run.ceilings.read_roof)
    return record.flops / most_bytes, record.flops / record.bytes


def weights_seconds(run: MeasuredPart, shape: ModelShape, *, weights: str, batch: int) -> tuple[float, list[Record]]:
    """Seconds to read all weights for a token: the measured layers' time per weight x the model's weights.

    Raises `Unmeasured` without a layer of this model at this batch.
    """
    shapes = set(projections(shape).values())
    records = [
        r
        for r in gemv(run, weights=weights, B=batch)
        if r.case.get("model") == shape.name or (r.case["N"], r.case["K"]) in shapes
    ]
    require_some(records, f"`ffn_gemv` of a {shape.name} layer in {weights} at batch {batch}")
    elements = sum(r.case["N"] * r.case["K"] for r in records)
    return sum(seconds(r) for r in records) / elements * active_parameters(shape), records


def cache_seconds(run: MeasuredPart, shape: ModelShape) -> tuple[float, Record]:
    """Seconds of attention in all layers for each token in a 16-bit cache, from the largest case that was measured."""
    caches = [r for r in attention(run, model=shape.name) if cache_format(r) == "bf16"]
    record = max(require_some(caches, f"`attention_decode` of {shape.name} in bf16"), key=lambda r: r.bytes)
    return shape.layers * seconds(record) / (batch_of(record) * record.case["T"]), record


def prompt_seconds(run: MeasuredPart, shape: ModelShape, prompt: int) -> tuple[float, float, list[Record]]:
    """FLOP and seconds of all layers that read a prompt of this length in bf16, and the `prefill` records used.

    Weights take the rate of the model's measured projections. Attention takes the best rate measured for the model, or
    else for another model with heads of the same width. Raises `Unmeasured` if either is missing.
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
    require_some(gemms, f"{what} through a {shape.name} projection")
    best = max(require_some(heads, f"{what} through attention of {shape.head_dim} wide heads"), key=flop_rate)
    weights = 2 * prompt * sum(n * k for n, k in layer)
    scores = 4 * shape.head_dim * shape.heads * (prompt * (prompt + 1) // 2)
    per_weight_flop = sum(map(seconds, gemms)) / sum(r.flops for r in gemms)
    taken = shape.layers * (weights * per_weight_flop + scores / flop_rate(best))
    return shape.layers * (weights + scores), taken, [*gemms, best]


def flop_rate(record: Record) -> float:
    """FLOP/s."""
    return record.flops / seconds(record)


MIN_GROWTH = 1.5
"""The largest batch counts as proportional if it takes at least this many times as long as the smallest."""


def knee(records: Sequence[Record]) -> float:
    """The batch at which the time of one layer, swept over B, turns from constant to proportional.

    There the constant time of the smallest batch meets the line through the origin and the largest batch. If time is
    `max(memory, compute)`, this is the crossing itself. Raises `Unmeasured` if the sweep has no small batch or ends
    before the crossing.
    """
    points = sorted((r.case["B"], seconds(r)) for r in records)
    (first, flat), (last, slow) = points[0], points[-1]
    if first > 8:
        raise Unmeasured("the run holds no batch of 8 or less of this layer")
    if slow < MIN_GROWTH * flat:
        raise Unmeasured(f"the sweep ends at batch {last}, before time has grown by {MIN_GROWTH}")
    return last * flat / slow


def group_by(records: Iterable[Record], *fields: str) -> dict[tuple[object, ...], list[Record]]:
    """Records grouped by these fields of their case."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.case.get(name) for name in fields), []).append(record)
    return groups


def comparable(records: Iterable[Record], *but: str) -> list[list[Record]]:
    """Groups of records that agree in all fields of their case, except these fields and the name of their shape."""
    records = list(records)
    fields = dict.fromkeys(name for r in records for name in r.case if name not in (*LABELS, *but))
    return list(group_by(records, *fields).values())


def fastest_by_batch(records: Iterable[Record]) -> dict[int, Record]:
    """The fastest record of each batch."""
    best: dict[int, Record] = {}
    for record in sorted(records, key=seconds, reverse=True):
        best[record.case["B"]] = record
    return best


def largest_layer_sweep(records: Sequence[Record]) -> list[Record]:
    """The batch sweep of the layer with the most batches, or of the largest of several such layers."""
    groups = group_by(records, "N", "K")
    key = max(groups, key=lambda nk: (len(fastest_by_batch(groups[nk])), nk[0] * nk[1]))  # type: ignore[operator]
    return list(fastest_by_batch(groups[key]).values())


def by_weight_kind(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of 16 bits and less, by the words for their weights in `WEIGHT_KINDS`."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.case["dtype"] != "fp32":
            groups.setdefault(weight_kind(record), []).append(record)
    return groups


def layer_sweeps(run: MeasuredPart, **fields: object) -> dict[str, list[Record]]:
    """For each kind of weights, the fastest implementation of its largest layer at each batch."""
    kinds = by_weight_kind(run.fastest("ffn_gemv", **fields))
    return {kind: largest_layer_sweep(records) for kind, records in kinds.items()}


def bf16_sweep(run: MeasuredPart) -> list[Record]:
    """The batch sweep of 16-bit weights. Raises `Unmeasured` if there is none."""
    return require_some(layer_sweeps(run).get(WEIGHT_KINDS["bf16"], []), "`ffn_gemv` in bf16")


def pairs(
    records: Iterable[Record], label: Callable[[Record], object], first: object, second: object, *but: str
) -> list[tuple[Record, Record]]:
    """The fastest record labelled `first` and the fastest labelled `second`, of each `comparable` group with both."""
    found = []
    for group in comparable(records, *but):
        best = {label(record): record for record in sorted(group, key=seconds, reverse=True)}
        if first in best and second in best:
            found.append((best[first], best[second]))
    return found


def batch_of(record: Record) -> int:
    return int(record.case["B"])
