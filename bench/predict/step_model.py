"""ModelShape x device x batch x context -> a decode step: time by operation, memory, largest batch, $ and J.

Pure: no torch, no I/O. Each operation is a `kernels.op.Work` per device and takes as long as its longest term:

    seconds = max(bytes / memory bandwidth, FLOP / peak of its pipe, link bytes / link bandwidth) / efficiency

A step takes the sum of its operations, since each needs the result of the one before. Without `efficiency` this is the
roofline of the datasheet. With measured fractions it is a calibrated prediction. `basis` says which of them it is.

Counted: weights and KV cache with their scales, activations in and out of each matrix, ring all-reduces. Not counted:
launches, norms, rotary embedding, sampling, link latency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bench.devices import DeviceSpec, Quantity
from bench.errors import BadRequest, require, unknown
from bench.predict.step_cache import held_bytes, token_bytes
from bench.predict.step_op import StepOp
from bench.predict.step_work import decode_ops, prefill_ops
from bench.predict.weights import PRECISIONS, Precision, WeightPlan
from kernels.models import ModelShape

RESERVE = 0.1
"""The default share of memory kept for activations and the runtime: vLLM's gpu_memory_utilization is 0.9."""
UNCOUNTED = "launches, norms, sampling and the latency of links are not counted"
MOST = 1 << 30
"""No batch, context or number of devices is larger."""
LARGEST_BATCH = 1 << 20
"""The search for `crossing_batch` ends here."""


class NotPublished(BadRequest):
    """Nothing can be predicted, because the vendor does not publish a number; the message names it."""


@dataclass(frozen=True, kw_only=True)
class PredictedOp(StepOp):
    """An operation of a step with its predicted time."""

    seconds: float
    terms: Mapping[str, float]
    """Seconds by roof (`memory`, a pipe, `link`), before the efficiency."""
    bound: str
    """The largest term."""
    efficiency: float
    crossing_batch: int | None
    """The smallest batch at which its arithmetic takes longer than its memory traffic. None: no batch, or a prefill."""
    missing: tuple[str, ...]
    """Roofs whose number is not published. If there are any, `seconds` is a lower bound and no crossing is known."""

    @property
    def intensity(self) -> float:
        """FLOP per byte of memory."""
        return self.work.intensity


