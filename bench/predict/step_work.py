"""What each operation of a decode step or a prefill does on each device, before any device is known. Pure.

Devices share the work by tensor parallelism: attention, its weights and the cache by whole heads, other matrices, each
expert's too, evenly. What is counted is the device that holds most. Activations are 16-bit. (Were experts kept whole, a
step would wait for the device whose experts are hit most.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from kernels.models import ModelShape, attention_projections, kv_elements_per_layer
from kernels.op import Work

ACTIVATION_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a number is stored, and the pipe that multiplies with it where it is a weight."""

    bytes: float
    pipe: str


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(bytes=4, pipe="fma_fp32"),
    "bf16": Precision(bytes=2, pipe="mma_bf16"),
    "fp16": Precision(bytes=2, pipe="mma_bf16"),
    "fp8": Precision(bytes=1, pipe="mma_fp8"),
    "int8": Precision(bytes=1, pipe="mma_int8"),
    "w8a16": Precision(bytes=1, pipe="mma_bf16"),
    "int4": Precision(bytes=0.5, pipe="mma_bf16"),
    "fp4": Precision(bytes=0.5, pipe="mma_fp4"),
}
"""`fp8`, `int8` and `fp4` weights multiply in that type; `w8a16` and `int4` are read narrow, multiplied in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one operation does on each device, before any device is known."""

    name: str
    measured_as: str = ""
    work: Work = field(default_factory=Work)
    weight_bytes: int = 0
    """Part of `work.bytes_read`, as is `kv_bytes`."""
    kv_bytes: int = 0
    link_bytes: int = 0
    calls: int


def expected_experts(shape: ModelShape, tokens: int) -> float:
    """Distinct routed experts that `tokens` tokens hit in one layer: E (1 - (1 - k/E)^tokens).

    Tokens choose independently and every expert is as likely as any other.
    """
    share = shape.experts_per_token / shape.experts
    return shape.experts * (1 - (1 - share) ** tokens)


def kv_share(shape: ModelShape, devices: int) -> float:
    """Part of the cache on the device that holds most of it: KV heads stay whole, an MLA latent is not cut."""
    return 1.0 if shape.is_mla else math.ceil(shape.kv_heads / devices) / shape.kv_heads


