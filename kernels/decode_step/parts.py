"""What a step consists of: the operations of `kernels/` in order, each with its case. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from kernels.attention_decode.cases import AttentionCase
from kernels.attention_decode.op import lengths as drawn_lengths
from kernels.common.gated import UNGATED, matrices
from kernels.decode_step import low_rank, states
from kernels.decode_step.blocks import alone, attends, feeds, letter, mixes, stateful
from kernels.decode_step.wiring import has_experts, shape_of, wiring_of
from kernels.ffn_block.op import FfnCase
from kernels.ffn_gemv.op import GemvCase
from kernels.head_gemv.op import HeadCase
from kernels.latent_append.op import LatentCase
from kernels.mla_decode.op import MlaCase
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
    wiring = wiring_of(case.model)
    if wiring.windows:
        return wiring.windows[layer]
    every = wiring.full_every
    return bool(shape_of(case.model).window) and (not every or (layer + 1) % every > 0)


def routed(case: StepCase, layer: int) -> bool:
    """Whether a layer has experts."""
    if alone(case):
        return letter(case, layer) == "E"
    return has_experts(shape_of(case.model), wiring_of(case.model), layer)


def scale(case: StepCase, width: int) -> float:
    """The factor of the scores of heads of this width; 0 for width^-1/2."""
    wiring = wiring_of(case.model)
    return wiring.attention_scale or (wiring.score_factor != 1) * wiring.score_factor * width**-0.5


def common(case: StepCase) -> dict[str, Any]:
    """The fields that the cases of all operations have."""
    return {"model": case.model, "B": case.B, "dtype": case.dtype}


def paged(case: StepCase) -> dict[str, Any]:
    """Those of operations that write into the pages of a cache."""
    return common(case) | {"T": case.T, "page": case.page}


def read(case: StepCase) -> dict[str, Any]:
    """Those of operations that read the tokens of all pages."""
    return paged(case) | {"lengths": case.lengths, "seed": case.seed, "grown": case.grown}


def attention_case(case: StepCase, layer: int) -> AttentionCase:
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    return AttentionCase(
        H_q=shape.heads,
        H_kv=shape.kv_heads,
        D=shape.head_dim,
        window=shape.window if windowed(case, layer) else 0,
        scale=scale(case, shape.head_dim),
        sink_logits=wiring.sink_logits,
        kv=case.kv,
        **read(case),
    )


def mla_case(case: StepCase) -> MlaCase:
    shape = shape_of(case.model)
    return MlaCase(
        H=shape.heads,
        L=shape.kv_latent,
        R=shape.rope_dim,
        scale=scale(case, shape.head_dim + shape.rope_dim) or (shape.head_dim + shape.rope_dim) ** -0.5,
        **read(case),
    )


def latent_case(case: StepCase) -> LatentCase:
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    return LatentCase(
        H=shape.heads,
        D=shape.head_dim,
        L=shape.kv_latent,
        R=shape.rope_dim,
        epsilon=wiring.latent_epsilon,
        **paged(case),
    )


def lengths(case: StepCase) -> tuple[int, ...]:
    """Tokens of each sequence, the new one included. They don't depend on its heads, and a model may have none."""
    return drawn_lengths(AttentionCase(H_q=1, H_kv=1, D=64, **read(case)))


def memory_shape(case: StepCase, layer: int) -> tuple[int, ...]:
    """Of what holds the queries and the cache of a layer, or its states where it does not attend."""
    if not attends(case, layer):
        return states.memory_shape(states.state_case(case))
    if shape_of(case.model).is_mla:
        latent = latent_case(case)
        return latent.rows, latent.R
    return rope_case(case).memory_shape


def rotary(case: StepCase) -> int:
    """How many dims of a head are rotated."""
    shape = shape_of(case.model)
    return shape.rope_dim or round(shape.head_dim * wiring_of(case.model).rotary_share)


def rope_case(case: StepCase) -> RopeCase:
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    return RopeCase(
        rotary=rotary(case) % shape.head_dim,
        H_q=shape.heads,
        H_kv=shape.kv_heads,
        D=shape.head_dim,
        bias=wiring.qkv_bias,
        qk_norm=wiring.qk_norm,
        epsilon=wiring.epsilon,
        kv=case.kv,
        **paged(case),
    )


