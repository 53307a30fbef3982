"""What a step consists of: the operations of `kernels/` in order, each with its case. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from kernels.attention_decode.cases import AttentionCase
from kernels.attention_decode.op import lengths as drawn_lengths
from kernels.decode_step.wiring import shape_of, wiring_of
from kernels.ffn_block.op import FfnCase
from kernels.ffn_gemv.op import GemvCase
from kernels.moe_ffn.op import MoeCase
from kernels.op import Case, Work, discover
from kernels.rmsnorm.op import NormCase
from kernels.rope_append.op import RopeCase
from kernels.router.op import RouterCase
from kernels.silu_mul.op import GateCase

if TYPE_CHECKING:
    from kernels.decode_step.op import StepCase

OUTSIDE = -1
"""The layer of what is in no layer."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One operation of a step: its name in the step, its layer, the operation of `kernels/` and the case of it.

    Looking up the embedding and choosing the token are no operations of `kernels/`; they have `work` alone.
    """

    name: str
    layer: int = OUTSIDE
    op: str = ""
    case: Case | None = None
    own_work: Work | None = None

    @property
    def work(self) -> Work:
        if self.own_work is not None:
            return self.own_work
        assert self.case
        return discover()[self.op].work(self.case)


def windowed(case: StepCase, layer: int) -> bool:
    """Whether a layer has the window of the model."""
    every = wiring_of(case.model).full_every
    return bool(shape_of(case.model).window) and (not every or (layer + 1) % every > 0)


def attention_case(case: StepCase, layer: int) -> AttentionCase:
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    return AttentionCase(
        model=case.model,
        B=case.B,
        H_q=shape.heads,
        H_kv=shape.kv_heads,
        D=shape.head_dim,
        T=case.T,
        lengths=case.lengths,
        seed=case.seed,
        grown=case.grown,
        page=case.page,
        dtype=case.dtype,
        window=shape.window if windowed(case, layer) else 0,
        scale=wiring.attention_scale,
    )


def lengths(case: StepCase) -> tuple[int, ...]:
    """Cached tokens of each sequence, the new one included."""
    return drawn_lengths(attention_case(case, 0))


def rope_case(case: StepCase) -> RopeCase:
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    return RopeCase(
        model=case.model,
        B=case.B,
        H_q=shape.heads,
        H_kv=shape.kv_heads,
        D=shape.head_dim,
        T=case.T,
        page=case.page,
        bias=wiring.qkv_bias,
        qk_norm=wiring.qk_norm,
        dtype=case.dtype,
    )


def product(case: StepCase, layer: str, N: int, K: int, weights: str = "") -> GemvCase:
    return GemvCase(model=case.model, layer=layer, B=case.B, N=N, K=K, dtype=case.dtype, weights=weights)


def norm(case: StepCase, *, residual: bool) -> NormCase:
    return NormCase(model=case.model, B=case.B, D=shape_of(case.model).hidden, residual=residual, dtype=case.dtype)


def mixer(case: StepCase, layer: int) -> Iterator[tuple[str, str, Case]]:
    """Attention with its norms and products."""
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    rope = rope_case(case)
    yield "attention_norm", "rmsnorm", norm(case, residual=layer > 0)
    yield "qkv", "ffn_gemv", product(case, "qkv", rope.heads * shape.head_dim, shape.hidden, case.weights)
    yield "kv_append", "rope_append", rope
    yield "attention", "attention_decode", attention_case(case, layer)
    yield "o", "ffn_gemv", product(case, "o", shape.hidden, shape.heads * shape.head_dim, case.weights)
    if wiring.post_norms:
        yield "attention_post_norm", "rmsnorm", norm(case, residual=False)


def ffn(case: StepCase) -> Iterator[tuple[str, str, Case]]:
    """The FFN or the experts, with their norms. Quantized weights are multiplied in two products."""
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    common: dict[str, Any] = {"model": case.model, "B": case.B, "dtype": case.dtype}
    yield "ffn_norm", "rmsnorm", norm(case, residual=True)
    if shape.is_moe:
        E, k, kind = shape.experts, shape.experts_per_token, wiring.activation
        yield "router", "ffn_gemv", product(case, "router", E, shape.hidden)
        yield "route", "router", RouterCase(E=E, k=k, **common, **dict(wiring.router))
        sizes: dict[str, Any] = {"E": E, "k": k, "H": shape.hidden, "F": shape.expert_ffn}
        yield "experts", "moe_ffn", MoeCase(**common, **sizes, weights=case.weights, activation=kind)
    elif case.quantized:
        yield "gate_up", "ffn_gemv", product(case, "gate_up", 2 * shape.ffn, shape.hidden, case.weights)
        yield "activation", "silu_mul", GateCase(F=shape.ffn, activation=wiring.activation, **common)
        yield "down", "ffn_gemv", product(case, "down", shape.hidden, shape.ffn, case.weights)
    else:
        sizes = {"hidden": shape.hidden, "ffn": shape.ffn, "activation": wiring.activation}
        yield "ffn", "ffn_block", FfnCase(**common, **sizes)
    if wiring.post_norms:
        yield "ffn_post_norm", "rmsnorm", norm(case, residual=False)


@cache
def parts(case: StepCase) -> tuple[Part, ...]:
    """In the order of execution."""
    shape, size = shape_of(case.model), case.bytes
    row, logits = case.B * shape.hidden * size, case.B * shape.vocab * size
    looked_up = Work(bytes_read=row + 8 * case.B, bytes_written=row)
    found = [Part(name="embedding", own_work=looked_up)]
    for layer in range(case.measured_layers):
        inside = [*mixer(case, layer), *ffn(case)]
        found += [Part(name=name, layer=layer, op=op, case=each) for name, op, each in inside]
    found.append(Part(name="final_norm", op="rmsnorm", case=norm(case, residual=True)))
    found.append(Part(name="lm_head", op="ffn_gemv", case=product(case, "lm_head", shape.vocab, shape.hidden)))
    return (*found, Part(name="sampling", own_work=Work(bytes_read=logits, bytes_written=8 * case.B)))