def query_share(shape: ModelShape, devices: int) -> float:
    """Part of the query heads on the device that holds most of them.

    They stay with their KV head; where devices outnumber KV heads, copies of one KV head share its queries.
    """
    if shape.is_mla:
        return math.ceil(shape.heads / devices) / shape.heads
    group = shape.heads / shape.kv_heads
    if devices <= shape.kv_heads:
        return math.ceil(shape.kv_heads / devices) * group / shape.heads
    return math.ceil(group / (devices // shape.kv_heads)) / shape.heads


def shares_evenly(shape: ModelShape, devices: int) -> bool:
    """Whether heads can be dealt out so that every device has as many as any other."""
    return math.isclose(query_share(shape, devices) * devices, 1)


def _linear(name: str, matrices: list[tuple[float, float]], *, calls: int, tokens: int, precision: Precision) -> Load:
    """Matrices `(N, K)`, as much of them as one device has, that share their input, times `tokens` rows.

    In each of `calls` layers 2 N K tokens FLOP; reads weights and input, writes the output (a partial sum of it where
    devices share K).
    """
    elements = sum(n * k for n, k in matrices)
    n, k = sum(n for n, _ in matrices), matrices[0][1]
    weight_bytes = round(calls * elements * precision.bytes)
    work = Work(
        flops={precision.pipe: round(calls * 2 * elements * tokens)},
        bytes_read=weight_bytes + round(calls * tokens * k * ACTIVATION_BYTES),
        bytes_written=round(calls * tokens * n * ACTIVATION_BYTES),
    )
    return Load(name=name, measured_as="ffn_gemv", calls=calls, work=work, weight_bytes=weight_bytes)


def _experts(name: str, shape: ModelShape, n: float, k: float, *, tokens: int, precision: Precision) -> Load:
    """A matrix `(n, k)` of each routed expert, as much of it as one device has: weights of the experts that `tokens`
    tokens hit, top-k rows each."""
    calls, rows = shape.moe_layers, tokens * shape.experts_per_token
    weight_bytes = round(calls * expected_experts(shape, tokens) * n * k * precision.bytes)
    work = Work(
        flops={precision.pipe: round(calls * 2 * n * k * rows)},
        bytes_read=weight_bytes + round(calls * rows * k * ACTIVATION_BYTES),
        bytes_written=round(calls * rows * n * ACTIVATION_BYTES),
    )
    return Load(name=name, measured_as="moe_ffn", calls=calls, work=work, weight_bytes=weight_bytes)


def _projections(shape: ModelShape, tokens: int, head_rows: int, precision: Precision, devices: int) -> list[Load]:
    """Every weight of the model against `tokens` rows, and `lm_head` against `head_rows`."""
    common: dict[str, Any] = {"tokens": tokens, "precision": precision}
    queries, keys, even = query_share(shape, devices), kv_share(shape, devices), 1 / devices

    def linear(name: str, *matrices: tuple[float, float], calls: int = shape.layers, **more: Any) -> Load:
        return _linear(name, list(matrices), calls=calls, **(common | more))

    size = ACTIVATION_BYTES * shape.hidden * tokens
    whole = attention_projections(shape)
    shares = {"q": queries, "k": keys, "v": keys, "q_a": even, "kv_a": even, "q_b": queries, "kv_b": queries}
    rows = {name: (n * shares[name], k) for name, (n, k) in whole.items() if name in shares}
    o_rows, o_columns = whole["o"]
    loads = [
        Load(name="embedding", calls=1, work=Work(bytes_read=size, bytes_written=size)),
        linear("qkv", *(rows[name] for name in ("q_a", "q", "k", "v", "kv_a") if name in rows)),
        *(linear(name, rows[name]) for name in ("q_b", "kv_b") if name in rows),
        linear("o", (o_rows, o_columns * queries)),
    ]
    dense = shape.dense_layers if shape.is_moe else shape.layers
    if dense:
        loads.append(linear("gate_up", (2 * shape.ffn * even, shape.hidden), calls=dense))
        loads.append(linear("down", (shape.hidden, shape.ffn * even), calls=dense))
    if shape.is_moe:
        loads += [
            linear("router", (shape.experts * even, shape.hidden), calls=shape.moe_layers),
            _experts("experts_gate_up", shape, 2 * shape.expert_ffn * even, shape.hidden, **common),
            _experts("experts_down", shape, shape.hidden, shape.expert_ffn * even, **common),
        ]
    if shape.shared_experts:
        width, calls = shape.shared_experts * shape.expert_ffn, shape.moe_layers
        loads.append(linear("shared_gate_up", (2 * width * even, shape.hidden), calls=calls))
        loads.append(linear("shared_down", (shape.hidden, width * even), calls=calls))
    return [*loads, linear("lm_head", (shape.vocab * even, shape.hidden), calls=1, tokens=head_rows)]


def _attention_dims(shape: ModelShape, *, absorbed: bool) -> tuple[int, int]:
    """Length of a query-key product and of a value row, per query head.

    MLA decodes `absorbed`: queries are carried into the latent space, so that the cached latent is key and value
    at once; the way in and out costs what `kv_b` costs anyway.
    """
    if not shape.is_mla:
        return shape.head_dim, shape.head_dim
    if absorbed:
        return shape.kv_latent + shape.rope_dim, shape.kv_latent
    return shape.head_dim + shape.rope_dim, shape.v_head_dim


def _attention(
    shape: ModelShape, *, pairs: float, rows: int, cached: float, kv: Precision, devices: int, absorbed: bool
) -> Load:
    """`pairs` query-key pairs and `cached` cached tokens, both summed over layers; `rows` query tokens.

    2 (D_qk + D_v) H FLOP a pair, in 16 bits whatever the cache holds; reads the cache once, Q in and O out.
    """
    d_qk, d_v = _attention_dims(shape, absorbed=absorbed)
    heads = shape.heads * query_share(shape, devices)
    kv_bytes_read = round(cached * kv_elements_per_layer(shape) * kv.bytes * kv_share(shape, devices))
    row_bytes = ACTIVATION_BYTES * shape.layers * rows * heads
    return Load(
        name="attention",
        measured_as="mla_decode" if shape.is_mla else "attention_decode",
        calls=shape.layers,
        kv_bytes=kv_bytes_read,
        work=Work(
            flops={"mma_bf16": round(2 * (d_qk + d_v) * heads * pairs)},
            bytes_read=kv_bytes_read + round(row_bytes * d_qk),
            bytes_written=round(row_bytes * d_v),
        ),
    )


def _kv_append(shape: ModelShape, tokens: int, kv: Precision, devices: int) -> Load:
    """New K and V in 16 bits in, cached precision out."""
    elements = shape.layers * tokens * kv_elements_per_layer(shape) * kv_share(shape, devices)
    work = Work(bytes_read=round(elements * ACTIVATION_BYTES), bytes_written=round(elements * kv.bytes))
    return Load(name="kv_append", measured_as="kv_append", calls=shape.layers, work=work)


def _all_reduce(shape: ModelShape, tokens: int, devices: int) -> list[Load]:
    """Two per layer, after `o` and `down`: in a ring each device sends 2 (n - 1)/n of `[tokens, hidden]`."""
    if devices == 1:
        return []
    size = tokens * shape.hidden * ACTIVATION_BYTES
    sent = round(2 * shape.layers * 2 * (devices - 1) / devices * size)
    return [Load(name="all_reduce", calls=2 * shape.layers, link_bytes=sent)]


def decode_loads(
    shape: ModelShape,
    *,
    weights: Precision,
    kv: Precision,
    batch: int,
    context: int,
    devices: int,
    q_len: int,
) -> list[Load]:
    """The operations of a step: each request brings `q_len` tokens and attends to `context` cached ones."""
    rows = batch * q_len
    cached = batch * cached_tokens(shape, context)
    first, *rest = _projections(shape, rows, rows, weights, devices)
    attention = _attention(shape, pairs=q_len * cached, rows=rows, cached=cached, kv=kv, devices=devices, absorbed=True)
    append = _kv_append(shape, rows, kv, devices)
    return [first, rest[0], append, attention, *rest[1:], *_all_reduce(shape, rows, devices)]


def prefill_loads(shape: ModelShape, *, weights: Precision, kv: Precision, context: int, devices: int) -> list[Load]:
    """The operations of reading a prompt of `context` tokens: causal attention, logits of the last one."""
    full = context * (context + 1) / 2
    outside = max(0, context - shape.window)
    windowed = full - outside * (outside + 1) / 2
    pairs = (shape.layers - shape.windowed_layers) * full + shape.windowed_layers * windowed
    cached = shape.layers * context
    first, *rest = _projections(shape, context, 1, weights, devices)
    attention = _attention(shape, pairs=pairs, rows=context, cached=cached, kv=kv, devices=devices, absorbed=False)
    append = _kv_append(shape, context, kv, devices)
    return [first, rest[0], append, attention, *rest[1:], *_all_reduce(shape, context, devices)]


def cached_tokens(shape: ModelShape, context: int) -> int:
    """Tokens that a request's step reads, summed over layers: windowed layers look back `window` at most."""
    full = (shape.layers - shape.windowed_layers) * context
    return full + shape.windowed_layers * min(context, shape.window)