@dataclass(frozen=True, kw_only=True)
class StepPrediction:
    """One decode step, in which each of `batch` requests gets one token. Seconds, bytes, joules."""

    model: str
    device: str
    """Key of the `DeviceSpec`."""
    devices: int
    weights: str
    kv: str
    batch: int
    context: int
    q_len: int = 1
    """Tokens of each request in a step."""
    basis: str
    """`datasheet roofline of ...`, then the measured fractions if there are any. Instead of `datasheet` it may say
    `derived` or `measured`, as the bandwidth is."""
    notes: tuple[str, ...] = ()
    """What the reader must know about this combination."""
    ops: tuple[PredictedOp, ...]
    """In order of execution; layers are summed."""
    seconds: float
    """Time per output token (TPOT) of every request in the batch."""
    weight_bytes: int
    """All weights as stored, over all devices, with scales as if every row had as many columns as the hidden size."""
    weight_seconds: float
    """The time to read this step's weights at full bandwidth. No step is faster."""
    kv_seconds: float
    """The time to read the batch's KV cache at full bandwidth."""
    kv_bytes_per_token: float
    kv_bytes_per_request: float
    state_bytes_per_request: int
    """The part of `kv_bytes_per_request` whose size does not depend on the context: states of mixers that are no
    attention."""
    kv_copies: float
    """How many copies of a request's cache all devices together hold. An MLA latent is on every device, and a KV head
    that several devices share is on each of them."""
    reserve_bytes: int
    """Memory that is kept free, over all devices."""
    capacity_bytes: int | None
    """The memory of all devices; None where the vendor does not publish it."""
    max_batch: int | None
    """How many requests of this context fit beside weights and reserve; 0 if not even one fits."""
    prefill_ops: tuple[PredictedOp, ...]
    """The operations that read a prompt of `context` tokens, one request at a time, always at the roofline."""
    power_watts: float | None
    """The rated power of all devices, an upper bound of what they draw."""
    missing: tuple[str, ...] = ()
    """Numbers that the vendor does not publish. If an operation needs one of them, `seconds` is a lower bound."""

    @property
    def bound(self) -> str:
        """The roof under which the step spends most of its time."""
        spent: dict[str, float] = {}
        for op in self.ops:
            spent[op.bound] = spent.get(op.bound, 0.0) + op.seconds
        return max(spent, key=spent.__getitem__)

    @property
    def fits(self) -> bool | None:
        """Whether this batch fits into memory at this context; None where the capacity is not published."""
        return None if self.max_batch is None else self.batch <= self.max_batch

    @property
    def tokens_per_second_per_user(self) -> float:
        return 1 / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """The rate of all requests together."""
        return self.batch / self.seconds

    @property
    def mbu(self) -> float:
        """The share of the step in which the memory is busy: the bytes of all operations over what it could move."""
        return sum(op.terms.get("memory", 0.0) for op in self.ops) / self.seconds

    @property
    def mfu(self) -> float | None:
        """The same of arithmetic: FLOPs over what the pipes could do. None where a peak is not published."""
        if any(set(op.missing) - {"link"} for op in self.ops):
            return None
        return sum(op.terms.get(pipe, 0.0) for op in self.ops for pipe in op.work.flops) / self.seconds

    @property
    def joules_per_token_at_rated_power(self) -> float | None:
        """Rated power x predicted time. It is no bound: boards may draw less, and steps may take longer."""
        return None if self.power_watts is None else self.power_watts / self.tokens_per_second

    @property
    def prefill_seconds(self) -> float:
        """The time of a whole prompt. Raises `NotPublished` where a peak is missing: arithmetic bounds prefill."""
        missing = sorted({roof for op in self.prefill_ops for roof in op.missing})
        if missing:
            raise NotPublished(f"{', '.join(missing)} of {self.device} is not published: prefill cannot be predicted")
        return sum(op.seconds for op in self.prefill_ops)

    @property
    def prefill_seconds_per_token(self) -> float:
        return self.prefill_seconds / self.context

    @property
    def output_to_input_ratio(self) -> float:
        """The device time of an output token over the device time of an input token."""
        return self.seconds / self.batch / self.prefill_seconds_per_token

    def dollars_per_million_tokens(self, dollars_per_hour: float) -> float:
        """The price of output tokens; `dollars_per_hour` is for one device."""
        return dollars_per_hour * self.devices / 3600 * 1e6 / self.tokens_per_second

    def dollars_per_million_input_tokens(self, dollars_per_hour: float) -> float:
        return dollars_per_hour * self.devices / 3600 * 1e6 * self.prefill_seconds_per_token

    def op(self, name: str) -> PredictedOp:
        """The operation of that name. Raises `BadRequest` if there is none."""
        for op in self.ops:
            if op.name == name:
                return op
        raise unknown("operation", name, [op.name for op in self.ops])


def _terms(op: StepOp, device: DeviceSpec) -> tuple[dict[str, float], set[str]]:
    """Seconds by roof, and the roofs that the device's vendor does not publish."""
    needs = {"memory": (op.work.bytes, device.memory_bandwidth)}
    needs |= {pipe: (flops, device.peaks.get(pipe)) for pipe, flops in op.work.flops.items()}
    switched = op.switched_bytes if device.reduces_in_switch else 0
    needs["link"] = (min(op.link_bytes, switched or op.link_bytes), device.link_bandwidth)
    needed = {roof: pair for roof, pair in needs.items() if pair[0]}
    terms = {roof: amount / peak.value for roof, (amount, peak) in needed.items() if peak is not None}
    return terms, needed.keys() - terms.keys()


def _is_compute_bound(terms: Mapping[str, float]) -> bool:
    """Whether a pipe takes longer than the memory does. The link does not count."""
    pipes = [seconds for roof, seconds in terms.items() if roof not in ("memory", "link")]
    return "memory" in terms and max(pipes, default=0.0) >= terms["memory"]


