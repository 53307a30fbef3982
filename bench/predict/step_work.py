"""What each operation of a decode step or a prefill does on each device, before any device is known. Pure.

Devices share the work by tensor parallelism. Attention, its weights and its cache are split by whole heads; all other
matrices, also those of each expert, are split evenly. The numbers are those of the device that holds most. Activations
have 16 bits. (If experts were kept whole, a step would wait for the device whose experts are hit most.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from kernels.common.quantization import SCALE_GROUP, weight_bytes
from kernels.models import ModelShape, attention_projections, kv_elements_per_layer
from kernels.op import Work

ACTIVATION_BYTES = 2
SCALE_BYTES = 4
"""A scale of an 8-bit cache: fp32."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a number is stored and, for a weight, the pipe that multiplies with it."""

    bytes: float
    """Bytes of one number, without scales."""
    pipe: str
    format: str = ""
    """The format of `kernels/common/quantization.py` that tells what scales weights have; empty for none."""

    def weight_bytes(self, n: float, k: float) -> float:
        """Bytes of a matrix `[n, k]` with its scales."""
        if not self.format:
            return n * k * self.bytes
        return weight_bytes(self.format, math.ceil(n), math.ceil(k), ACTIVATION_BYTES)


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(bytes=4, pipe="fma_fp32"),
    "bf16": Precision(bytes=2, pipe="mma_bf16"),
    "fp16": Precision(bytes=2, pipe="mma_bf16"),
    "fp8": Precision(bytes=1, pipe="mma_fp8", format="fp8"),
    "int8": Precision(bytes=1, pipe="mma_int8", format="int8"),
    "w8a16": Precision(bytes=1, pipe="mma_bf16", format="int8"),
    "int4": Precision(bytes=0.5, pipe="mma_bf16", format="int4"),
    "fp4": Precision(bytes=0.5, pipe="mma_fp4", format="mxfp4"),
}
"""`fp8`, `int8` and `fp4` weights are multiplied in that type. `w8a16` and `int4` weights are read in 8 or 4 bits and
multiplied in 16."""


@dataclass(frozen=True, kw_only=True)
class StepOp:
    """One operation of a step, all layers together, on one of the devices that share it."""

    name: str
    measured_as: str = ""
    """The operation of `kernels/` that measures this one; empty for none."""
    joint: bool = False
    """Whether one record measures all operations with this `measured_as` together, as `moe_ffn` does for experts."""
    stored: Literal["", "weights", "kv"] = ""
    """What it reads or writes in the step's precision: weights or KV cache. A case has the type in a field so named."""
    work: Work = field(default_factory=Work)
    weight_bytes: int = 0
    """Part of `work.bytes_read`, scales included."""
    kv_bytes: int = 0
    """Part of `work.bytes_read`."""
    link_bytes: int = 0
    """Sent by each device, in one direction."""
    calls: int
    """How often a step runs it, over all layers."""


def expected_experts(shape: ModelShape, tokens: int) -> float:
    """The number of distinct routed experts that `tokens` tokens hit in one layer: E (1 - (1 - k/E)^tokens).

    Tokens choose independently, and all experts are equally likely.
    """
    share = shape.experts_per_token / shape.experts
    return shape.experts * (1 - (1 - share) ** tokens)


def kv_share(shape: ModelShape, devices: int) -> float:
    """The part of the cache on the device that holds most of it. KV heads stay whole; an MLA latent is not split."""
    return 1.0 if shape.is_mla else math.ceil(shape.kv_heads / devices) / shape.kv_heads