def product(case: StepCase, layer: str, N: int, K: int, weights: str = "") -> GemvCase:
    return GemvCase(layer=layer, N=N, K=K, weights=weights, **common(case))


def norm(case: StepCase, *, residual: bool, addend: str = "") -> NormCase:
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    return NormCase(D=shape.hidden, residual=residual, addend=addend, epsilon=wiring.epsilon, **common(case))


def norm_after(case: StepCase, layer: int) -> NormCase:
    """The norm behind this many layers, which adds what the last of them gave. Shared experts give their own part."""
    shared = layer > 0 and routed(case, layer - 1) and shape_of(case.model).shared_width
    addend = "shares" if wiring_of(case.model).shared_gate else "rows"
    return norm(case, residual=layer > 0, addend=addend if shared else "")


def norm_between(case: StepCase) -> NormCase:
    """The norm between the mixer of a layer and its FFN. Two mixers side by side give two parts."""
    addend = "rows" if shape_of(case.model).parallel_mixers else "bias" if wiring_of(case.model).o_bias else ""
    return norm(case, residual=True, addend=addend)


def mixer(case: StepCase, layer: int) -> Iterator[tuple[str, str, Case]]:
    """Attention with its norms and products, a state mixer, or both side by side."""
    shape = shape_of(case.model)
    yield "attention_norm", "rmsnorm", norm_after(case, layer)
    if not attends(case, layer):
        yield from state_mixer(case)
        return
    yield from latent_mixer(case) if shape.is_mla else attention(case, layer)
    if stateful(case, layer):
        yield from state_mixer(case)


def attention(case: StepCase, layer: int) -> Iterator[tuple[str, str, Case]]:
    """Attention whose heads have keys and values of their own, with its products."""
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    rope, heads, gate = rope_case(case), shape.heads * shape.head_dim, shape.gate_width
    yield "qkv", "ffn_gemv", product(case, "qkv", rope.heads * shape.head_dim + gate, shape.hidden, case.weights)
    yield "kv_append", "rope_append", rope
    yield "attention", "attention_decode", attention_case(case, layer)
    if gate:
        yield "attention_gate", "silu_mul", GateCase(F=heads, activation="glu", apart=True, **common(case))
    yield "o", "ffn_gemv", product(case, "o", shape.hidden, heads, case.weights)
    if wiring.post_norms:
        yield "attention_post_norm", "rmsnorm", norm(case, residual=False)


def state_mixer(case: StepCase) -> Iterator[tuple[str, str, Case]]:
    """The first product gives the tokens of the state and the gate behind it."""
    hidden, state = shape_of(case.model).hidden, states.state_case(case)
    inner = states.inner(state)
    if state.apart:
        yield from low_rank.cases_of(case)
        return
    yield "state_in", "ffn_gemv", product(case, "state_in", state.width + inner, hidden, case.weights)
    yield "state", "state_update", state
    if wiring_of(case.model).state_norm:
        yield "state_norm", "rmsnorm", states.state_norm(case)
    else:
        yield "state_gate", "silu_mul", states.state_gate(case)
    yield "state_out", "ffn_gemv", product(case, "state_out", hidden, inner, case.weights)


def router_case(case: StepCase) -> RouterCase:
    shape, more = shape_of(case.model), dict(wiring_of(case.model).router)
    return RouterCase(E=shape.experts, k=shape.experts_per_token, **common(case), **more)


def latent_mixer(case: StepCase) -> Iterator[tuple[str, str, Case]]:
    """Absorbed MLA: queries become latents, and what attention gives in latents becomes values, head by head."""
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    heads, L, R = shape.heads, shape.kv_latent, shape.rope_dim
    queries = heads * (shape.head_dim + R)
    yield "qkv", "ffn_gemv", product(case, "qkv", (shape.q_latent or queries) + L + R, shape.hidden, case.weights)
    if shape.q_latent:
        yield "q_norm", "rmsnorm", NormCase(D=shape.q_latent, epsilon=wiring.latent_epsilon, **common(case))
        yield "q_b", "ffn_gemv", product(case, "q_b", queries, shape.q_latent, case.weights)
    yield "kv_append", "latent_append", latent_case(case)
    yield "kv_b_keys", "head_gemv", HeadCase(H=heads, N=L, K=shape.head_dim, **common(case))
    yield "attention", "mla_decode", mla_case(case)
    yield "kv_b_values", "head_gemv", HeadCase(H=heads, N=shape.value_dim, K=L, **common(case))
    yield "o", "ffn_gemv", product(case, "o", shape.hidden, heads * shape.value_dim, case.weights)


