"""What a step does with what it remembers: the KV cache of attention, and the states of other mixers.

Devices share the work by tensor parallelism: attention and its cache are split by whole heads. The numbers are those of
the device that holds most.
"""

from __future__ import annotations

import math
from typing import Any

from bench.predict.step_mambas import beside_flops, beside_states, convolution
from bench.predict.step_op import ACTIVATION_BYTES, StepOp
from bench.predict.weights import Precision
from kernels.common.quantization import SCALE_GROUP
from kernels.models import ModelShape, grown_rows, kept_tokens, kv_elements_per_layer
from kernels.op import Work

SCALE_BYTES = 4
"""A scale of an 8-bit cache: fp32."""
STATE_FLOPS = {"mamba": 8, "mamba2": 5, "gated delta rule": 7, "KDA": 7}
"""FLOP for each element of a state and token, by kind of mixer, as `kernels/state_update` counts them."""
OTHER_STATE_FLOPS = 6
"""Of other mixers: decay, add an outer product (2), read out (2), and a gate."""


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


def kv_token_bytes(shape: ModelShape, kv: Precision) -> float:
    """Bytes of one token and layer in the cache, scales included, as the operations of `kernels/` store them.

    In fewer than 16 bits, the tokens of a head share a fp32 scale by `SCALE_GROUP`. With MLA each token has one, and
    its rotary key stays in 16 bits. (No kernel here reads a cache of 4 bits. It is taken to have the same scales.)
    """
    if kv.bytes >= ACTIVATION_BYTES:
        return kv_elements_per_layer(shape) * kv.bytes
    if shape.is_mla:
        return shape.kv_latent * kv.bytes + shape.rope_dim * ACTIVATION_BYTES + SCALE_BYTES
    scales = (1 if shape.shared_row else 2) * SCALE_BYTES / SCALE_GROUP
    return kv_elements_per_layer(shape) * kv.bytes + shape.kv_heads * scales


def held_bytes(shape: ModelShape, context: int, kv: Precision, devices: int = 1) -> tuple[float, float]:
    """Bytes of one request's cache, and of all copies that the devices hold together; states included."""
    alone = copied = 0.0
    for _, kind in shape.attention_kinds():
        keys = float(kind.index_bytes_per_token * context)
        alone += keys
        copied += keys * devices
        if kind.reused_cache:
            continue
        size = kept_tokens(kind, context) * kv_token_bytes(kind, kv)
        alone += size
        copied += size * devices * kv_share(kind, devices)
    return alone + shape.state_bytes_per_request, copied + shape.state_bytes_per_request


def token_bytes(shape: ModelShape, kv: Precision) -> float:
    """Bytes that one more token adds to the cache of a request, over all layers, before any window drops tokens."""
    kinds = (kind for _, kind in shape.attention_kinds())
    return sum(grown_rows(kind) * kv_token_bytes(kind, kv) + kind.index_bytes_per_token for kind in kinds)


def cached_tokens(shape: ModelShape, context: int) -> float:
    """The rows of the cache that a request's step reads, summed over layers.

    Windowed layers read `window` at most. With an indexer, a layer reads the best `top` rows.
    """
    if shape.ratio > 1 and shape.indexer:
        return shape.attention_layers * (min(context, shape.window) + min(context / shape.ratio, shape.indexer.top))
    return kept_tokens(shape, min(context, shape.indexer.top) if shape.indexer else context)


def _attention_dims(shape: ModelShape, *, absorbed: bool) -> tuple[int, int]:
    """The lengths of a key and of a value row, as each query head sees them.

    MLA decodes `absorbed`: it projects queries into the latent space, where the cached latent is key and value at once.
    Projecting in and out costs as much as `kv_b`, which is counted anyway.
    """
    if not shape.is_mla:
        return shape.head_dim, shape.value_dim
    if absorbed:
        return shape.kv_latent + shape.rope_dim, shape.kv_latent
    return shape.head_dim + shape.rope_dim, shape.v_head_dim


