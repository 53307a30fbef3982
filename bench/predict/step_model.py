"""ModelShape x device x batch x context -> a decode step: time by operation, memory, largest batch, $ and J.

Pure: no torch, no I/O. Each operation is a `kernels.op.Work` per device and takes the longest of its terms:

    seconds = max(bytes / memory bandwidth, FLOP / peak of its pipe, link bytes / link bandwidth) / efficiency

and a step is the sum of its operations, since each needs the result of the one before. Without `efficiency` that
is the roofline of the datasheet; with measured fractions it is a calibrated prediction; `basis` says which.

Counted: weights, KV cache, activations in and out of each matrix, ring all-reduces. Not counted: launches, norms,
rotary embedding, sampling, scales of quantized numbers, link latency.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.devices import DeviceSpec, Quantity
from bench.errors import BadRequest, require, unknown
from bench.predict.step_work import PRECISIONS, Load, Precision, decode_loads, kv_share, prefill_loads
from kernels.models import ModelShape, kv_bytes, kv_bytes_per_token, parameters
from kernels.op import Work

RESERVE = 0.1
"""Default share of memory kept for activations and the runtime, as with vLLM's gpu_memory_utilization of 0.9."""
UNCOUNTED = "launches, norms, sampling and the latency of links are not counted"
LARGEST_BATCH = 1 << 20
"""`crossing_batch` looks no further."""


class NotPublished(BadRequest):
    """A number without which nothing can be predicted is not published; the message names it."""


@dataclass(frozen=True, kw_only=True)
class OpPrediction:
    """One operation of a step, all layers together, on one of the devices that share it."""

    name: str
    measured_as: str
    """The operation of `kernels/` that measures this one, `""` for none."""
    work: Work
    link_bytes: int = 0
    """Sent by each device, one direction."""
    calls: int
    seconds: float
    terms: Mapping[str, float]
    """Seconds by roof: `memory`, a pipe, `link`; before the efficiency."""
    bound: str
    """The largest term."""
    efficiency: float = 1.0
    crossing_batch: int | None = None
    """Smallest batch at which its arithmetic takes longer than its memory traffic; None: no batch (or a prefill)."""
    missing: tuple[str, ...] = ()
    """Roofs whose number is not published: `seconds` is then a lower bound and a crossing is not known."""

    @property
    def intensity(self) -> float:
        """FLOP per byte of memory."""
        return self.work.intensity


@dataclass(frozen=True, kw_only=True)
class StepPrediction:
    """One decode step: `batch` requests get one token each. Seconds, bytes, joules."""

    model: str
    device: str
    """Key of the `DeviceSpec`."""
    devices: int
    weights: str
    kv: str
    batch: int
    context: int
    basis: str
    """`datasheet roofline of ...` (or `derived`, `measured`: the kind of the bandwidth), and any measured fractions."""
    notes: tuple[str, ...] = ()
    """What the reader must know of this combination."""
    ops: tuple[OpPrediction, ...]
    """In order of execution; layers are summed."""
    seconds: float
    """Time per output token (TPOT) of every request in the batch."""
    weight_bytes: int
    """All weights as stored, over all devices."""
    weight_seconds: float
    """Reading this step's weights at full bandwidth: the floor under the step."""
    kv_seconds: float
    """Reading the batch's KV cache at full bandwidth."""
    kv_bytes_per_token: float
    kv_bytes_per_request: float
    kv_copies: float
    """How often the devices together hold a request's cache: an MLA latent, and a KV head that has several devices, is
    on each of them."""
    reserve_bytes: int
    """Kept free, over all devices."""
    capacity_bytes: int | None
    """Memory of all devices; None where unpublished."""
    max_batch: int | None
    """Requests of this context that fit beside weights and reserve; 0 where not even one does."""
    prefill_ops: tuple[OpPrediction, ...]
    """Reading a prompt of `context` tokens, one request at a time, always at the roofline."""
    power_watts: float | None
    """Rated power of all devices: an upper bound of what they draw."""
    missing: tuple[str, ...] = ()
    """Numbers that the vendor does not publish; those that an operation misses make `seconds` a lower bound."""

    @property
    def bound(self) -> str:
        """The roof that most of the step's time is spent under."""
        spent: dict[str, float] = {}
        for op in self.ops:
            spent[op.bound] = spent.get(op.bound, 0.0) + op.seconds
        return max(spent, key=spent.__getitem__)

    @property
    def fits(self) -> bool | None:
        """Whether this batch at this context fits; None where the capacity is unpublished."""
        return None if self.max_batch is None else self.batch <= self.max_batch

    @property
    def tokens_per_second_per_user(self) -> float:
        return 1 / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Of all requests together."""
        return self.batch / self.seconds

    @property
    def joules_per_token_at_rated_power(self) -> float | None:
        """Rated power x the predicted time: no bound, since boards may draw less and steps take longer than that."""
        return None if self.power_watts is None else self.power_watts / self.tokens_per_second

    @property
    def prefill_seconds(self) -> float:
        """Of a whole prompt. Raises `NotPublished` where a peak is missing: prefill is bound by arithmetic."""
        missing = sorted({roof for op in self.prefill_ops for roof in op.missing})
        if missing:
            raise NotPublished(f"{', '.join(missing)} of {self.device} is not published: prefill cannot be predicted")
        return sum(op.seconds for op in self.prefill_ops)

    @property
    def prefill_seconds_per_token(self) -> float:
        return self.prefill_seconds / self.context

    @property
    def output_to_input_ratio(self) -> float:
        """Device time of an output token over that of an input token."""
        return self.seconds / self.batch / self.prefill_seconds_per_token

    def dollars_per_million_tokens(self, dollars_per_hour: float) -> float:
        """Output tokens; the price is per device."""
        return dollars_per_hour * self.devices / 3600 * 1e6 / self.tokens_per_second

    def dollars_per_million_input_tokens(self, dollars_per_hour: float) -> float:
        return dollars_per_hour * self.devices / 3600 * 1e6 * self.prefill_seconds_per_token

    def op(self, name: str) -> OpPrediction:
        """The operation of that name. Raises `BadRequest`."""
        for op in self.ops:
            if op.name == name:
                return op
        raise unknown("operation", name, [op.name for op in self.ops])


def _terms(load: Load, device: DeviceSpec) -> tuple[dict[str, float], set[str]]:
    """Seconds by roof, and the roofs that the device's vendor does not publish."""
    needs = {"memory": (load.work.bytes, device.memory_bandwidth)}
    needs |= {pipe: (flops, device.peaks.get(pipe)) for pipe, flops in load.work.flops.items()}
    needs["link"] = (load.link_bytes, device.link_bandwidth)
    needed = {roof: pair for roof, pair in needs.items() if pair[0]}
    terms = {roof: amount / peak.value for roof, (amount, peak) in needed.items() if peak is not None}
    return terms, needed.keys() - terms.keys()


