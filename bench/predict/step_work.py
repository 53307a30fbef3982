"""What each operation of a decode step or a prefill does on each device, before any device is known. Pure.

Devices share the work by tensor parallelism. Attention, its weights and its cache are split by whole heads; all other
matrices, also those of each expert, are split evenly. The numbers are those of the device that holds most. Activations
have 16 bits. (If experts were kept whole, a step would wait for the device whose experts are hit most.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.predict.step_cache import (
    attend_to_cache,
    attend_to_prompt,
    cached_tokens,
    kv_share,
    kv_token_bytes,
    query_share,
    shares_evenly,
    step_states,
)
from bench.predict.step_op import ACTIVATION_BYTES, StepOp
from bench.predict.weights import PRECISIONS, Precision, WeightPlan, as_plan
from kernels.models import ModelShape, StateMixer, attention_projections, index_projections
from kernels.op import Work

__all__ = [
    "PRECISIONS",
    "Precision",
    "StepOp",
    "WeightPlan",
    "cached_tokens",
    "decode_ops",
    "expected_experts",
    "kv_share",
    "kv_token_bytes",
    "prefill_ops",
    "query_share",
    "shares_evenly",
]


def expected_experts(shape: ModelShape, tokens: int) -> float:
    """The number of distinct routed experts that `tokens` tokens hit in one layer: E (1 - (1 - k/E)^tokens).

    Tokens choose independently, and all experts are equally likely.
    """
    share = shape.real_experts_per_token / shape.experts
    return shape.experts * (1 - (1 - share) ** tokens)


Matrix = tuple[str, float, float]
"""The kind of module, and the `(N, K)` of it that one device has."""


def _counted(matrices: Sequence[Matrix], plan: WeightPlan) -> tuple[float, dict[str, float], float]:
    """Of one layer: bytes as stored, elements by the pipe that multiplies with them, bits of most elements."""
    size = 0.0
    elements: dict[str, float] = {}
    bits: dict[float, float] = {}
    for module, n, k in matrices:
        for precision, share in plan.of(module):
            size += share * precision.weight_bytes(n, k)
            elements[precision.pipe] = elements.get(precision.pipe, 0.0) + share * n * k
            bits[8 * precision.bytes] = bits.get(8 * precision.bytes, 0.0) + share * n * k
    return size, elements, max(bits, key=bits.__getitem__)


def _linear(name: str, matrices: Sequence[Matrix], *, calls: int, tokens: int, plan: WeightPlan) -> StepOp:
    """Matrices `(N, K)` that share one input, times `tokens` rows. N and K are the part that one device has.

    Each of `calls` layers computes 2 N K tokens FLOP, reads weights and input, and writes the output. Where devices
    split K, the output is a partial sum.
    """
    size, elements, bits = _counted(matrices, plan)
    n, k = sum(n for _, n, _ in matrices), matrices[0][2]
    weights = round(calls * size)
    work = Work(
        flops={pipe: round(calls * 2 * count * tokens) for pipe, count in elements.items()},
        bytes_read=weights + round(calls * tokens * k * ACTIVATION_BYTES),
        bytes_written=round(calls * tokens * n * ACTIVATION_BYTES),
    )
    return StepOp(
        name=name,
        measured_as="ffn_gemv",
        stored="weights",
        calls=calls,
        work=work,
        weight_bytes=weights,
        weight_bits=bits,
    )


def _experts(name: str, shape: ModelShape, matrices: Sequence[Matrix], *, tokens: int, plan: WeightPlan) -> StepOp:
    """Matrices of each routed expert that share one input. N and K are the part that one device has.

    It reads the weights of the experts that `tokens` tokens hit, and computes as many rows per token as the token has
    experts.
    """
    calls, rows = shape.moe_layers, tokens * shape.real_experts_per_token
    size, elements, bits = _counted(matrices, plan)
    n, k = sum(n for _, n, _ in matrices), matrices[0][2]
    weights = round(calls * expected_experts(shape, tokens) * size)
    work = Work(
        flops={pipe: round(calls * 2 * count * rows) for pipe, count in elements.items()},
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
        weight_bits=bits,
    )


def _attention_weights(shape: ModelShape, tokens: int, plan: WeightPlan, devices: int) -> list[StepOp]:
    """`qkv`, what MLA multiplies between, and `o`, of each kind of attention layer."""
    ops = []
    for suffix, kind in shape.attention_kinds():
        queries, keys, even = query_share(kind, devices), kv_share(kind, devices), 1 / devices
        common: dict[str, Any] = {"tokens": tokens, "plan": plan, "calls": kind.layers}
        shares = {"q": queries, "k": keys, "v": keys, "q_a": even, "kv_a": even, "q_b": queries, "kv_b": queries}
        shares |= {"attention_gate": queries, "o_a": queries}
        whole = attention_projections(kind)
        rows = {name: (name, n * shares[name], k) for name, (n, k) in whole.items() if name in shares}
        o_rows, o_columns = whole["o"]
        first = [rows[name] for name in ("q_a", "q", "attention_gate", "k", "v", "kv_a") if name in rows]
        ops.append(_linear(f"qkv{suffix}", first, **common))
        ops += [_linear(name + suffix, [rows[name]], **common) for name in ("q_b", "kv_b", "o_a") if name in rows]
        if kind.indexer:
            common["calls"] = kind.indexer.layers
            ops += [_linear(name, [(name, n, k)], **common) for name, (n, k) in index_projections(kind).items()]
            common["calls"] = kind.layers
        # the parts of a grouped output are added up before `o`
        o_share = even if "o_a" in whole else queries
        ops.append(_linear(f"o{suffix}", [("o", o_rows, o_columns * o_share)], **common))
    return ops


def _state_weights(mixer: StateMixer, tokens: int, plan: WeightPlan, devices: int) -> list[StepOp]:
    """The matrices of state mixers. Their heads are split evenly."""
    common: dict[str, Any] = {"tokens": tokens, "plan": plan, "calls": mixer.layers}
    rows, columns = mixer.output
    ops = [_linear("state_in", [("state_in", n / devices, k) for n, k in mixer.inputs], **common)]
    if mixer.kind == "mamba":  # its channels are split: the columns of the first product, the rows of the second
        (low, inner), (wide, rank) = mixer.inner
        ops.append(_linear("state_x", [("state_inner", low, inner / devices)], **common))
        ops.append(_linear("state_dt", [("state_inner", wide / devices, rank)], **common))
    elif mixer.inner:
        ops.append(_linear("state_inner", [("state_inner", n / devices, k) for n, k in mixer.inner], **common))
    return [*ops, _linear("state_out", [("state_out", rows, columns / devices)], **common)]


def _ffn_weights(shape: ModelShape, tokens: int, plan: WeightPlan, devices: int) -> list[StepOp]:
    common: dict[str, Any] = {"tokens": tokens, "plan": plan}
    even, hidden, ops = 1 / devices, shape.hidden, []

    def first(prefix: str, width: float, columns: float) -> list[Matrix]:
        """Gate and up, or up alone, as one matrix if they are stored alike."""
        if not shape.gated_ffn:
            return [(f"{prefix}up", width, columns)]
        if plan.of(f"{prefix}gate") == plan.of(f"{prefix}up"):
            return [(f"{prefix}up", 2 * width, columns)]
        return [(f"{prefix}gate", width, columns), (f"{prefix}up", width, columns)]

    for suffix, wide, dense in shape.dense_ffns():
        ops.append(_linear(f"gate_up{suffix}", first("", wide * even, hidden), calls=dense, **common))
        ops.append(_linear(f"down{suffix}", [("down", hidden, wide * even)], calls=dense, **common))
    if calls := shape.moe_layers:
        inside = shape.expert_hidden or hidden
        chosen = (shape.experts + shape.zero_experts) * even
        ops.append(_linear("router", [("router", chosen, hidden)], calls=calls, **common))
        if shape.expert_hidden:
            ops.append(_linear("latent_in", [("latent_in", inside * even, hidden)], calls=calls, **common))
        ops.append(_experts("experts_gate_up", shape, first("expert_", shape.expert_ffn * even, inside), **common))
        ops.append(_experts("experts_down", shape, [("expert_down", inside, shape.expert_ffn * even)], **common))
        if shape.expert_hidden:
            ops.append(_linear("latent_out", [("latent_out", hidden, inside * even)], calls=calls, **common))
        if shared := shape.shared_width * even:
            ops.append(_linear("shared_gate_up", first("shared_", shared, hidden), calls=calls, **common))
            ops.append(_linear("shared_down", [("shared_down", hidden, shared)], calls=calls, **common))
    return ops


def _extras(shape: ModelShape, tokens: int, plan: WeightPlan, devices: int) -> list[StepOp]:
    """Matrices that few models have; of a table, each token reads one row in each layer."""
    ops = []
    for extra in shape.extras:
        if extra.table:
            size = round(tokens * extra.layers * plan.matrix_bytes(extra.name, 1, extra.k))
            written = tokens * extra.layers * extra.k * ACTIVATION_BYTES
            ops.append(StepOp(name=extra.name, calls=extra.layers, work=Work(bytes_read=size, bytes_written=written)))
        elif extra.used:
            matrices = [(extra.name, extra.n * extra.used / devices, float(extra.k))]
            ops.append(_linear(extra.name, matrices, tokens=tokens, plan=plan, calls=extra.layers))
    return ops


def _projections(
    shape: ModelShape,
    tokens: int,
    head_rows: int,
    plan: WeightPlan,
    devices: int,
    between: Sequence[StepOp],
    inside: Sequence[StepOp],
) -> list[StepOp]:
    """All weights of the model times `tokens` rows; `lm_head` times `head_rows`. `between`: what follows `qkv`;
    `inside`: what precedes the last product of state mixers."""
    size = ACTIVATION_BYTES * shape.hidden * tokens
    attention = _attention_weights(shape, tokens, plan, devices)
    head = "embedding" if shape.tied_embeddings else "lm_head"
    states = _state_weights(shape.state_mixer, tokens, plan, devices) if shape.state_mixer else []
    return [
        StepOp(name="embedding", calls=1, work=Work(bytes_read=size, bytes_written=size)),
        *attention[:1],
        *between,
        *attention[1:],
        *states[:1],
        *inside[:-1],
        *states[1:-1],
        *inside[-1:],
        *states[-1:],
        *_ffn_weights(shape, tokens, plan, devices),
        *_extras(shape, tokens, plan, devices),
        _linear("lm_head", [(head, shape.vocab / devices, shape.hidden)], calls=1, tokens=head_rows, plan=plan),
    ]


def _all_reduce(shape: ModelShape, tokens: int, devices: int) -> list[StepOp]:
    """One after each mixer and one after each FFN: two in most layers.

    In a ring, each device sends 2 (n - 1)/n of `[tokens, hidden]`. To a switch that adds up, it sends this once.
    """
    if devices == 1:
        return []
    mixers = shape.attention_layers
    if shape.state_mixer and not shape.parallel_mixers:
        mixers += shape.state_mixer.layers
    calls = mixers + shape.dense_ffn_layers + shape.moe_layers
    size = tokens * shape.hidden * ACTIVATION_BYTES
    sent = round(calls * 2 * (devices - 1) / devices * size)
    return [StepOp(name="all_reduce", calls=calls, link_bytes=sent, switched_bytes=calls * size)]


def decode_ops(
    shape: ModelShape,
    *,
    weights: WeightPlan | Precision,
    kv: Precision,
    batch: int,
    context: int,
    devices: int,
    q_len: int,
) -> list[StepOp]:
    """The operations of a step in which each request brings `q_len` tokens and attends to `context` cached ones."""
    rows = batch * q_len
    between = attend_to_cache(shape, batch=batch, q_len=q_len, context=context, kv=kv, devices=devices)
    inside = step_states(shape, batch, rows, devices)
    ops = _projections(shape, rows, rows, as_plan(weights), devices, between, inside)
    return [*ops, *_all_reduce(shape, rows, devices)]


def prefill_ops(
    shape: ModelShape, *, weights: WeightPlan | Precision, kv: Precision, context: int, devices: int
) -> list[StepOp]:
    """The operations of reading a prompt of `context` tokens, with causal attention and logits of the last token."""
    between = attend_to_prompt(shape, context=context, kv=kv, devices=devices)
    inside = step_states(shape, 1, context, devices, pipe="mma_bf16")
    ops = _projections(shape, context, 1, as_plan(weights), devices, between, inside)
    return [*ops, *_all_reduce(shape, context, devices)]