def ffn(case: StepCase, layer: int) -> Iterator[tuple[str, str, Case]]:
    """The FFN or the experts, with their norms."""
    shape, wiring = shape_of(case.model), wiring_of(case.model)
    yield "ffn_norm", "rmsnorm", norm_after(case, layer) if alone(case) else norm_between(case)
    if routed(case, layer):
        E, k, kind = shape.experts, shape.experts_per_token, wiring.activation
        yield "router", "ffn_gemv", product(case, "router", E + wiring.shared_gate, shape.hidden)
        yield "route", "router", router_case(case)
        inside = shape.expert_hidden or shape.hidden
        sizes: dict[str, Any] = {"E": E, "k": k, "H": inside, "F": shape.expert_ffn}
        sizes |= {"weights": case.experts_in, "activation": kind, "bias": wiring.expert_bias}
        if shape.expert_hidden:
            yield "latent_in", "ffn_gemv", product(case, "latent_in", inside, shape.hidden, case.weights)
        yield "experts", "moe_ffn", MoeCase(**common(case), **sizes)
        if shape.expert_hidden:
            yield "latent_out", "ffn_gemv", product(case, "latent_out", shape.hidden, inside, case.weights)
        if shape.shared_width:
            yield from dense(case, "shared", shape.shared_width)
    else:
        yield from dense(case, "ffn", shape.ffn)
    if wiring.post_norms:
        yield "ffn_post_norm", "rmsnorm", norm(case, residual=False)


def dense(case: StepCase, name: str, width: int) -> Iterator[tuple[str, str, Case]]:
    """A FFN that every token takes. It is two products if weights are quantized, or if it has no gate; the first one
    then gives up alone."""
    shape, kind = shape_of(case.model), wiring_of(case.model).activation
    if in_one(case):
        yield name, "ffn_block", FfnCase(hidden=shape.hidden, ffn=width, activation=kind, **common(case))
        return
    prefix = prefix_of(name)
    yield f"{prefix}gate_up", "ffn_gemv", product(case, "gate_up", matrices(kind) * width, shape.hidden, case.weights)
    yield f"{prefix}activation", "silu_mul", GateCase(F=width, activation=kind, **common(case))
    yield f"{prefix}down", "ffn_gemv", product(case, "down", shape.hidden, width, case.weights)


def in_one(case: StepCase) -> bool:
    """Whether a whole FFN is one operation."""
    return not case.quantized and wiring_of(case.model).activation not in UNGATED


def prefix_of(name: str) -> str:
    """What the names of the matrices of a FFN begin with."""
    return "shared_" if name == "shared" else ""


@cache
def parts(case: StepCase) -> tuple[Part, ...]:
    """In the order of execution."""
    shape, size = shape_of(case.model), case.bytes
    row, logits = case.B * shape.hidden * size, case.B * shape.vocab * size
    looked_up = Work(bytes_read=row + 8 * case.B, bytes_written=row)
    found = [Part(name="embedding", own_work=looked_up)]
    for layer in range(case.measured_layers):
        inside = [*mixer(case, layer)] if mixes(case, layer) else []
        inside += ffn(case, layer) if feeds(case, layer) else []
        found += [Part(name=name, layer=layer, op=op, case=each) for name, op, each in inside]
    found.append(Part(name="final_norm", op="rmsnorm", case=norm_after(case, case.measured_layers)))
    found.append(Part(name="lm_head", op="ffn_gemv", case=product(case, "lm_head", shape.vocab, shape.hidden)))
    return (*found, Part(name="sampling", own_work=Work(bytes_read=logits, bytes_written=8 * case.B)))