def _is_compute_bound(terms: Mapping[str, float]) -> bool:
    """Whether a pipe takes longer than the memory, the link aside."""
    pipes = [seconds for roof, seconds in terms.items() if roof not in ("memory", "link")]
    return "memory" in terms and max(pipes, default=0.0) >= terms["memory"]


def _crossings(loads_at: Callable[[int], list[Load]], device: DeviceSpec) -> dict[str, int | None]:
    """Smallest compute-bound batch of each operation: doubled until found, then bisected.

    An operation's intensity never falls as the batch grows, so there is one such batch or none.
    """
    tried: dict[int, dict[str, bool]] = {}

    def bound_at(batch: int, name: str) -> bool:
        if batch not in tried:
            loads = loads_at(batch)
            tried[batch] = {load.name: _is_compute_bound(_terms(load, device)[0]) for load in loads}
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

    return {load.name: search(load.name) for load in loads_at(1)}


def _pipe_on(device: DeviceSpec, precision: Precision) -> Precision:
    """Where no peak of that narrow type is published, weights are read narrow and multiplied in 16 bits."""
    if precision.pipe in device.peaks or precision.bytes >= 2 or "mma_bf16" not in device.peaks:
        return precision
    return Precision(bytes=precision.bytes, pipe="mma_bf16")


def _check(
    shape: ModelShape,
    weights: str,
    kv: str,
    batch: int,
    context: int,
    devices: int,
    q_len: int,
    reserve: float,
) -> None:
    """Raises `BadRequest` for what no prediction can be made of."""
    if weights not in PRECISIONS:
        raise unknown("weight precision", weights, PRECISIONS)
    if kv not in PRECISIONS or kv == "w8a16":
        raise unknown("KV precision", kv, [name for name in PRECISIONS if name != "w8a16"])
    for kind, number in (("batch", batch), ("context", context), ("devices", devices), ("q_len", q_len)):
        if number < 1:
            raise BadRequest(f"{kind} must be at least 1, not {number}")
    if context > shape.max_context:
        raise BadRequest(f"context {context} is beyond {shape.name}'s longest, {shape.max_context}")
    if not 0 <= reserve < 1:
        raise BadRequest(f"reserve must be a share from 0 to below 1, not {reserve}")