def _attention(
    suffix: str,
    shape: ModelShape,
    *,
    pairs: float,
    rows: int,
    cached: float,
    kv: Precision,
    devices: int,
    absorbed: bool,
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
        name=f"attention{suffix}",
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


def _kv_append(suffix: str, shape: ModelShape, tokens: int, kv: Precision, devices: int) -> StepOp:
    """Reads new K and V in 16 bits and writes them in the cache's precision. It writes no scales.

    Rows that several tokens share are written once for all of them.
    """
    elements = grown_rows(shape) * tokens * kv_elements_per_layer(shape) * kv_share(shape, devices)
    work = Work(bytes_read=round(elements * ACTIVATION_BYTES), bytes_written=round(elements * kv.bytes))
    return StepOp(name=f"kv_append{suffix}", measured_as="kv_append", stored="kv", calls=shape.layers, work=work)


def _index(shape: ModelShape, *, pairs: float, cached: float, rows: int) -> list[StepOp]:
    """Scores `cached` keys of the indexer, one for all its heads; every device scores all of them.

    `pairs` and `cached` are tokens of one layer; `ratio` of them share a key. A pair costs 2 D FLOP for each head.
    """
    if shape.indexer is None:
        return []
    indexer = shape.indexer
    read = round(cached * indexer.bytes_per_token)
    new = rows * indexer.bytes_per_token
    queries = rows * indexer.layers * indexer.heads * indexer.dim * ACTIVATION_BYTES
    flops = {"mma_bf16": round(2 * indexer.heads * indexer.dim * indexer.layers * pairs / indexer.ratio)}
    work = Work(flops=flops, bytes_read=read + queries, bytes_written=new)
    return [StepOp(name="index", calls=indexer.layers, kv_bytes=read, work=work)]


def attend_to_cache(
    shape: ModelShape, *, batch: int, q_len: int, context: int, kv: Precision, devices: int
) -> list[StepOp]:
    """Append to the cache and attend to it, in each kind of attention layer."""
    rows, ops = batch * q_len, []
    for suffix, kind in shape.attention_kinds():
        cached = batch * cached_tokens(kind, context)
        ops += _index(kind, pairs=q_len * batch * context, cached=batch * context, rows=rows)
        if not kind.reused_cache:
            ops.append(_kv_append(suffix, kind, rows, kv, devices))
        seen: dict[str, Any] = {"pairs": q_len * cached, "rows": rows, "cached": cached}
        ops.append(_attention(suffix, kind, kv=kv, devices=devices, absorbed=True, **seen))
    return ops


def attend_to_prompt(shape: ModelShape, *, context: int, kv: Precision, devices: int) -> list[StepOp]:
    """Append a prompt to the cache and attend to it causally, in each kind of attention layer."""
    full, ops = context * (context + 1) / 2, []
    for suffix, kind in shape.attention_kinds():
        windowed = _causal_pairs(context, kind.window)
        unwindowed = _causal_pairs(context, kind.indexer.top) if kind.indexer else full
        pairs = (kind.layers - kind.windowed_layers) * unwindowed + kind.windowed_layers * windowed
        if kind.ratio > 1:
            seen_rows = min(context, kind.indexer.top * kind.ratio) if kind.indexer else context
            pairs = kind.layers * (windowed + _causal_pairs(context, seen_rows) / kind.ratio)
        ops += _index(kind, pairs=full, cached=context, rows=context)
        if not kind.reused_cache:
            ops.append(_kv_append(suffix, kind, context, kv, devices))
        seen: dict[str, Any] = {"pairs": pairs, "rows": context, "cached": kind.layers * context / kind.ratio}
        ops.append(_attention(suffix, kind, kv=kv, devices=devices, absorbed=False, **seen))
    return ops


def _causal_pairs(context: int, most: int) -> float:
    """Pairs of a query and a key at or before it, where each query sees `most` keys."""
    outside = max(0, context - most)
    return context * (context + 1) / 2 - outside * (outside + 1) / 2


def step_states(shape: ModelShape, requests: int, tokens: int, devices: int, *, pipe: str = "fma_fp32") -> list[StepOp]:
    """Reads and writes the states of all requests once, and updates them with each token. Heads are split evenly."""
    if shape.state_mixer is None:
        return []
    mixer = shape.state_mixer
    first = [convolution(mixer, requests, tokens, devices)] if mixer.kind == "mamba" else []
    kept = mixer.bytes_per_request if not first else mixer.layers * mixer.state * mixer.state_bytes
    size = round(requests * kept / devices)
    each = STATE_FLOPS.get(mixer.kind, OTHER_STATE_FLOPS)
    count = (each * mixer.state + beside_flops(mixer)) * mixer.layers * tokens
    flops = {pipe: round(count / devices)} if mixer.state else {}
    read, written = (round(mixer.layers * n / devices) for n in beside_states(mixer, tokens))
    work = Work(flops=flops, bytes_read=size + read, bytes_written=size + written)
    return [*first, StepOp(name="state", calls=mixer.layers, work=work)]