def _crossings(ops_at: Callable[[int], list[StepOp]], device: DeviceSpec) -> dict[str, int | None]:
    """The smallest compute-bound batch of each operation.

    The search doubles the batch until the operation is compute-bound, and then bisects. An operation's intensity never
    falls as the batch grows, so it crosses once or never.
    """
    tried: dict[int, dict[str, bool]] = {}

    def bound_at(batch: int, name: str) -> bool:
        if batch not in tried:
            tried[batch] = {op.name: _is_compute_bound(_terms(op, device)[0]) for op in ops_at(batch)}
        return tried[batch][name]

    def search(name: str) -> int | None:
        high = 1
        while not bound_at(high, name):
            high *= 2
            if high > LARGEST_BATCH:
                return None
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if bound_at(middle, name) else (middle, high)
        return high

    return {op.name: search(op.name) for op in ops_at(1)}


def _pipe_on(device: DeviceSpec, precision: Precision) -> Precision:
    """The precision as the device uses it: without a published peak of a narrow type, it multiplies in 16 bits."""
    if precision.pipe in device.peaks or precision.bytes >= 2 or "mma_bf16" not in device.peaks:
        return precision
    return replace(precision, pipe="mma_bf16")


def _check(
    shape: ModelShape,
    weights: str | WeightPlan,
    kv: str,
    batch: int,
    context: int,
    devices: int,
    q_len: int,
    reserve: float,
    beyond: bool,
) -> None:
    """Raises `BadRequest` for a request that cannot be predicted."""
    if isinstance(weights, str) and weights not in PRECISIONS:
        raise unknown("weight precision", weights, PRECISIONS)
    if kv not in PRECISIONS or kv == "w8a16":
        raise unknown("KV precision", kv, [name for name in PRECISIONS if name != "w8a16"])
    for kind, number in (("batch", batch), ("context", context), ("devices", devices), ("q_len", q_len)):
        if number < 1:
            raise BadRequest(f"{kind} must be at least 1, not {number}")
        if number > MOST:
            raise BadRequest(f"{kind} must be at most {MOST:,}")
    if context > shape.max_context and not beyond:
        raise BadRequest(f"context {context} is beyond {shape.name}'s longest, {shape.max_context}")
    if not 0 <= reserve < 1:
        raise BadRequest(f"reserve must be a share from 0 to below 1, not {reserve}")