def step(
    shape: ModelShape,
    *,
    device: DeviceSpec,
    weights: str = "bf16",
    kv: str = "bf16",
    batch: int,
    context: int,
    devices: int = 1,
    efficiency: Mapping[str, float] | None = None,
    q_len: int = 1,
    reserve: float = RESERVE,
) -> StepPrediction:
    """One decode step of `batch` requests that attend to `context` tokens each, on `devices` tensor-parallel parts.

    Where heads cannot be shared evenly, the step waits for the device that has most of them.

    - `weights`, `kv`: names of `PRECISIONS`
    - `efficiency`: achieved fraction (0 to 1] of the roof that bounds, by operation of the step (`gate_up`); what is
      not named runs at the roof, as does prefill
    - `q_len`: tokens verified per request and pass (speculative decoding); token rates still count one a pass
    - `reserve`: share of memory kept free when the largest batch is counted

    Raises `BadRequest`, and `NotPublished` for a part without a memory bandwidth.
    """
    _check(shape, weights, kv, batch, context, devices, q_len, reserve)
    if device.memory_bandwidth is None:
        raise NotPublished(f"no memory bandwidth of {device.name} is published: its decode step cannot be predicted")
    stored, cache = PRECISIONS[weights], PRECISIONS[kv]
    weight = _pipe_on(device, stored)

    def loads_at(size: int) -> list[Load]:
        return decode_loads(shape, weights=weight, kv=cache, batch=size, context=context, devices=devices, q_len=q_len)

    decode = loads_at(batch)
    prefill = prefill_loads(shape, weights=weight, kv=cache, context=context, devices=devices)
    fractions = efficiency or {}
    _check_efficiency(fractions, decode)
    crossings = _crossings(loads_at, device)

    def priced(load: Load, share: float = 1.0, crossing: int | None = None) -> OpPrediction:
        terms, absent = _terms(load, device)
        return OpPrediction(
            name=load.name,
            measured_as=load.measured_as,
            work=load.work,
            link_bytes=load.link_bytes,
            calls=load.calls,
            seconds=max(terms.values(), default=0.0) / share,
            terms=terms,
            bound=max(terms, key=terms.__getitem__, default="unknown"),
            efficiency=share,
            crossing_batch=crossing,
            missing=tuple(sorted(absent)),
        )

    ops = tuple(priced(load, fractions.get(load.name, 1.0), crossings[load.name]) for load in decode)
    missing = {roof for op in ops for roof in op.missing}
    bandwidth = device.memory_bandwidth.value
    capacity = round(device.memory_capacity.value) * devices if device.memory_capacity else None
    missing |= {name for name in ("memory_capacity", "power") if getattr(device, name) is None}
    weight_bytes = round(parameters(shape) * stored.bytes)
    request_bytes = kv_bytes(shape, context, cache.bytes)
    copies = devices * kv_share(shape, devices)
    kept = round(reserve * (capacity or 0))
    return StepPrediction(
        model=shape.name,
        device=device.key,
        devices=devices,
        weights=weights,
        kv=kv,
        batch=batch,
        context=context,
        basis=_basis(device.memory_bandwidth, device, fractions),
        notes=(
            UNCOUNTED if fractions else f"a floor: {UNCOUNTED}",
            *_split_notes(shape, decode),
            *_pipe_notes(device, weights, stored, weight),
            *([device.note] if device.note else []),
        ),
        ops=ops,
        seconds=sum(op.seconds for op in ops),
        weight_bytes=weight_bytes,
        weight_seconds=sum(load.weight_bytes for load in decode) / bandwidth,
        kv_seconds=sum(load.kv_bytes for load in decode) / bandwidth,
        kv_bytes_per_token=kv_bytes_per_token(shape, cache.bytes),
        kv_bytes_per_request=request_bytes,
        kv_copies=copies,
        reserve_bytes=kept,
        capacity_bytes=capacity,
        max_batch=None
        if capacity is None
        else _largest_batch(free=capacity - kept - weight_bytes, request=request_bytes * copies),
        prefill_ops=tuple(priced(load) for load in prefill),
        power_watts=device.power.value * devices if device.power else None,
        missing=tuple(sorted(missing)),
    )


def _check_efficiency(efficiency: Mapping[str, float], loads: list[Load]) -> None:
    """Raises `BadRequest` for an unknown operation or a share outside (0, 1]."""
    require("operation", efficiency, [load.name for load in loads])
    for name, share in efficiency.items():
        if not 0 < share <= 1:
            raise BadRequest(f"efficiency of {name} must be above 0 and at most 1, not {share}")


def _largest_batch(*, free: float, request: float) -> int:
    """Whole requests in the free memory."""
    return max(0, int(free // request))


def _basis(bandwidth: Quantity, device: DeviceSpec, efficiency: Mapping[str, float]) -> str:
    roofline = f"{bandwidth.kind} roofline of {device.name}"
    if not efficiency:
        return roofline
    return f"{roofline} at measured fractions: " + ", ".join(f"{k} {v:.2f}" for k, v in efficiency.items())


def _split_notes(shape: ModelShape, loads: list[Load]) -> list[str]:
    """What sharing among devices costs beyond what is counted."""
    reduces = sum(load.calls for load in loads if load.link_bytes)
    if not reduces:
        return []
    notes = [f"{reduces} all-reduces a step: each microsecond of their latency adds {reduces / 1e3:g} ms"]
    if shape.is_moe:
        notes.append("each expert is cut evenly; were experts whole, a step would wait for the device with most hits")
    return notes


def _pipe_notes(device: DeviceSpec, weights: str, stored: Precision, used: Precision) -> list[str]:
    if stored == used:
        return []
    return [f"{device.name} has no published {stored.pipe} peak: {weights} weights are multiplied in 16 bits"]
