"""What a shape has: its matrices, parameters and cached bytes. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kernels.models.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class Module:
    """Equal matrices `[n, k]`: `copies` (experts) in each of `layers` layers; a token uses `used` of the copies."""

    name: str
    n: int
    k: int
    layers: int
    copies: int = 1
    used: float = 1
    calls: int = 0
    """Layers that use them, where several share one set of weights; 0: `layers`."""

    @property
    def elements(self) -> int:
        return self.n * self.k * self.layers * self.copies

    @property
    def active(self) -> int:
        """Elements that one token is multiplied with."""
        return round(self.n * self.k * (self.calls or self.layers) * self.used)


def attention_projections(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """`(N, K)` of each attention weight of one layer, `y[B, N] = x[B, K] W[N, K]^T`.

    MLA: `q_a` and `kv_a` project down to the latents, `q_b` and `kv_b` project up; `q` if queries have no latent.
    """
    gate = {"attention_gate": (shape.gate_width, shape.hidden)} if shape.gate_width else {}
    q_rows = shape.heads * (shape.head_dim + (shape.rope_dim if shape.is_mla else 0))
    columns = shape.attention_input or shape.hidden
    if shape.q_latent:
        query = {"q_a": (shape.q_latent, columns), "q_b": (q_rows, shape.q_latent)}
    else:
        query = {"q": (q_rows, columns)}
    if not shape.is_mla:
        keys = {} if shape.reused_cache else {"k": (shape.kv_heads * shape.head_dim, columns)}
        if keys and not (shape.value_is_key or shape.shared_row):
            keys["v"] = (shape.kv_heads * shape.value_dim, columns)
        return query | keys | gate | _output(shape)
    return query | {
        "kv_a": (shape.kv_latent + shape.rope_dim, shape.hidden),
        "kv_b": (shape.heads * (shape.head_dim + shape.v_head_dim), shape.kv_latent),
        **gate,
        "o": (shape.hidden, shape.heads * shape.v_head_dim),
    }


def _output(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """`o`; in groups, each group is first projected to `o_latent` (`o_a`)."""
    width = shape.heads * shape.value_dim
    if not shape.o_groups:
        return {"o": (shape.hidden, width)}
    rows = shape.o_groups * shape.o_latent
    return {"o_a": (rows, width // shape.o_groups), "o": (shape.hidden, rows)}


def index_projections(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """`(N, K)` of the weights with which one layer chooses tokens; none without an indexer."""
    if shape.indexer is None:
        return {}
    queries = shape.indexer.heads * shape.indexer.dim
    rows = shape.indexer.key_rows or shape.indexer.dim + shape.indexer.heads
    latent = shape.q_latent if shape.indexer.latent else 0
    return {"index_q": (queries, latent or shape.hidden), "index_k": (rows, shape.hidden)}


def ffn_projections(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """`(N, K)` of gate, up and down of the dense FFN, or of one expert of a MoE."""
    if shape.is_moe:
        return _ffn(shape, shape.expert_ffn, shape.expert_hidden or shape.hidden)
    return _ffn(shape, shape.ffn, shape.hidden)


def _ffn(shape: ModelShape, width: int, hidden: int) -> dict[str, tuple[int, int]]:
    gate = {"gate": (width, hidden)} if shape.gated_ffn else {}
    return {**gate, "up": (width, hidden), "down": (hidden, width)}


def projections(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """`(N, K)` of the weights of a decoder layer and of `lm_head`. A MoE has those of one expert, and the `router`."""
    router = {"router": (shape.experts, shape.hidden)} if shape.is_moe else {}
    head = {"lm_head": (shape.vocab, shape.hidden)}
    return attention_projections(shape) | router | ffn_projections(shape) | head


def modules(shape: ModelShape) -> list[Module]:
    """All weight matrices; norms, biases, sinks, convolutions and decays are left out: below 0.3% of any model here.

    Names are those of `projections`, `expert_gate` and so on for experts, `shared_gate` and so on for shared ones,
    `state_in`, `state_inner` and `state_out`; and `embedding`, which a tied `lm_head` shares.
    """
    found = [Module(name="embedding", n=shape.vocab, k=shape.hidden, layers=1, used=int(shape.tied_embeddings))]
    sets = shape.weight_sets
    for _, kind in shape.attention_kinds():
        found += _each("", attention_projections(kind), sets or kind.layers, kind.layers)
        if kind.indexer:
            found += _each("", index_projections(kind), kind.indexer.layers)
    if mixer := shape.state_mixer:
        found += [Module(name="state_in", n=n, k=k, layers=mixer.layers) for n, k in mixer.inputs]
        found += [Module(name="state_inner", n=n, k=k, layers=mixer.layers) for n, k in mixer.inner]
        found.append(Module(name="state_out", n=mixer.output[0], k=mixer.output[1], layers=mixer.layers))
    for _, width, layers in shape.dense_ffns():
        found += _each("", _ffn(shape, width, shape.hidden), sets or layers, layers)
    if shape.moe_layers:
        found += _moe_modules(shape)
    for extra in shape.extras:
        used = 0 if extra.table else extra.used
        layers, copies = extra.layers, extra.copies
        found.append(Module(name=extra.name, n=extra.n, k=extra.k, layers=layers, copies=copies, used=used))
    if not shape.tied_embeddings:
        found.append(Module(name="lm_head", n=shape.vocab, k=shape.hidden, layers=1))
    return found


def _each(prefix: str, matrices: Mapping[str, tuple[int, int]], layers: int, calls: int = 0) -> Iterator[Module]:
    for name, (n, k) in matrices.items():
        yield Module(name=prefix + name, n=n, k=k, layers=layers, calls=calls)


def _moe_modules(shape: ModelShape) -> Iterator[Module]:
    layers, hidden = shape.moe_layers, shape.hidden
    yield Module(name="router", n=shape.experts + shape.zero_experts, k=hidden, layers=layers)
    if shape.expert_hidden:
        yield Module(name="latent_in", n=shape.expert_hidden, k=hidden, layers=layers)
        yield Module(name="latent_out", n=hidden, k=shape.expert_hidden, layers=layers)
    if shape.shared_width:
        yield from _each("shared_", _ffn(shape, shape.shared_width, hidden), layers)
    for name, (n, k) in ffn_projections(shape).items():
        used = shape.real_experts_per_token
        yield Module(name=f"expert_{name}", n=n, k=k, layers=layers, copies=shape.experts, used=used)


def parameters(shape: ModelShape) -> int:
    """Elements of all weight matrices: embedding, layers, and `lm_head` if it is not tied.

    Norms, biases and sinks are not counted: they are below 0.1% of any model here.
    """
    return sum(module.elements for module in modules(shape))


def active_parameters(shape: ModelShape) -> int:
    """Elements that one token is multiplied with. A MoE counts its top-k experts; the embedding is only looked up."""
    return sum(module.active for module in modules(shape))


def kv_elements_per_layer(shape: ModelShape) -> int:
    """Cached elements per token and layer: 2 H_kv D, or, with MLA, the latent and one rotary key."""
    if shape.is_mla:
        return shape.kv_latent + shape.rope_dim
    if shape.shared_row:
        return shape.kv_heads * shape.head_dim
    return shape.kv_heads * (shape.head_dim + shape.value_dim)


def kv_bytes_per_token(shape: ModelShape, bytes_per_element: float) -> float:
    """Bytes that one more token adds to the cache of a request, before any sliding window drops tokens.

    Llama-3.1-70B in bf16: 80 layers x 2 x 8 x 128 x 2 B = 327,680 B. Layers without attention add nothing.
    """
    kinds = [kind for _, kind in shape.attention_kinds()]
    elements = sum(grown_rows(kind) * kv_elements_per_layer(kind) for kind in kinds)
    return elements * bytes_per_element + sum(kind.index_bytes_per_token for kind in kinds)


def grown_rows(kind: ModelShape) -> float:
    """Rows that one more token adds to the cache of all layers of a kind.

    Rows of a window beside shared ones do not grow with the context and are left out.
    """
    return 0 if kind.reused_cache else kind.layers / kind.ratio


def kv_bytes(shape: ModelShape, context: int, bytes_per_element: float) -> float:
    """Bytes of one request's cache, without scales and page tails. Windowed layers keep at most `window` tokens."""
    total = 0.0
    for _, kind in shape.attention_kinds():
        total += kind.index_bytes_per_token * context
        if not kind.reused_cache:
            total += kept_tokens(kind, context) * kv_elements_per_layer(kind) * bytes_per_element
    return total


def kept_tokens(shape: ModelShape, context: int) -> float:
    """Rows of the cache of a request of this length, summed over the layers with attention.

    A row holds a token, or `ratio` of them, of which a part counts as its part. Layers that reuse the cache of others
    read as many.
    """
    if shape.ratio > 1:
        return shape.attention_layers * (min(context, shape.window) + context / shape.ratio)
    full = (shape.attention_layers - shape.windowed_layers) * context
    return full + shape.windowed_layers * min(context, shape.window)