def step(
    shape: ModelShape,
    *,
    device: DeviceSpec,
    weights: str | WeightPlan = "bf16",
    kv: str = "bf16",
    batch: int,
    context: int,
    devices: int = 1,
    efficiency: Mapping[str, float] | None = None,
    q_len: int = 1,
    reserve: float = RESERVE,
    beyond: bool = False,
    crossings: bool = True,
) -> StepPrediction:
    """One decode step of `batch` requests that attend to `context` tokens each, on `devices` tensor-parallel parts.

    Where devices cannot have equally many heads, the step waits for the device that has most of them.

    - `weights`, `kv`: names of `PRECISIONS`; a precision of weights then counts for all of them. A `WeightPlan` has a
      precision for each kind of module
    - `efficiency`: the achieved fraction, in (0, 1], of the roof that bounds, by operation of the step (`gate_up`); an
      operation that is not named runs at the roof, as prefill does
    - `q_len`: tokens verified per request and pass (speculative decoding); token rates still count one token per pass
    - `reserve`: the share of memory that is kept free when the largest batch is computed
    - `beyond`: whether the context may be longer than the longest of the model
    - `crossings`: whether to search for `crossing_batch`, which takes nine tenths of the time; else it is None

    Raises `BadRequest`; and `NotPublished` for a part without a published memory bandwidth.
    """
    _check(shape, weights, kv, batch, context, devices, q_len, reserve, beyond)
    if device.memory_bandwidth is None:
        raise NotPublished(f"no memory bandwidth of {device.name} is published: its decode step cannot be predicted")
    stored = WeightPlan(name=weights, base=PRECISIONS[weights]) if isinstance(weights, str) else weights
    cache = PRECISIONS[kv]
    weight = stored.on(lambda precision: _pipe_on(device, precision))

    def ops_at(size: int) -> list[StepOp]:
        return decode_ops(shape, weights=weight, kv=cache, batch=size, context=context, devices=devices, q_len=q_len)

    decode = ops_at(batch)
    prefill = prefill_ops(shape, weights=weight, kv=cache, context=context, devices=devices)
    fractions = efficiency or {}
    _check_efficiency(fractions, decode)
    crossing = _crossings(ops_at, device) if crossings else {}

    def predicted(op: StepOp, share: float = 1.0, crossing: int | None = None) -> PredictedOp:
        terms, absent = _terms(op, device)
        return PredictedOp(
            **vars(op),
            seconds=max(terms.values(), default=0.0) / share,
            terms=terms,
            bound=max(terms, key=terms.__getitem__, default="unknown"),
            efficiency=share,
            crossing_batch=crossing,
            missing=tuple(sorted(absent)),
        )

    ops = tuple(predicted(op, fractions.get(op.name, 1.0), crossing.get(op.name)) for op in decode)
    missing = {roof for op in ops for roof in op.missing}
    bandwidth = device.memory_bandwidth.value
    capacity = round(device.memory_capacity.value) * devices if device.memory_capacity else None
    missing |= {name for name in ("memory_capacity", "power") if getattr(device, name) is None}
    weight_bytes = stored.total_bytes(shape)
    request_bytes, copied_bytes = held_bytes(shape, context, cache, devices)
    kept = round(reserve * (capacity or 0))
    return StepPrediction(
        model=shape.name,
        device=device.key,
        devices=devices,
        weights=stored.name,
        kv=kv,
        batch=batch,
        context=context,
        q_len=q_len,
        basis=_basis(device.memory_bandwidth, device, fractions),
        notes=(
            UNCOUNTED if fractions else f"a floor: {UNCOUNTED}",
            *_split_notes(shape, decode),
            *stored.notes,
            *_pipe_notes(device, stored, weight),
            *_length_notes(shape, context),
            *([device.note] if device.note else []),
        ),
        ops=ops,
        seconds=sum(op.seconds for op in ops),
        weight_bytes=weight_bytes,
        weight_seconds=sum(op.weight_bytes for op in ops) / bandwidth,
        kv_seconds=sum(op.kv_bytes for op in ops) / bandwidth,
        kv_bytes_per_token=token_bytes(shape, cache),
        kv_bytes_per_request=request_bytes,
        state_bytes_per_request=shape.state_bytes_per_request,
        kv_copies=copied_bytes / request_bytes if request_bytes else 1.0,
        reserve_bytes=kept,
        capacity_bytes=capacity,
        max_batch=capacity and max(0, int((capacity - kept - weight_bytes) // (copied_bytes or 1))),
        prefill_ops=tuple(map(predicted, prefill)),
        power_watts=device.power.value * devices if device.power else None,
        missing=tuple(sorted(missing)),
    )


def _check_efficiency(efficiency: Mapping[str, float], ops: list[StepOp]) -> None:
    """Raises `BadRequest` for an unknown operation or a share outside (0, 1]."""
    require("operation", efficiency, [op.name for op in ops])
    for name, share in efficiency.items():
        if not 0 < share <= 1:
            raise BadRequest(f"efficiency of {name} must be above 0 and at most 1, not {share}")


def _basis(bandwidth: Quantity, device: DeviceSpec, efficiency: Mapping[str, float]) -> str:
    roofline = f"{bandwidth.kind} roofline of {device.name}"
    if not efficiency:
        return roofline
    return f"{roofline} at measured fractions: " + ", ".join(f"{k} {v:.2f}" for k, v in efficiency.items())


def _split_notes(shape: ModelShape, ops: list[StepOp]) -> list[str]:
    """What splitting the model among devices costs beyond what is counted."""
    reduces = sum(op.calls for op in ops if op.link_bytes)
    if not reduces:
        return []
    notes = [f"{reduces} all-reduces a step: each microsecond of their latency adds {reduces / 1e3:g} ms"]
    if shape.is_moe:
        notes.append("each expert is cut evenly; were experts whole, a step would wait for the device with most hits")
    return notes


def _pipe_notes(device: DeviceSpec, stored: WeightPlan, used: WeightPlan) -> list[str]:
    absent = sorted({p.pipe for p in stored.precisions()} - {p.pipe for p in used.precisions()})
    return [
        f"{device.name} has no published {pipe} peak: {stored.name} weights are multiplied in 16 bits"
        for pipe in absent
    ]


def _length_notes(shape: ModelShape, context: int) -> list[str]:
    if context <= shape.max_context:
        return []
    return [f"{context:,} tokens are beyond the {shape.max_context:,} that {shape.name} is made for"]