def query_share(shape: ModelShape, devices: int) -> float:
    """The part of the query heads on the device that holds most of them.

    Query heads stay with their KV head. Where there are more devices than KV heads, several devices hold a copy of one
    KV head and share its query heads.
    """
    if shape.is_mla:
        return math.ceil(shape.heads / devices) / shape.heads
    group = shape.heads / shape.kv_heads
    if devices <= shape.kv_heads:
        return math.ceil(shape.kv_heads / devices) * group / shape.heads
    return math.ceil(group / (devices // shape.kv_heads)) / shape.heads


def shares_evenly(shape: ModelShape, devices: int) -> bool:
    """Whether every device can hold the same number of heads."""
    return math.isclose(query_share(shape, devices) * devices, 1)


def _linear(name: str, matrices: list[tuple[float, float]], *, calls: int, tokens: int, precision: Precision) -> StepOp:
    """Matrices `(N, K)` that share one input, times `tokens` rows. N and K are the part that one device has.

    Each of `calls` layers computes 2 N K tokens FLOP, reads weights and input, and writes the output. Where devices
    split K, the output is a partial sum.
    """
    elements = sum(n * k for n, k in matrices)
    n, k = sum(n for n, _ in matrices), matrices[0][1]
    weights = round(calls * sum(precision.weight_bytes(*matrix) for matrix in matrices))
    work = Work(
        flops={precision.pipe: round(calls * 2 * elements * tokens)},
        bytes_read=weights + round(calls * tokens * k * ACTIVATION_BYTES),
        bytes_written=round(calls * tokens * n * ACTIVATION_BYTES),
    )
    return StepOp(name=name, measured_as="ffn_gemv", stored="weights", calls=calls, work=work, weight_bytes=weights)


def _experts(name: str, shape: ModelShape, n: float, k: float, *, tokens: int, precision: Precision) -> StepOp:
    """A matrix of each routed expert, of which one device has `(n, k)`.

    It reads the weights of the experts that `tokens` tokens hit, and computes as many rows per token as the token has
    experts.
    """
    calls, rows = shape.moe_layers, tokens * shape.experts_per_token
    weights = round(calls * expected_experts(shape, tokens) * precision.weight_bytes(n, k))
    work = Work(
        flops={precision.pipe: round(calls * 2 * n * k * rows)},
        bytes_read=weights + round(calls * rows * k * ACTIVATION_BYTES),
        bytes_written=round(calls * rows * n * ACTIVATION_BYTES),
    )
    return StepOp(
        name=name,
        measured_as="moe_ffn",
        joint=True,
        stored="weights",
        calls=calls,
        work=work,
        weight_bytes=weights,
    )


def _projections(shape: ModelShape, tokens: int, head_rows: int, precision: Precision, devices: int) -> list[StepOp]:
    """All weights of the model times `tokens` rows; `lm_head` times `head_rows`."""
    common: dict[str, Any] = {"tokens": tokens, "precision": precision}
    queries, keys, even = query_share(shape, devices), kv_share(shape, devices), 1 / devices

    def linear(name: str, *matrices: tuple[float, float], calls: int = shape.layers, **more: Any) -> StepOp:
        return _linear(name, list(matrices), calls=calls, **(common | more))

    size = ACTIVATION_BYTES * shape.hidden * tokens
    whole = attention_projections(shape)
    shares = {"q": queries, "k": keys, "v": keys, "q_a": even, "kv_a": even, "q_b": queries, "kv_b": queries}
    rows = {name: (n * shares[name], k) for name, (n, k) in whole.items() if name in shares}
    o_rows, o_columns = whole["o"]
    ops = [
        StepOp(name="embedding", calls=1, work=Work(bytes_read=size, bytes_written=size)),
        linear("qkv", *(rows[name] for name in ("q_a", "q", "k", "v", "kv_a") if name in rows)),
        *(linear(name, rows[name]) for name in ("q_b", "kv_b") if name in rows),
        linear("o", (o_rows, o_columns * queries)),
    ]
    dense = shape.dense_layers if shape.is_moe else shape.layers
    if dense:
        ops.append(linear("gate_up", (2 * shape.ffn * even, shape.hidden), calls=dense))
        ops.append(linear("down", (shape.hidden, shape.ffn * even), calls=dense))
    if shape.is_moe:
        ops += [
            linear("router", (shape.experts * even, shape.hidden), calls=shape.moe_layers),
            _experts("experts_gate_up", shape, 2 * shape.expert_ffn * even, shape.hidden, **common),
            _experts("experts_down", shape, shape.hidden, shape.expert_ffn * even, **common),
        ]
    if shape.shared_experts:
        width, calls = shape.shared_experts * shape.expert_ffn, shape.moe_layers
        ops.append(linear("shared_gate_up", (2 * width * even, shape.hidden), calls=calls))
        ops.append(linear("shared_down", (shape.hidden, width * even), calls=calls))
    return [*ops, linear("lm_head", (shape.vocab * even, shape.hidden), calls=1, tokens=head_rows)]


def kv_token_bytes(shape: ModelShape, kv: Precision) -> float:
    """Bytes of one token and layer in the cache, scales included, as the operations of `kernels/` store them.

    In fewer than 16 bits, the tokens of a head share a fp32 scale by `SCALE_GROUP`. With MLA each token has one, and
    its rotary key stays in 16 bits. (No kernel here reads a cache of 4 bits. It is taken to have the same scales.)
    """
    if kv.bytes >= ACTIVATION_BYTES:
        return kv_elements_per_layer(shape) * kv.bytes
    if shape.is_mla:
        return shape.kv_latent * kv.bytes + shape.rope_dim * ACTIVATION_BYTES + SCALE_BYTES
    return 2 * shape.kv_heads * (shape.head_dim * kv.bytes + SCALE_BYTES / SCALE_GROUP)


def _attention_dims(shape: ModelShape, *, absorbed: bool) -> tuple[int, int]:
    """The lengths of a key and of a value row, as each query head sees them.

    MLA decodes `absorbed`: it projects queries into the latent space, where the cached latent is key and value at once.
    Projecting in and out costs as much as `kv_b`, which is counted anyway.
    """
    if not shape.is_mla:
        return shape.head_dim, shape.head_dim
    if absorbed:
        return shape.kv_latent + shape.rope_dim, shape.kv_latent
    return shape.head_dim + shape.rope_dim, shape.v_head_dim


def _attention(
    shape: ModelShape, *, pairs: float, rows: int, cached: float, kv: Precision, devices: int, absorbed: bool
) -> StepOp:
    """`pairs` query-key pairs and `cached` cached tokens, both summed over layers; `rows` query tokens.

    Each pair costs 2 (D_qk + D_v) H FLOP, in 16 bits whatever the cache is stored in. Reads the cache once, with its
    scales, and Q, and writes O.
    """
    d_qk, d_v = _attention_dims(shape, absorbed=absorbed)
    heads = shape.heads * query_share(shape, devices)
    kv_bytes_read = round(cached * kv_token_bytes(shape, kv) * kv_share(shape, devices))
    row_bytes = ACTIVATION_BYTES * shape.layers * rows * heads
    return StepOp(
        name="attention",
        measured_as="mla_decode" if shape.is_mla else "attention_decode",
        stored="kv",
        calls=shape.layers,
        kv_bytes=kv_bytes_read,
        work=Work(
            flops={"mma_bf16": round(2 * (d_qk + d_v) * heads * pairs)},
            bytes_read=kv_bytes_read + round(row_bytes * d_qk),
            bytes_written=round(row_bytes * d_v),
        ),
    )


def _kv_append(shape: ModelShape, tokens: int, kv: Precision, devices: int) -> StepOp:
    """Reads new K and V in 16 bits and writes them in the cache's precision. It writes no scales."""
    elements = shape.layers * tokens * kv_elements_per_layer(shape) * kv_share(shape, devices)
    work = Work(bytes_read=round(elements * ACTIVATION_BYTES), bytes_written=round(elements * kv.bytes))
    return StepOp(name="kv_append", measured_as="kv_append", stored="kv", calls=shape.layers, work=work)


def _all_reduce(shape: ModelShape, tokens: int, devices: int) -> list[StepOp]:
    """Two per layer, after `o` and after `down`. In a ring, each device sends 2 (n - 1)/n of `[tokens, hidden]`."""
    if devices == 1:
        return []
    size = tokens * shape.hidden * ACTIVATION_BYTES
    sent = round(2 * shape.layers * 2 * (devices - 1) / devices * size)
    return [StepOp(name="all_reduce", calls=2 * shape.layers, link_bytes=sent)]


def decode_ops(
    shape: ModelShape,
    *,
    weights: Precision,
    kv: Precision,
    batch: int,
    context: int,
    devices: int,
    q_len: int,
) -> list[StepOp]:
    """The operations of a step in which each request brings `q_len` tokens and attends to `context` cached ones."""
    rows = batch * q_len
    cached = batch * cached_tokens(shape, context)
    first, *rest = _projections(shape, rows, rows, weights, devices)
    attention = _attention(shape, pairs=q_len * cached, rows=rows, cached=cached, kv=kv, devices=devices, absorbed=True)
    append = _kv_append(shape, rows, kv, devices)
    return [first, rest[0], append, attention, *rest[1:], *_all_reduce(shape, rows, devices)]


def prefill_ops(shape: ModelShape, *, weights: Precision, kv: Precision, context: int, devices: int) -> list[StepOp]:
    """The operations of reading a prompt of `context` tokens, with causal attention and logits of the last token."""
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
    """The cached tokens that a request's step reads, summed over layers. Windowed layers read `window` at most."""
    full = (shape.layers - shape.windowed_layers) * context
    return full + shape.windowed_layers * min(context, shape.window)
